"""Many records of one layout in a few steps: as the digits of one large number.

What differs between the datagrams of a burst are counters: a message's number, its sequence, an offset. So
their headers, nonces and frame heads are series: records of one width, each the one before plus a constant.
As one number, whose digits the records are, a series is a multiplication and an addition, however long it is;
Python's large integers do in C what a loop would do record by record. Records are big-endian, as on the wire.

The caller sees to it that no record overflows: the carry would be the neighbour's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Final

from uservpn.types import Buffer

COUNT_MAX: Final = 256
"""Records of one series."""
AT_ONCE: Final = 64
"""Records that one layout packs or unpacks: so few layouts are kept, however many counts there are."""


@lru_cache(maxsize=16)
def _longest(width: int) -> tuple[int, int]:
    """COUNT_MAX records of `width` bytes: 1 in each; 0, 1, 2 and so on."""
    bits = 8 * width
    each = ((1 << bits * COUNT_MAX) - 1) // ((1 << bits) - 1)
    return each, (each - COUNT_MAX) // ((1 << bits) - 1)


def ones(count: int, width: int) -> int:
    """1 in each of `count` records of `width` bytes: times x, that is x in each."""
    return _longest(width)[0] >> 8 * width * (COUNT_MAX - count)


def counted(count: int, width: int) -> int:
    """0, 1, 2 and so on in `count` records of `width` bytes."""
    return _longest(width)[1] >> 8 * width * (COUNT_MAX - count)


def series(first: int, count: int, width: int, shift: int = 0) -> int:
    """`count` records of `width` bytes: `first`, and 1 << `shift` more in each than in the one before."""
    each, numbers = _longest(width)
    unused = 8 * width * (COUNT_MAX - count)
    return first * (each >> unused) + (numbers >> unused << shift)


@lru_cache(maxsize=512)
def _repeated(layout: str, count: int) -> Struct:
    return Struct(layout * count)


def unpacked(layout: str, count: int, data: Buffer, at: int = 0) -> tuple[bytes, ...]:
    """What `layout` (of `struct`, strings only) finds in `count` records that lie side by side in `data`."""
    if count <= AT_ONCE:
        return _repeated(layout, count).unpack_from(data, at)
    cut = _repeated(layout, AT_ONCE)
    return cut.unpack_from(data, at) + unpacked(layout, count - AT_ONCE, data, at + cut.size)


def packed_into(layout: str, items: Sequence[bytes], into: Buffer) -> None:
    """Writes `items`, at most AT_ONCE, one into each record of `layout` (of `struct`, one string each).

    The rest of each record is zeros then.
    """
    _repeated(layout, len(items)).pack_into(into, 0, *items)


def records(first: int, count: int, width: int) -> tuple[bytes, ...]:
    """`first`, `first + 1` and so on, in `width` bytes each."""
    number = series(first, count, width)
    return unpacked(f"{width}s", count, number.to_bytes(count * width, "big"))


def alike(some: Sequence[object], wanted: Sequence[object]) -> int:
    """How many items, from the first on, are as wanted; both are of one kind and length."""
    if some == wanted:
        return len(some)
    return next(i for i, (one, other) in enumerate(zip(some, wanted, strict=True)) if one != other)
