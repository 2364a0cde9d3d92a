"""What an observer of the wire sees: nothing that random bytes of random lengths would not show (R23).

Each comparison fails on truly random bytes with a probability below CHANCE, and there are fewer than a
thousand of them: below 1e-9 for all together, and below 1e-6 even if the chi-square approximation, this
far out in its tail, were wrong by a factor of a thousand.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
import socks

from cutter import Flow
from mesh import Mesh, NodeProcess, client_text, free_port, wait_until

CHANCE = 1e-12
MIB = 1 << 20
CLIENTS, ROUNDS = 16, 6
FIRST = 64
"""Bytes at the start of a connection that are looked at place by place."""
PLAIN = bytes(MIB) + b"the same text again and again " * 10_000


def _tail(chi: float, degrees: int) -> float:
    """The chance that chi-square with an odd number of degrees of freedom is larger than `chi`."""
    half = max(chi, 1e-9) / 2
    terms = (
        math.exp((i - 0.5) * math.log(half) - half - math.lgamma(i + 0.5))
        for i in range(1, (degrees + 1) // 2)
    )
    return math.erfc(math.sqrt(half)) + sum(terms)


def _looks_even(samples: Iterable[int], kinds: int) -> bool:
    """Could these be drawn from 0..kinds-1 with equal chances (Pearson's chi-square)?"""
    counts = Counter(samples)
    expected = counts.total() / kinds
    assert expected >= 5, "too few samples for the approximation"
    chi = sum((counts[kind] - expected) ** 2 / expected for kind in range(kinds))
    return _tail(chi, kinds - 1) >= CHANCE


def _most(samples: int, kinds: int) -> int:
    """No value comes so often: `kinds` times the binomial union bound, no approximation."""
    return next(
        times
        for times in range(2, samples + 2)
        if kinds * math.comb(samples, times) / kinds**times < CHANCE
    )


def _first_repeat(data: bytes) -> int | None:
    """Where 16 bytes come again, at any distance; one copy has to lie on a multiple of 16."""
    places = set(_cut(data, 0))
    if len(places) != len(data) // 16:
        return 0
    shifts = [shift for shift in range(1, 16) if not places.isdisjoint(_cut(data, shift))]
    return min(
        (
            16 * row + shift
            for shift in shifts
            for row, part in enumerate(_cut(data, shift))
            if part in places
        ),
        default=None,
    )


def _cut(data: bytes, start: int) -> tuple[bytes, ...]:
    """From there on, in pieces of 16 bytes."""
    count = max(0, len(data) - start) // 16
    return struct.unpack_from("16s" * count, data, start)


def test_the_statistics_tell_random_bytes_from_others():
    assert math.isclose(_tail(30.578, 15), 0.01, rel_tol=1e-3)  # tables of the distribution
    assert math.isclose(_tail(330.520, 255), 0.001, rel_tol=1e-2)
    assert _looks_even([*range(16)] * 20, 16) and not _looks_even([*range(15)] * 200, 16)
    assert not _looks_even([0x17] * 200 + [*range(256)] * 10, 256)
    assert 10 < _most(320, 256) < 20
    assert _first_repeat(bytes(range(250))) is None
    assert _first_repeat(bytes(range(16)) + b"x" + bytes(range(16))) == 17


@pytest.fixture(scope="module")
def capture():
    """Both flows of some hundred links, and of one that carries zeros and text both ways."""
    mesh = Mesh(with_cutter=True)
    more: list[NodeProcess] = []
    try:
        for number in range(11, 10 + CLIENTS):
            folder = mesh.folder / str(number)
            text = client_text(folder, free_port(), {1: mesh.cutter.port})
            more.append(NodeProcess(folder, text))
        record = mesh.cutter.record = []

        def whole() -> int:
            return sum(all(len(flow.heard) >= FIRST for flow in pair) for pair in record)

        for links in range(CLIENTS, CLIENTS * ROUNDS + 1, CLIENTS):
            mesh.cutter.cut()
            wait_until(lambda least=links: whole() >= least)
        _echo(mesh)
        for node in more:
            node.stop()
    finally:
        mesh.close()
    return [pair for pair in record if all(len(flow.heard) >= FIRST for flow in pair)]


def _echo(mesh: Mesh) -> None:
    """PLAIN to a site and back again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socks.socksocket()
        sock.set_proxy(socks.SOCKS5, "127.0.0.1", mesh.entry, rdns=True)
        sock.settimeout(30)
        sock.connect(listener.getsockname()[:2])

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                while data := peer.recv(MIB):
                    peer.sendall(data)

        threads = [
            threading.Thread(target=answer, daemon=True),
            threading.Thread(target=sock.sendall, args=(PLAIN,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        heard = 0
        while heard < len(PLAIN):
            heard += len(sock.recv(MIB))
        sock.close()
        for thread in threads:
            thread.join(20)


def _flows(capture: Sequence[tuple[Flow, Flow]], is_upstream: bool) -> list[Flow]:
    return [up if is_upstream else down for up, down in capture]


@pytest.mark.parametrize("is_upstream", [True, False])
def test_the_bytes_look_random(capture, is_upstream):
    """Single bytes, pairs at even and odd places, and bits, over the whole of one direction."""
    data = b"".join(flow.heard for flow in _flows(capture, is_upstream))
    assert len(data) > len(PLAIN)
    assert _looks_even(data, 256)
    for start in (0, 1):
        end = start + (len(data) - start) // 2 * 2
        assert _looks_even(memoryview(data[start:end]).cast("H"), 65_536)
    ones = int.from_bytes(data, "big").bit_count()
    bits = 8 * len(data)
    assert abs(ones - bits / 2) < math.sqrt(bits * math.log(2 / CHANCE) / 2)  # Hoeffding's bound


@pytest.mark.parametrize("is_upstream", [True, False])
def test_no_place_near_the_start_of_a_connection_tells_anything(capture, is_upstream):
    """Over all connections, the first bytes and each of the first 64 places look random."""
    starts = [flow.heard[:FIRST] for flow in _flows(capture, is_upstream)]
    assert len(starts) >= CLIENTS * ROUNDS
    assert _looks_even(b"".join(start[:16] for start in starts), 256)
    most = _most(len(starts), 256)
    for place in range(FIRST):
        column = bytes(start[place] for start in starts)
        assert _looks_even((value >> 4 for value in column), 16), place
        assert _looks_even((value & 15 for value in column), 16), place
        assert Counter(column).most_common(1)[0][1] < most, place


def test_nothing_comes_twice(capture):
    """No 16 bytes of one connection are seen again in it, in another or in the other direction."""
    assert _first_repeat(b"".join(flow.heard for pair in capture for flow in pair)) is None


@pytest.mark.parametrize("is_upstream", [True, False])
def test_the_first_segments_have_no_telling_length(capture, is_upstream):
    """Padding is one of 64 sizes: what comes first is never one size more often than chance has it."""
    lengths = Counter(len(flow.segments[0]) for flow in _flows(capture, is_upstream))
    assert lengths.most_common(1)[0][1] < _most(len(capture), 64), lengths
    assert len(lengths) >= 32, lengths
