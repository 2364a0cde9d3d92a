"""The highest and the lowest of late: what congestion controllers remember."""

from __future__ import annotations

from collections import deque


class RateFilter:
    """The highest of the values that were added in the rounds not yet forgotten."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: deque[tuple[int, float]] = (
            deque()
        )  # falling: what is lower and older never counts

    @property
    def highest(self) -> float:
        """0.0 when there is none."""
        return self._values[0][1] if self._values else 0.0

    def add(self, round_: int, value: float) -> None:
        """A value of this round, which is not lower than any before."""
        values = self._values
        while values and values[-1][1] <= value:
            values.pop()
        values.append((round_, value))

    def forget(self, round_: int) -> None:
        """Drops what is older than this round; the newest value stays."""
        values = self._values
        while len(values) > 1 and values[0][0] < round_:
            values.popleft()


class Lowest:
    """The lowest of the last `count` values; 0.0 when there is none."""

    __slots__ = ("_values", "value")

    def __init__(self, count: int) -> None:
        self._values: deque[float] = deque(maxlen=count)
        self.value = 0.0

    @property
    def count(self) -> int:
        """How many values are known."""
        return len(self._values)

    def add(self, value: float) -> None:
        """The newest value."""
        self._values.append(value)
        self.value = min(self._values)
