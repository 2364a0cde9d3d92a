"""First byte over a long way: a delay line between client and server, an echo server behind it.

The round trip is measured through the same kind of line, so that its own lateness cancels.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator

ONE_WAY_S = 0.050
LIMIT_S = 30.0


class DelayLine:
    """A TCP forwarder that passes every byte on `ONE_WAY_S` after it came, in order."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._peers: dict[socket.socket, socket.socket] = {}
        self._due: list[tuple[float, int, socket.socket, bytes]] = []
        self._serial = itertools.count()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._is_closed = False
        self._thread.start()

    def _run(self) -> None:
        while not self._is_closed:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, _, sink, data = heapq.heappop(self._due)
                self._pass_on(sink, data)
            timeout = max(0.0, self._due[0][0] - now) if self._due else 0.2
            ready, _, _ = select.select([self._listener, *self._peers], [], [], timeout)
            for sock in ready:
                if sock is self._listener:
                    self._accept()
                elif sock in self._peers:
                    self._read(sock)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target), LIMIT_S)
        for sock, peer in ((near, far), (far, near)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[sock] = peer

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(1 << 18)
        except OSError:
            data = b""
        due = time.monotonic() + ONE_WAY_S
        heapq.heappush(self._due, (due, next(self._serial), self._peers[sock], data))
        if not data:
            del self._peers[sock]

    def _pass_on(self, sink: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if data:
                sink.sendall(data)
            else:
                sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._is_closed = True
        self._thread.join(LIMIT_S)
        for sock in [self._listener, *self._peers]:
            sock.close()


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """Answers every piece with itself, on all of 127.0.0.0/8; its port."""
    listener = socket.create_server(("0.0.0.0", 0), backlog=64)

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            while data := sock.recv(4096):
                sock.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def round_trip(port: int, count: int) -> float:
    """Median seconds of an echo over an open connection through a line to `port`."""
    line = DelayLine(port)
    try:
        with socket.create_connection(("127.0.0.1", line.port), LIMIT_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return statistics.median(_echo(sock) for _ in range(count))
    finally:
        line.close()


def _echo(sock: socket.socket) -> float:
    before = time.monotonic()
    sock.sendall(b"E")
    if sock.recv(1) != b"E":
        raise OSError("the connection ended")
    return time.monotonic() - before


def first_byte(proxy: int, host: str, port: int) -> float:
    """Seconds from a program's SOCKS5 request to the first byte of its answer."""
    with socket.create_connection(("127.0.0.1", proxy), LIMIT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"\5\1\0")
        if sock.recv(2) != b"\5\0":
            raise OSError("the proxy refused the method")
        before = time.monotonic()
        sock.sendall(b"\5\1\0\1" + socket.inet_aton(host) + port.to_bytes(2, "big"))
        if sock.recv(10)[1:2] != b"\0":
            raise OSError("the proxy refused the connection")
        _echo(sock)
        return time.monotonic() - before


def measure(proxy: int, port: int, count: int) -> dict[str, float]:
    """First byte in round trips: hosts that never connected before, then the same once more."""
    trip = round_trip(port, count)
    hosts = [f"127.0.0.{number + 2}" for number in range(count)]
    new = statistics.median(first_byte(proxy, host, port) for host in hosts)
    known = statistics.median(first_byte(proxy, host, port) for host in hosts)
    return {
        "100 ms away: round trip of the line (ms)": trip * 1000,
        "100 ms away: first byte, connected before (round trips)": known / trip,
        "100 ms away: first byte, new host (round trips)": new / trip,
    }
