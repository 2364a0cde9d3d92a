"""A peer with the right key that hoards: whatever it sends, what the tunnel keeps of it is bounded.

Each attack is a series of genuine messages; the tunnel raises PeerFault, or keeps no more than the bound
however long it goes on.
"""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable

import pytest

from uservpn.errors import PeerFault
from uservpn.tunnel import limits
from uservpn.tunnel.events import Offered
from uservpn.tunnel.tunnel import Tunnel
from uservpn.wire import frames
from uservpn.wire.constants import KIB, MIB, Kind
from world import take

BLOCK = bytes(256 * KIB)
Message = tuple[Kind, bytes]


def _data(seq: int, *parts: bytes) -> Message:
    return Kind.DATA, frames.SEQ.pack(seq) + b"".join(parts)


def _open(stream: int) -> bytes:
    return frames.open_frame(stream, 1 << 18, b"site.test", 80)


def _reset(stream: int) -> bytes:
    return frames.RESET_FRAME.pack(frames.RESET, stream, 1)


def _chunk(stream: int, offset: int, size: int) -> bytes:
    return frames.DATA_HEAD.pack(frames.DATA, stream, offset, size) + BLOCK[:size]


def _same_bytes_again(number: int) -> Message:
    """Ahead of a gap, the same window over and over, from one byte further on each time."""
    return _data(number, _chunk(1, 1 + number, 200 * KIB) if number else _open(1))


def _same_bytes_before_the_open(number: int) -> Message:
    return _data(number, _chunk(1, 1 + number, 60 * KIB))


def _single_bytes(number: int) -> Message:
    """Every second byte of the window, each a piece of its own."""
    pieces = range(1000 * number + 1, 1000 * number + 1001, 2)
    return _data(number, *(_chunk(1, at, 1) for at in pieces)) if number else _data(0, _open(1))


def _every_second_stream(number: int) -> Message:
    """Stream numbers with gaps between them, opened and given up at once."""
    streams = range(400 * number + 1, 400 * number + 401, 4)
    return _data(number, *(_open(stream) + _reset(stream) for stream in streams))


def _resets_of_unknown_streams(number: int) -> Message:
    return _data(number, *(_reset(400 * number + at) for at in range(1, 401, 4)))


def _data_of_unknown_streams(number: int) -> Message:
    return _data(number, _chunk(2 * number + 1, 1, 60 * KIB))


def _one_byte_of_unknown_streams(number: int) -> Message:
    streams = range(2000 * number + 1, 2000 * number + 2001, 2)
    return _data(number, *(_chunk(stream, 1, 1) for stream in streams))


def _ends_of_unknown_streams(number: int) -> Message:
    streams = range(2000 * number + 1, 2000 * number + 2001, 2)
    return _data(number, *(frames.FIN_FRAME.pack(frames.FIN, stream, 1) for stream in streams))


def _parts_of_large_messages_before_the_open(number: int) -> Message:
    """Of each message a little more than is copied in any case."""
    return _data(number, _chunk(2 * number + 1, 1, limits.SMALL_CHUNK + 1), bytes(250 * KIB))


def _same_bytes_of_unknown_streams(number: int) -> Message:
    """As many bytes of each as if it held a window of its own."""
    return _data(number, _chunk(2 * (number // 15) + 1, 1 + number % 15, 60 * KIB))


def _every_second_sequence(number: int) -> Message:
    return _data(2 * number + 1)


def _wants_everything(number: int) -> Message:
    return Kind.SINK, frames.WANT_FRAME.pack(frames.WANT, frames.OPEN_ENDED) * 64


def _has_every_second(number: int) -> Message:
    return Kind.SINK, frames.have_frame(0, 0, [(1, 1)] * frames.RUNS_MAX)


ATTACKS: list[tuple[Callable[[int], Message], int, int]] = [
    (_same_bytes_again, 100, 2 * MIB),
    (_same_bytes_before_the_open, 100, 2 * MIB),
    (_single_bytes, 100, 4 * MIB),
    (_every_second_stream, 200, 2 * MIB),
    (_resets_of_unknown_streams, 200, 2 * MIB),
    (_data_of_unknown_streams, 1000, 20 * MIB),
    (_one_byte_of_unknown_streams, 40, 24 * MIB),
    (_ends_of_unknown_streams, 40, 16 * MIB),
    (_parts_of_large_messages_before_the_open, 2500, 20 * MIB),
    (_same_bytes_of_unknown_streams, 1000, 20 * MIB),
    (_every_second_sequence, 2 * limits.GAPS_MAX, 2 * MIB),
    (_wants_everything, 500, MIB),
    (_has_every_second, 500, MIB),
]


@pytest.mark.parametrize(("attack", "rounds", "size_max"), ATTACKS)
def test_what_is_kept_of_a_hostile_peer_is_bounded(attack, rounds, size_max):
    tunnel = Tunnel(1, 7, lambda limit: 0)
    mine = tunnel.open("site.test", 80, None)
    tunnel.write(mine, BLOCK[:1000])
    tracemalloc.start()
    try:
        for number in range(rounds):
            now = number * 0.001
            try:
                tunnel.receive(*attack(number), now)
            except PeerFault:
                break
            for event in tunnel.take_events():
                if type(event) is Offered:
                    tunnel.accept(event.stream)
            take(tunnel, 1 << 20, 60_000, now)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < size_max, f"{kept / MIB:.1f} MiB after {number + 1} messages"


def test_pieces_of_a_honest_peer_fit():
    """A whole window ahead of a gap, cut into datagrams, then cut anew and sent again: no fault."""
    sink = Tunnel(1, 7, lambda limit: 0)
    sink.receive(*_data(0, _open(1)), 0.0)
    (offered,) = sink.take_events()
    sink.accept(offered.stream)
    numbers = itertools.count(1)
    for size in (1200, 900):
        for offset in range(size, limits.WINDOW_START - size, size):
            sink.receive(*_data(next(numbers), _chunk(1, offset, size)), 0.0)
    sink.receive(*_data(next(numbers), _chunk(1, 0, 1200)), 0.0)
    delivered = sum(len(event.chunk) for event in sink.take_events())
    assert delivered > limits.WINDOW_START - 1500
    assert offered.stream.held is None


def test_a_stream_whose_number_lies_in_a_forgotten_gap_opens_nothing():
    """Beyond GAPS_MAX gaps the lowest counts as over; the numbers above still work."""
    sink = Tunnel(1, 7, lambda limit: 0)
    for number in range(limits.GAPS_MAX + 2):
        sink.receive(*_data(number, _reset(4 * number + 5)), 0.0)
    sink.take_events()
    sink.receive(*_data(limits.GAPS_MAX + 2, _open(3), _open(4 * limits.GAPS_MAX + 3)), 0.0)
    (offered,) = sink.take_events()
    assert offered.stream.id == 4 * limits.GAPS_MAX + 3
