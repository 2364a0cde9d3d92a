"""One buffer that is cut into records of one size, again and again: the views of each cut are made once."""

from __future__ import annotations

from typing import Final

CUTS_MAX: Final = 8
"""Cuts that are kept; one more, and all are made anew."""


class Slots:
    """A buffer of `size` bytes, which is there from its first use on. Its owner says what lasts how long."""

    __slots__ = ("_cuts", "_view", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._view: memoryview | None = None
        self._cuts: dict[tuple[int, int], list[memoryview]] = {}

    @property
    def view(self) -> memoryview:
        """All of it."""
        if self._view is None:
            self._view = memoryview(bytearray(self.size))
        return self._view

    def cut(self, size: int, start: int, end: int, skip: int = 0) -> list[memoryview]:
        """Records `start` to `end` of `size` bytes each, without their first `skip` bytes."""
        known = self._cuts.get((size, skip))
        if known is None:
            if len(self._cuts) >= CUTS_MAX:
                self._cuts.clear()
            known = self._cuts[size, skip] = []
        if len(known) < end:
            view = self.view
            ends = range((len(known) + 1) * size, end * size + 1, size)
            known += [view[at - size + skip : at] for at in ends]
        return known[start:end]
