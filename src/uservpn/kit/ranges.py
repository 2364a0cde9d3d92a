"""A set of integers kept as sorted half-open ranges: small when the numbers are nearly in order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from heapq import merge


class RangeSet:
    """Sorted, disjoint, non-touching ranges `[start, end)`. Add is O(ranges)."""

    __slots__ = ("ranges",)

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def __bool__(self) -> bool:
        """Is anything in it?"""
        return bool(self.ranges)

    def __contains__(self, value: int) -> bool:
        """Is `value` in one of the ranges?"""
        index = bisect_right(self.ranges, (value, 1 << 65)) - 1
        return index >= 0 and value < self.ranges[index][1]

    def add(self, start: int, end: int) -> None:
        """Adds `[start, end)`, merging what it touches."""
        ranges = self.ranges
        if ranges and start >= ranges[-1][0]:  # the usual case: at the end, or behind it
            first, last = ranges[-1]
            if start > last:
                ranges.append((start, end))
            elif end > last:
                ranges[-1] = first, end
            return
        low = bisect_right(ranges, (start, 0))
        if low and ranges[low - 1][1] >= start:
            low -= 1
        high = low
        while high < len(ranges) and ranges[high][0] <= end:
            start = min(start, ranges[high][0])
            end = max(end, ranges[high][1])
            high += 1
        ranges[low:high] = [(start, end)]

    def pop_prefix(self, value: int) -> int:
        """The end of the run that covers `value`, dropping every range up to it; else `value`."""
        while self.ranges and self.ranges[0][0] <= value:
            value = max(value, self.ranges.pop(0)[1])
        return value

    def merge(self, others: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Adds ascending, disjoint ranges; returns what of them is new. O(both), however many there are."""
        known = self.ranges
        if others == known:
            return []
        fresh: list[tuple[int, int]] = []
        index, count = 0, len(known)
        for low, high in others:
            while index < count and known[index][1] <= low:
                index += 1
            at = index
            while low < high:
                if at >= count or known[at][0] >= high:
                    fresh.append((low, high))
                    break
                start, end = known[at]
                if start > low:
                    fresh.append((low, start))
                low = max(low, end)
                at += 1
        if fresh:
            self.ranges = _union(known, fresh)
        return fresh

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of `[start, end)` is not in the set."""
        missing = []
        for low, high in self.ranges:
            if low >= end:
                break
            if low > start:
                missing.append((start, low))
            start = max(start, high)
        if start < end:
            missing.append((start, end))
        return missing


def _union(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Both, sorted; ranges that touch become one."""
    out: list[tuple[int, int]] = []
    last = -1
    for start, end in merge(some, others):
        if start <= last:
            if end > last:
                out[-1] = out[-1][0], end
                last = end
        else:
            out.append((start, end))
            last = end
    return out
