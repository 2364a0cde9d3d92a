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

COUNT_MAX: Final = 256
"""Records of one series."""


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
    return first * ones(count, width) + (counted(count, width) << shift)


@lru_cache(maxsize=256)
def repeated(layout: str, count: int) -> Struct:
    """A layout of `struct`, so many times."""
    return Struct(layout * count)


def records(first: int, count: int, width: int) -> tuple[bytes, ...]:
    """`first`, `first + 1` and so on, in `width` bytes each."""
    number = series(first, count, width)
    return repeated(f"{width}s", count).unpack(number.to_bytes(count * width, "big"))


def alike(some: Sequence[object], wanted: Sequence[object]) -> int:
    """How many items, from the first on, are as wanted; both are of one kind and length."""
    if some == wanted:
        return len(some)
    return next(i for i, (one, other) in enumerate(zip(some, wanted, strict=True)) if one != other)
