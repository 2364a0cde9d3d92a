"""A frozen map from texts to numbers that takes 16 bytes a text, where a dict takes 100 to 150.

What is kept of a text is its 64-bit hash, Python's own: SipHash under a key that is drawn anew for
each process. So a text that was never put in is taken for one of n others with probability n / 2**64,
and nobody outside the process can look for such a text. Use it for big lists that are asked and not
listed. A look-up asks a filter of 16 bits a text first, which turns away all but 6 % of the texts that
are not there, then it is one bisection within a bucket of some 8 hashes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

NUMBER_MAX: Final = 0x7FFF_FFFF
_SEVERAL: Final = 0x8000_0000
"""This bit of a number says that the rest is a place in the table of several numbers."""
_NUMBER_MASK: Final = 0xFFFF_FFFF
_HASH_BITS: Final = 64
_BUCKET_BITS: Final = 3
"""A bucket holds about 2**3 hashes."""
_PART_SHIFT: Final = 56
_FILTER_BITS: Final = 1
"""The filter has 2**1 to 2**2 bytes for each text."""


class CompactMapBuilder:
    """Collects texts and numbers; 12 bytes for each, twice that while it builds."""

    __slots__ = ("_hashes", "_numbers")

    def __init__(self) -> None:
        self._hashes = array("q")
        self._numbers = array("I")

    def add(self, text: str, number: int) -> None:
        """`number` is 0 to NUMBER_MAX; whatever the order of the calls, the map is the same."""
        self._hashes.append(hash(text))
        self._numbers.append(number)

    def build(self) -> CompactMap:
        """The map; the builder is empty then."""
        parts: dict[int, tuple[array[int], array[int]]] = {}
        for code, number in zip(self._hashes, self._numbers, strict=True):
            key = code >> _PART_SHIFT
            part = parts.get(key)
            if part is None:
                part = parts[key] = (array("q"), array("I"))
            part[0].append(code)
            part[1].append(number)
        self._hashes, self._numbers = array("q"), array("I")
        return CompactMap(_ascending(parts))


def _ascending(parts: dict[int, tuple[array[int], array[int]]]) -> Iterator[int]:
    """Hashes in the upper bits, numbers in the lower 32; part by part, so that few are lists at once."""
    for key in sorted(parts):
        codes, numbers = parts.pop(key)
        yield from sorted(code << 32 | number for code, number in zip(codes, numbers, strict=True))


class CompactMap:
    """Texts, each with its numbers in ascending order, up to its first even one.

    An even number is final: what comes behind it is not kept. Made by a CompactMapBuilder.
    """

    __slots__ = ("_buckets", "_filter", "_hashes", "_numbers", "_several", "_shift")

    def __init__(self, packed: Iterable[int]) -> None:
        """`packed` ascends: hashes in the upper bits, numbers in the lower 32."""
        self._hashes = array("q")
        self._numbers = array("I")
        self._several: list[list[int]] = []
        last = None
        previous = 0
        for item in packed:
            code, number = item >> 32, item & _NUMBER_MASK
            if code != last:
                self._hashes.append(code)
                self._numbers.append(number)
            elif not previous & 1 or number == previous:
                continue
            else:
                self._add_to_last(number)
            last, previous = code, number
        self._filter = bytearray(1 << len(self._hashes).bit_length() + _FILTER_BITS)
        for code in self._hashes:
            self._filter[code >> 3 & len(self._filter) - 1] |= 1 << (code & 7)
        bits = max(len(self._hashes).bit_length() - _BUCKET_BITS, 0)
        self._shift = _HASH_BITS - bits
        firsts = range(-(1 << bits) // 2, (1 << bits) - (1 << bits) // 2 + 1)
        self._buckets = array("I", [self._bucket_start(first) for first in firsts])

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def size(self) -> int:
        """Bytes of memory, roughly."""
        several = sum(96 + 40 * len(numbers) for numbers in self._several)
        return len(self._hashes) * 12 + len(self._buckets) * 4 + len(self._filter) + several

    def find(self, texts: Iterable[str]) -> list[int]:
        """The numbers of all these texts, those of one text ascending."""
        bits, mask = self._filter, len(self._filter) - 1
        found: list[int] = []
        for text in texts:
            code = hash(text)
            if bits[code >> 3 & mask] >> (code & 7) & 1:
                found += self._numbers_of(code)
        return found

    def _numbers_of(self, code: int) -> Sequence[int]:
        bucket = (code >> self._shift) + len(self._buckets) // 2
        end = self._buckets[bucket + 1]
        at = bisect_left(self._hashes, code, self._buckets[bucket], end)
        if at == end or self._hashes[at] != code:
            return ()
        number = self._numbers[at]
        return self._several[number ^ _SEVERAL] if number & _SEVERAL else (number,)

    def _bucket_start(self, bucket: int) -> int:
        return bisect_left(self._hashes, bucket << self._shift)

    def _add_to_last(self, number: int) -> None:
        there = self._numbers[-1]
        if there & _SEVERAL:
            self._several[-1].append(number)
        else:
            self._numbers[-1] = _SEVERAL | len(self._several)
            self._several.append([there, number])
