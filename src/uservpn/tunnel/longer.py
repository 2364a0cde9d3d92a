"""Has the path become longer, or does a queue stand in it?

Both look alike at first: round trips are far above the shortest one. But a queue gets shorter when less is
put into it. So a path is longer when its round trip stays the same, round after round, although much
less, or more, is on it. A rival that takes at once whatever we leave may look the same; then the belief is
wrong and harmless, since the first shorter round trip ends it.
"""

from __future__ import annotations

from typing import Final

SAME_GAIN: Final = 1.02
SAME_S: Final = 0.001
"""The shortest round trips of rounds are the same within so much."""
LESS: Final = 0.75
"""So much of the most that was on the path is clearly less: of a queue that is ours a quarter is more than
what counts as the same, also where a rival has two thirds of it."""
LESS_MIN: Final = 8 << 10
"""But never fewer bytes than this: a few messages more or less at the end of a round are chance."""
OTHER_ROUNDS: Final = 2
"""Rounds with less, or more, until its effect is seen for sure: what one confirms left in the one before."""


class LongerPath:
    """Rounds in which the round trip is far above the shortest one."""

    __slots__ = ("_high_s", "_least", "_low_s", "_most", "_other_rounds")

    def __init__(self) -> None:
        self._low_s = 0.0
        self.forget()

    def forget(self) -> None:
        """The round trip is short again, or there is none."""
        self._low_s = self._high_s = 0.0
        self._most = self._least = 0
        self._other_rounds = 0

    def note(self, rtt_s: float, inflight: int) -> float | None:
        """A round's shortest round trip, and the bytes on the path at its end; returns a longer path's."""
        low_s, high_s = min(self._low_s, rtt_s), max(self._high_s, rtt_s)
        if not self._low_s or high_s > SAME_GAIN * low_s + SAME_S:
            self._low_s = self._high_s = rtt_s
            self._most = self._least = inflight
            self._other_rounds = 0
            return None
        self._low_s, self._high_s = low_s, high_s
        self._most = max(self._most, inflight)
        self._least = min(self._least, inflight)
        is_less = inflight <= min(LESS * self._most, self._most - LESS_MIN)
        is_more = self._least <= min(LESS * inflight, inflight - LESS_MIN)
        if not is_less and not is_more:
            self._other_rounds = 0
            return None
        self._other_rounds += 1
        return low_s if self._other_rounds > OTHER_ROUNDS else None
