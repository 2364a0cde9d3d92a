"""What bounds resends on one path: a budget, and how long an overtaken message may still come."""

from __future__ import annotations

from typing import Final

from uservpn.tunnel.limits import RESEND_BURST, RESEND_SHARE, RESEND_TRICKLE

SIXTEENTHS_MAX: Final = 32
WIDEN: Final = 2
"""The reordering window is at most so many sixteenths of the shortest round trip, and widens by so many."""
ROUNDS: Final = 16
"""It narrows by one after so many rounds without a resend for nothing."""


class ResendBudget:
    """A token bucket: as many bytes as were confirmed may leave again, and RESEND_BURST ahead."""

    __slots__ = ("_may_trickle", "at", "left", "waits")

    def __init__(self) -> None:
        self.left: float = RESEND_BURST
        """Bytes that may be sent again now."""
        self.at: float | None = None
        """When resends that wait for their budget go on."""
        self.waits = 0
        """Round trips in which resends had to wait for it."""
        self._may_trickle = False

    def room(self, rtt_s: float, now: float) -> int:
        """Bytes that may be sent again now; when it is used up, a trickle each round trip."""
        if self.left > 0:
            return int(self.left)
        if self._may_trickle:
            self._may_trickle = False
            return RESEND_TRICKLE
        if self.at is None:
            self.at = now + rtt_s
            self.waits += 1
        return 0

    def earn(self, acked: int) -> None:
        """So many bytes were confirmed."""
        self.left = min(self.left + RESEND_SHARE * acked, RESEND_BURST)

    def spend(self, size: int) -> None:
        """So many bytes leave again."""
        self.left = max(0.0, self.left - size)

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self.at is not None and now >= self.at:
            self._may_trickle = True
            self.at = None


class ReorderWindow:
    """RACK's reordering window (RFC 8985): wider while the sink reports what was resent for nothing."""

    __slots__ = ("_rounds", "_sixteenths")

    def __init__(self) -> None:
        self._sixteenths = 1
        self._rounds = 0

    def seconds(self, rtt_min_s: float, rtt_s: float) -> float:
        """How long a message that was overtaken may still come: a round trip at most."""
        return min(self._sixteenths * rtt_min_s / 16, rtt_s)

    def widen(self) -> None:
        """Something was resent for nothing."""
        self._sixteenths = min(self._sixteenths + WIDEN, SIXTEENTHS_MAX)
        self._rounds = ROUNDS

    def end_round(self) -> None:
        """A round trip is over."""
        if self._rounds:
            self._rounds -= 1
            if self._rounds == 0 and self._sixteenths > 1:
                self._sixteenths -= 1
                self._rounds = ROUNDS
