"""The replay window: no message number has an effect twice.

Each slot of a ring holds the newest "generation" (number // size, plus one) admitted there, and a number is
admitted only if its generation is greater. Slots only grow, so no number can pass twice; what is more
than a window behind the newest in its slot counts as seen. No bit is ever cleared (RFC 6479 has to),
and messages of several paths may arrive in any order within the window.
"""

from __future__ import annotations

from array import array

from uservpn.wire.constants import WINDOW_MAX, WINDOW_START


class ReplayWindow:
    """Exact duplicate detection for one (origin, boot, destination).

    Memory: 8 bytes a slot, 64 slots at first, doubled as numbers grow, at most `size_max`.
    """

    __slots__ = ("_mask", "_ring", "_shift", "_size_max", "top")

    def __init__(self, size_max: int = WINDOW_MAX) -> None:
        self._size_max = size_max
        self._ring = array("Q", bytes(8 * WINDOW_START))
        self._mask = WINDOW_START - 1
        self._shift = WINDOW_START.bit_length() - 1
        self.top = 0
        """Behind the highest number that was admitted: whatever is not below it is new."""

    def is_new(self, number: int) -> bool:
        """Would `number` be admitted? Changes nothing: ask before the payload is proved genuine."""
        return self._ring[number & self._mask] <= number >> self._shift

    def admit(self, number: int) -> bool:
        """Marks `number` as seen; False if it was (or may have been)."""
        generation = number >> self._shift
        slot = number & self._mask
        if self._ring[slot] > generation:
            return False
        self._ring[slot] = generation + 1
        if number >= self.top:
            self.top = number + 1
        if generation >= 4 and self._mask + 1 < self._size_max:
            self._double()
        return True

    def admit_run(self, number: int, count: int) -> None:
        """As `admit` for so many from `number` on, which is not below `top`."""
        end = number + count
        while number < end:
            generation = number >> self._shift
            if generation >= 4 and self._mask + 1 < self._size_max:
                self.admit(number)  # doubles
                number += 1
                continue
            slot = number & self._mask
            size = min(end - number, self._mask + 1 - slot)
            self._ring[slot : slot + size] = array("Q", (generation + 1,)) * size
            number += size
        self.top = end

    def _double(self) -> None:
        """Twice the slots; what the old ring called seen stays seen."""
        # a slot has seen its newest generation and the one before: the even one of the two stays where it is,
        # the odd one's place is in the new half
        ring = array("Q", [(seen + 1) >> 1 for seen in self._ring])
        ring.extend([seen >> 1 for seen in self._ring])
        self._ring = ring
        self._mask = len(ring) - 1
        self._shift += 1
