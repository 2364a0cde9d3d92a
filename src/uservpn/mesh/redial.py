"""When a peer is dialled again: at once, after a back-off, or when its network is there again.

A round of dials (of which endpoints, mesh/addresses.py knows) that led nowhere is followed by another one,
after a quarter of a second at first and twice as long each time, up to two minutes; half to once of it, so
that a mesh's dials do not fall together. While a link stands, a protocol that has none is tried again too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BACKOFF_START_S: Final = 0.25
BACKOFF_MAX_S: Final = 120.0
BACKOFF_BUSY_MAX_S: Final = 2.0
"""While streams wait the next attempt is never further away than this."""
OFFLINE_S: Final = 30.0
"""Where the system says that there is no way out, the next attempt waits for `wake`, or so long."""
OTHER_START_S: Final = 5.0
OTHER_MAX_S: Final = 120.0
"""While streams run over one protocol, another one that has no link is tried again this often."""
FAILING_COUNT: Final = 2


class Redial:
    """The next round of dials to one peer, and how many came to nothing."""

    def __init__(self, jitter: Callable[[float], float]) -> None:
        self.at: float | None = None
        """When the next round starts, monotonic seconds; None: there is no reason for one."""
        self.failures = 0
        """Rounds, one after the other, that led nowhere."""
        self._other_failures = 0
        self._jitter = jitter

    # --- outside events --------------------------------------------------------------------------

    def reached(self) -> None:
        """The peer was heard on a direct link."""
        self.failures = 0

    def answered(self) -> None:
        """A link that was dialled was answered."""
        self._other_failures = 0

    def forget(self) -> None:
        """The network is another one."""
        self.failures = self._other_failures = 0

    # --- commands --------------------------------------------------------------------------------

    def again(self, now: float, is_waiting: bool) -> None:
        """A link was lost: at once, unless the last tries failed. `is_waiting`: somebody needs the peer."""
        if self.failures == 0:
            self.at = now
        else:
            self.back_off(now, is_waiting)

    def back_off(self, now: float, is_waiting: bool) -> None:
        """After a round that led nowhere."""
        most = BACKOFF_BUSY_MAX_S if is_waiting else BACKOFF_MAX_S
        delay = min(most, BACKOFF_START_S * 2.0 ** min(self.failures - 1, 16))
        self.at = now + delay * (0.5 + self._jitter(0.5))

    def offline(self, now: float) -> None:
        """The system knows no way out."""
        self.at = now + OFFLINE_S

    def other(self, now: float) -> None:
        """A link stands; another protocol is tried later."""
        wait = min(OTHER_MAX_S, OTHER_START_S * 2.0 ** min(self._other_failures, 8))
        self._other_failures += 1
        self.at = now + wait * (0.75 + self._jitter(0.5))

    def when(self, now: float, retry_at: float) -> None:
        """When there is something worth a try; never, if that is infinite."""
        self.at = max(now + BACKOFF_START_S, retry_at) if retry_at < 1e12 else None

    # --- questions -------------------------------------------------------------------------------

    @property
    def is_failing(self) -> bool:
        """Did tries fail again and again?"""
        return self.failures >= FAILING_COUNT

    @property
    def is_other_tried(self) -> bool:
        """Was another protocol tried, and has not been answered since?"""
        return self._other_failures > 0

    def is_due(self, now: float) -> bool:
        """Is it time for a round?"""
        return self.at is not None and now >= self.at
