"""Programs of the tests' own: an echo site, a connection through the proxy, one that keeps beating."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import socks

LIMIT_S = 60


@contextlib.contextmanager
def echo(address: str = "127.0.0.1"):
    """A site that sends back what it gets; its port."""
    with socket.create_server((address, 0)) as listener:

        def serve(peer: socket.socket) -> None:
            with contextlib.suppress(OSError), peer:
                while data := peer.recv(4096):
                    peer.sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    threading.Thread(target=serve, args=(peer,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def connect(entry: int, port: int, limit_s: float = LIMIT_S) -> socket.socket:
    """Through the proxy to a port of 127.0.0.1; nothing on it may take longer than the limit."""
    sock = socks.socksocket()
    sock.set_proxy(socks.SOCKS5, "127.0.0.1", entry, rdns=True)
    sock.settimeout(limit_s)
    sock.connect(("127.0.0.1", port))
    return sock


class Beat(threading.Thread):
    """A connection that asks and hears, again and again, each answer the right one."""

    def __init__(self, entry: int, target: int) -> None:
        super().__init__(daemon=True)
        self._sock = connect(entry, target)
        self._ended = threading.Event()
        self._count = 0
        self._longest = 0.0
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self._once()
                self._ended.wait(0.02)
            self._once()  # it still works
        except Exception as error:
            self._error = error

    def _once(self) -> None:
        before = time.monotonic()
        question = self._count.to_bytes(8, "big") * 20
        self._sock.sendall(question)
        heard = b""
        while len(heard) < len(question):
            part = self._sock.recv(4096)
            assert part, "the connection ended"
            heard += part
        assert heard == question
        self._count += 1
        self._longest = max(self._longest, time.monotonic() - before)

    def end(self) -> float:
        """Raises what went wrong; the longest wait for an answer, seconds."""
        self._ended.set()
        self.join(2 * LIMIT_S)
        self._sock.close()
        assert self._error is None and not self.is_alive(), repr(self._error)
        return self._longest
