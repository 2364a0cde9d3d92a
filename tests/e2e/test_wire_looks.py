"""What an observer of the wire sees (R23), and how many flights a first byte takes.

The statistics are sums of known distributions; every bound is one that random bytes break less than
once in a million runs (normal deviates beyond 5).
"""

from __future__ import annotations

import math
import socket
import tempfile
import threading
from pathlib import Path

import pytest
import socks

from mesh import BLOCK, Mesh, Site, free_port, wait_until

MIB = 1 << 20


@pytest.fixture(scope="module")
def site():
    with Site() as server:
        yield server
        server.shutdown()


def _deviation(counts: list[int]) -> float:
    """The chi-square of these counts against equal chances, as a normal deviate (Wilson-Hilferty)."""
    total, kinds = sum(counts), len(counts)
    expected = total / kinds
    chi = sum((count - expected) ** 2 / expected for count in counts)
    degrees = kinds - 1
    spread = 2 / (9 * degrees)
    return ((chi / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def _counts(data: bytes) -> list[int]:
    return [data.count(bytes((value,))) for value in range(256)]


def test_what_is_on_the_wire_looks_random(site):
    """300 links of their own and a bulk transfer of zeros and text: bytes, first bytes, lengths."""
    mesh = Mesh(Path(tempfile.mkdtemp(prefix="uv")), with_cutter=True)
    try:
        mesh.cutter.record = []
        for number in range(300):
            mesh.cutter.cut()
            wait_until(lambda n=number: len(mesh.cutter.record) > n and mesh.cutter.record[n], 20)
        sock = socks.socksocket()
        sock.set_proxy(socks.SOCKS5, "127.0.0.1", mesh.entry, rdns=True)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", site.port))
        body = bytes(4 * MIB) + b"the same text again and again " * 40_000
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        sock.close()
        captures = [bytes(heard) for heard in mesh.cutter.record]
    finally:
        mesh.close()
    everything = b"".join(captures)
    assert len(everything) > 5 * MIB
    assert abs(_deviation(_counts(everything))) < 5
    bits = sum(value.bit_count() * count for value, count in enumerate(_counts(everything)))
    total = 8 * len(everything)
    assert abs(bits - total / 2) < 5 * math.sqrt(total) / 2
    pairs: list[int] = [0] * 65536
    for index in range(0, len(everything) - 1, 2):
        pairs[everything[index] << 8 | everything[index + 1]] += 1
    assert abs(_deviation(pairs)) < 5
    starts = [heard for heard in captures if len(heard) >= 80]
    assert len(starts) >= 200
    for position in range(64):  # every place near the start, in nibbles: 200 samples are enough
        column = bytes(heard[position] for heard in starts)
        high = [sum(1 for value in column if value >> 4 == nibble) for nibble in range(16)]
        assert abs(_deviation(high)) < 5.5, position
    assert len({heard[:16] for heard in starts}) == len(starts)
    blocks = [everything[index : index + 16] for index in range(0, len(everything) - 15, 16)]
    assert len(set(blocks)) == len(blocks)
    assert len({len(heard) for heard in starts}) > 30, "first messages have telling lengths"


class Flights:
    """A forwarder that holds bytes back and lets one direction go at a time: flights are counted."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.is_free = True
        self.queues: dict[bool, list[tuple[socket.socket, bytes]]] = {True: [], False: []}
        self.lock = threading.Lock()
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target), 5)
                self.ends += [near, far]
                for source, sink, up in ((near, far, True), (far, near, False)):
                    threading.Thread(
                        target=self._carry, args=(source, sink, up), daemon=True
                    ).start()
        except OSError:
            return

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(65536):
                with self.lock:
                    self.queues[up].append((sink, data))
                    is_free = self.is_free
                if is_free:
                    self.release(up)
        except OSError:
            return

    def release(self, up: bool) -> None:
        """Everything that waits in this direction arrives."""
        with self.lock:
            for sink, data in self.queues[up]:
                sink.sendall(data)
            self.queues[up] = []

    def set_free(self, is_free: bool) -> None:
        """Bytes pass at once, or wait."""
        with self.lock:
            self.is_free = is_free
        if is_free:
            self.release(True)
            self.release(False)

    def round_trips_until(self, is_done) -> int:
        """Lets both directions go in turn until `is_done`; how many times there and back."""
        trips = 0
        while True:
            wait_until(lambda: self.queues[True] or is_done(), 20)
            if is_done():
                return trips
            self.release(True)
            trips += 1
            while not is_done() and not self.queues[True]:
                wait_until(lambda: self.queues[False] or self.queues[True] or is_done(), 20)
                self.release(False)

    def close(self) -> None:
        """Ends all."""
        for sock in (self.listener, *self.ends):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()


def test_a_first_byte_takes_one_round_trip_where_it_connected_before_and_two_where_not(site):
    """Counted in flights: no clock decides. `optimistic = "auto"` is the default."""
    from mesh import NodeProcess, client_text, server_text

    folder = Path(tempfile.mkdtemp(prefix="uv"))
    port, entry = free_port(), free_port()
    flights = Flights(port)
    server = NodeProcess(folder / "1", server_text(folder / "1", port))
    client = NodeProcess(folder / "7", client_text(folder / "7", entry, {1: flights.port}))
    try:
        wait_until(client.is_linked)
        counted = []
        for _ in range(3):
            first = threading.Event()

            def ask(first=first) -> None:
                sock = socks.socksocket()
                sock.set_proxy(socks.SOCKS5, "127.0.0.1", entry, rdns=True)
                sock.settimeout(60)
                sock.connect(("127.0.0.1", site.port))
                sock.sendall(b"GET /5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert sock.recv(1) == b"H"
                first.set()
                while sock.recv(4096).find(BLOCK[:5]) < 0:
                    pass
                sock.close()

            flights.set_free(False)
            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            counted.append(flights.round_trips_until(first.is_set))
            flights.set_free(True)
            thread.join(20)
            wait_until(lambda: not client.status()["connections"])
        assert counted == [2, 1, 1]
    finally:
        client.stop()
        server.stop()
        flights.close()
