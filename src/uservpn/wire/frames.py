"""The frames inside a tunnel's messages: layouts and encoders (docs/wire.md, section Frames).

A DATA message is an 8-byte sequence followed by frames; a SINK message is frames only. Decoding is
one loop in `tunnel/reader.py`, because it is on the bulk path.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from uservpn.errors import Fault, PeerFault
from uservpn.kit.series import counted, series, unpacked
from uservpn.types import Buffer

PAD: Final = 0
DATA: Final = 1
OPEN: Final = 2
OPENED: Final = 3
FIN: Final = 4
RESET: Final = 5
CREDIT: Final = 6
HAVE: Final = 7
WANT: Final = 8

SEQ: Final = struct.Struct(">Q")
STREAM: Final = struct.Struct(">I")
"""Behind the type of every frame that stands in DATA messages."""
DATA_HEAD: Final = struct.Struct(">BIQI")  # type, stream, offset, length | bytes
SEQ_DATA_HEAD: Final = struct.Struct(">QBIQI")
_LENGTH_SIZE: Final = 4
OPEN_HEAD: Final = struct.Struct(">BIIHB")  # type, stream, window, port, host length | host
OPENED_HEAD: Final = struct.Struct(">BIBIB")  # type, stream, fault, window, detail length | detail
FIN_FRAME: Final = struct.Struct(">BIQ")  # type, stream, final offset
RESET_FRAME: Final = struct.Struct(">BIB")  # type, stream, fault
CREDIT_FRAME: Final = struct.Struct(">BIQ")  # type, stream, limit
HAVE_HEAD: Final = struct.Struct(">BQQHIH")
# type, all below this, where the runs start, held, duplicates, run count | runs
RUN: Final = struct.Struct(">HH")  # so many missing, then so many that came
WANT_FRAME: Final = struct.Struct(">BQ")  # type, what HAVE shows missing below this is wanted

_SIZES: Final = {
    FIN: FIN_FRAME.size,
    RESET: RESET_FRAME.size,
    CREDIT: CREDIT_FRAME.size,
    WANT: WANT_FRAME.size,
}

OPEN_ENDED: Final = (1 << 64) - 1
"""As WANT's bound: everything sent over links that are gone, too."""
RUNS_MAX: Final = 512
HELD_UNIT_S: Final = 0.0001
"""HAVE tells, in this unit, how long the newest message it covers had come when the report left."""
SPAN_MAX: Final = 1 << 22
"""Sequences between the lowest missing one and the highest that came: what lies higher is dropped."""
_RUN_MAX: Final = 0xFFFF


def open_frame(stream: int, window: int, host: bytes, port: int) -> bytes:
    """OPEN: `host` is at most 255 bytes, an address or a name that the exit resolves."""
    return OPEN_HEAD.pack(OPEN, stream, window, port, len(host)) + host


def opened_frame(stream: int, fault: Fault, window: int, detail: bytes) -> bytes:
    """OPENED: how the exit's dial ended."""
    return OPENED_HEAD.pack(OPENED, stream, fault, window, len(detail)) + detail


def data_heads(seq: int, stream: int, offset: int, size: int, count: int) -> tuple[bytes, ...]:
    """What is in front of the bytes in `count` messages (at most COUNT_MAX): neighbouring pieces of `size`.

    Sequences stay below 2**63, offsets too.
    """
    first = int.from_bytes(SEQ_DATA_HEAD.pack(seq, DATA, stream, offset, size), "big")
    width = SEQ_DATA_HEAD.size
    heads = series(first, count, width, 8 * (width - SEQ.size))  # the sequence counts up
    heads += counted(count, width) * size << 8 * _LENGTH_SIZE  # and so does the offset, by `size`
    return unpacked(f"{width}s", count, heads.to_bytes(count * width, "big"))


def runs_of(start: int, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending, disjoint ranges above `start` as runs: (so many missing, so many that came)."""
    runs: list[tuple[int, int]] = []
    at = start
    for low, high in ranges:
        missing, came = low - at, high - low
        while missing > _RUN_MAX:  # (SPAN_MAX bounds how often)
            runs.append((_RUN_MAX, 0))
            missing -= _RUN_MAX
        while came > _RUN_MAX:
            runs.append((missing, _RUN_MAX))
            missing = 0
            came -= _RUN_MAX
        runs.append((missing, came))
        at = high
    return runs


def have_frame(
    below: int,
    start: int = 0,
    runs: Sequence[tuple[int, int]] = (),
    held_s: float = 0.0,
    duplicates: int = 0,
) -> bytes:
    """HAVE: everything below `below`, and the runs from `start` on (at most RUNS_MAX)."""
    assert len(runs) <= RUNS_MAX
    held = min(int(held_s / HELD_UNIT_S), 0xFFFF)
    flat = chain.from_iterable(runs)
    count = len(runs)
    head = HAVE_HEAD.pack(HAVE, below, start, held, duplicates & 0xFFFFFFFF, count)
    return head + struct.pack(f">{2 * count}H", *flat)


def ranges_of(payload: bytes, position: int, start: int, count: int) -> list[tuple[int, int]]:
    """The ranges that `count` runs from `start` on say have come; ascending, disjoint.

    Raises:
        PeerFault: there are too many.
        struct.error: the payload ends before they do.
    """
    if count > RUNS_MAX:
        raise PeerFault("too many runs")
    if not count:
        return []
    flat = struct.unpack_from(f">{2 * count}H", payload, position)
    ranges: list[tuple[int, int]] = []
    at = start
    for missing, came in zip(flat[::2], flat[1::2], strict=True):
        low = at + missing
        at = low + came
        if came:
            if missing == 0 and ranges:
                ranges[-1] = ranges[-1][0], at
            else:
                ranges.append((low, at))
    return ranges


def split(payload: bytes, position: int, size_max: int) -> Iterator[Buffer]:
    """The frames of a message of our own, none longer than `size_max`: DATA is cut, PAD left out."""
    view = memoryview(payload)
    while position < len(payload):
        kind = payload[position]
        if kind == PAD:
            return
        if kind != DATA:
            end = position + _size_of(payload, position, kind)
            yield view[position:end]
            position = end
            continue
        _, stream, offset, size = DATA_HEAD.unpack_from(payload, position)
        position += DATA_HEAD.size
        end = position + size
        while position < end:
            piece = view[position : min(end, position + size_max - DATA_HEAD.size)]
            yield DATA_HEAD.pack(DATA, stream, offset, len(piece)) + piece
            position += len(piece)
            offset += len(piece)


def heads(payload: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """(type, stream, bytes) of the frames OPEN, DATA and FIN in a peer's message.

    Raises:
        PeerFault, struct.error, IndexError: there are others that do not exist, or it ends within one.
    """
    while position < len(payload) and (kind := payload[position]) != PAD:
        size = 0
        if kind == DATA:
            size = DATA_HEAD.unpack_from(payload, position)[3]
            length = DATA_HEAD.size + size
        else:
            length = _size_of(payload, position, kind)
        if kind in (OPEN, DATA, FIN):
            yield kind, STREAM.unpack_from(payload, position + 1)[0], size
        position += length


def stream_of(frame: Buffer) -> int:
    """The number of the stream that a frame of a DATA message is about."""
    stream: int = STREAM.unpack_from(frame, 1)[0]
    return stream


def _size_of(payload: bytes, position: int, kind: int) -> int:
    """Bytes of a frame that is not DATA itself. Raises PeerFault, struct.error, IndexError."""
    if kind == OPEN:
        return OPEN_HEAD.size + payload[position + OPEN_HEAD.size - 1]
    if kind == OPENED:
        return OPENED_HEAD.size + payload[position + OPENED_HEAD.size - 1]
    if kind == HAVE:
        return HAVE_HEAD.size + RUN.size * int(HAVE_HEAD.unpack_from(payload, position)[-1])
    size = _SIZES.get(kind)
    if size is None:
        raise PeerFault(f"unknown frame type {kind}")
    return size
