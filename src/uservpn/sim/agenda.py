"""Simulated time: what happens next, and when."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Agenda:
    """A heap of actions. Those of one moment run in the order in which they were put down."""

    def __init__(self, now: float) -> None:
        self.now = now
        """Monotonic seconds of the simulated world."""
        self.step_count = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        """Runs `action(*args)` at `when`, or at once when that is past."""
        self._serial += 1
        heapq.heappush(self._heap, (max(when, self.now), self._serial, action, args))

    def after(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Runs `action(*args)` in so many seconds."""
        self.at(self.now + seconds, action, *args)

    def step(self, end: float) -> bool:
        """Runs the next action that is due by `end`; False: there is none, and it is `end` now."""
        heap = self._heap
        if not heap or heap[0][0] > end:
            self.now = end
            return False
        self.now, _, action, args = heapq.heappop(heap)
        self.step_count += 1
        action(*args)
        return True
