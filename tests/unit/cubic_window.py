"""CUBIC's window (RFC 9438), for a path whose queue somebody else keeps full.

W(t) = C (t - K)^3 + W_max from the last reduction on, at least what Reno would have; a reduction leaves 0.7,
and gives up some more where the last maximum was not reached again (fast convergence). Sizes are in bytes
outside, in messages inside, as C is.
"""

from __future__ import annotations

from typing import Final

C: Final = 0.4
"""Messages per second cubed."""
BETA: Final = 0.7
RENO: Final = 3.0 * (1.0 - BETA) / (1.0 + BETA)
"""Messages a round trip that Reno would grow by, were its reduction BETA."""
GROWTH_MAX: Final = 1.5
"""W(t) is aimed at with at most so many times the present window a round trip."""


class CubicWindow:
    """The window in bytes; until the first reduction it grows by `start_gain` of what is confirmed."""

    __slots__ = ("_began", "_message", "_peak_at", "_start_gain", "_top", "size")

    def __init__(self, size: float, message: int, start_gain: float = 1.0) -> None:
        self.size = size
        self._message = message
        self._start_gain = start_gain
        self._top = 0.0
        self._peak_at = 0.0  # RFC 9438's K
        self._began: float | None = None

    def grow(self, acked: int, rtt_s: float, now: float) -> None:
        """So many bytes came while the window was what held the source back."""
        if not self._top:
            self.size += self._start_gain * acked
            return
        if self._began is None:
            self._began = now
        here = self.size / self._message
        target = C * (now - self._began + rtt_s - self._peak_at) ** 3 + self._top / self._message
        step = min(target, GROWTH_MAX * here) - here
        self.size += max(step, RENO) / here * acked

    def reduce(self) -> None:
        """Something was lost; at most once in a round trip."""
        is_lower = self.size < self._top
        self._top = self.size * (1.0 + BETA) / 2.0 if is_lower else self.size
        self.size = max(2.0 * self._message, self.size * BETA)
        self._peak_at = max(0.0, (self._top - self.size) / self._message / C) ** (1 / 3)
        self._began = None
