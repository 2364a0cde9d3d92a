"""A frozen map from texts to numbers that takes 12 bytes a text, where a dict takes 100 to 150.

What is kept of a text is its 64-bit hash, Python's own: SipHash under a key that is drawn anew for
each process. So a text that was never put in is taken for one of n others with probability n / 2**64,
and nobody outside the process can look for such a text. Use it for big lists that are asked and not
listed. A look-up is one bisection within a bucket of some 16 hashes, 0.3 us.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

NUMBER_MAX: Final = 0x7FFF_FFFF
_SEVERAL: Final = 0x8000_0000
"""This bit of a number says that the rest is a place in the table of several numbers."""
_NUMBER_MASK: Final = 0xFFFF_FFFF
_HASH_BITS: Final = 64
_BUCKET_BITS: Final = 4
"""A bucket holds about 2**4 hashes."""


class CompactMapBuilder:
    """Collects texts and numbers; 36 bytes for each until `build`."""

    __slots__ = ("_first_only", "_packed")

    def __init__(self, *, first_only: bool) -> None:
        """`first_only`: of a text given several times only the lowest number counts."""
        self._first_only = first_only
        self._packed: list[int] = []

    def add(self, text: str, number: int) -> None:
        """`number` is 0 to NUMBER_MAX; whatever the order of the calls, the map is the same."""
        self._packed.append(hash(text) << 32 | number)

    def build(self) -> CompactMap:
        """The map; the builder is empty then."""
        packed, self._packed = self._packed, []
        packed.sort()
        return CompactMap(packed, self._first_only)


class CompactMap:
    """Texts, each with its numbers in ascending order; made by a CompactMapBuilder."""

    __slots__ = ("_buckets", "_hashes", "_numbers", "_several", "_shift")

    def __init__(self, packed: Iterable[int], first_only: bool) -> None:
        """`packed` ascends: hashes in the upper bits, numbers in the lower 32."""
        self._hashes = array("q")
        self._numbers = array("I")
        self._several: list[list[int]] = []
        last = None
        for item in packed:
            code, number = item >> 32, item & _NUMBER_MASK
            if code != last:
                self._hashes.append(code)
                self._numbers.append(number)
                last = code
            elif not first_only:
                self._add_to_last(number)
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
        return len(self._hashes) * 12 + len(self._buckets) * 4 + several

    def find(self, texts: Iterable[str]) -> list[int]:
        """The numbers of all these texts, those of one text ascending."""
        hashes, buckets, shift = self._hashes, self._buckets, self._shift
        middle = len(buckets) // 2
        found: list[int] = []
        for text in texts:
            code = hash(text)
            bucket = (code >> shift) + middle
            end = buckets[bucket + 1]
            at = bisect_left(hashes, code, buckets[bucket], end)
            if at < end and hashes[at] == code:
                number = self._numbers[at]
                if number & _SEVERAL:
                    found += self._several[number ^ _SEVERAL]
                else:
                    found.append(number)
        return found

    def _bucket_start(self, bucket: int) -> int:
        return bisect_left(self._hashes, bucket << self._shift)

    def _add_to_last(self, number: int) -> None:
        there = self._numbers[-1]
        if not there & _SEVERAL:
            if there != number:
                self._numbers[-1] = _SEVERAL | len(self._several)
                self._several.append([there, number])
        elif self._several[-1][-1] != number:
            self._several[-1].append(number)
