"""When a peer is dialled again: at once, after a back-off, or when its network is there again.

A round of dials (of which endpoints, mesh/addresses.py knows) that led nowhere is followed by another one,
after a quarter of a second at first and twice as long each time, up to two minutes; half to once of it, so
that a mesh's dials do not fall together. While a link stands, a protocol that has none is tried again too.

A cut network mostly comes back soon, and nobody tells: for two minutes after a link was lost, or while this
node has no link at all, rounds are at most two seconds apart, and so are fresh dials beside one that hangs,
since the system repeats what it sent of that ever more seldom. A node that is gone for good costs each
neighbour sixty dials, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BACKOFF_START_S: Final = 0.25
BACKOFF_MAX_S: Final = 120.0
BACKOFF_BUSY_MAX_S: Final = 2.0
"""While streams wait, or the peer was lost of late, the next attempt is never further away than this."""
LATELY_S: Final = 120.0
"""So long a peer counts as lost of late, and a node without any link as new to that."""
BACKOFF_ALONE_MAX_S: Final = 20.0
"""A node that has no link tries at least so often."""
PROMPT_S: Final = 0.3
PROMPT_EVERY_S: Final = 5.0
"""News of a peer let the next round start within PROMPT_S; at most once so often."""
OFFLINE_S: Final = 30.0
"""Where the system says that there is no way out, the next attempt waits for `wake`, or so long."""
OTHER_START_S: Final = 5.0
OTHER_MAX_S: Final = 120.0
"""While streams run over one protocol, another one that has no link is tried again this often."""
HURRY_FIRST_S: Final = 1.0
HURRY_S: Final = 0.3
HURRY_COUNT: Final = 200
"""While streams wait and nothing is heard, a fresh dial starts beside one that is under way for a second, and
then this often, for a minute: the system repeats what it sent of a dial after 1, 3 and 7 s only."""
PACE_S: Final = 2.0
"""As HURRY_S, where nobody waits, or for longer, but the peer was lost of late."""
FAILING_COUNT: Final = 2


class Redial:
    """The next round of dials to one peer, and how many came to nothing."""

    def __init__(self, jitter: Callable[[float], float]) -> None:
        self.at: float | None = None
        """When the next round starts, monotonic seconds; None: there is no reason for one."""
        self.failures = 0
        """Rounds, one after the other, that led nowhere."""
        self.alone_since: float | None = None
        """Since when the node has no link to anybody."""
        self._step = 0
        """How often the back-off has doubled."""
        self._lately_until = 0.0
        """Until when the peer counts as lost of late."""
        self._prompted_at = -PROMPT_EVERY_S
        self._other_failures = 0
        self._jitter = jitter
        self._hurried = 0
        self._hurry_at = 0.0
        self._pace_at = 0.0

    # --- outside events --------------------------------------------------------------------------

    def reached(self) -> None:
        """The peer was heard on a direct link."""
        self.failures = self._step = self._hurried = 0

    def answered(self) -> None:
        """A link that was dialled was answered."""
        self._other_failures = 0

    def missed(self, now: float) -> None:
        """The peer was there, and is not heard any more."""
        if self.failures == 0:
            self._lately_until = now + LATELY_S

    def forget(self) -> None:
        """The network is another one."""
        self.failures = self._step = self._other_failures = 0

    # --- commands --------------------------------------------------------------------------------

    def began(self, now: float) -> None:
        """A round of dials starts."""
        self.at = None
        self._hurry_at = now + HURRY_FIRST_S
        self._pace_at = now + PACE_S

    def hurry(self, now: float, is_waiting: bool) -> bool:
        """Nobody is heard: is it time for a fresh dial beside those that are under way?

        `is_waiting`: streams wait for it.
        """
        if now < self.hurries_at(is_waiting):
            return False
        self._hurried += is_waiting
        self._hurry_at = now + HURRY_S
        self._pace_at = now + PACE_S
        return True

    def calm(self, now: float) -> None:
        """A dial failed at once, for want of a way out: further ones beside it would, too."""
        self._hurry_at = self._pace_at = now + OFFLINE_S

    def hurries_at(self, is_waiting: bool) -> float:
        """When `hurry` may say yes; infinite: it was tried often enough."""
        if is_waiting and self._hurried < HURRY_COUNT:
            return self._hurry_at
        return self._pace_at if self._is_lately(self._pace_at) else float("inf")

    def again(self, now: float, is_waiting: bool) -> None:
        """A link was lost: at once, unless the last tries failed. `is_waiting`: somebody needs the peer."""
        self.missed(now)
        if self.failures == 0:
            self.at = now
        else:
            self.back_off(now, is_waiting, was_linked=True)

    def back_off(self, now: float, is_waiting: bool, was_linked: bool = False) -> None:
        """After a round that led nowhere; `was_linked`: to a link, which ended at once."""
        most = BACKOFF_MAX_S if self.alone_since is None else BACKOFF_ALONE_MAX_S
        if is_waiting or (self._is_lately(now) and not was_linked):
            most = BACKOFF_BUSY_MAX_S
        delay = min(most, BACKOFF_START_S * 2.0**self._step)
        self._step = min(self._step + 1, 16)
        self.at = now + delay * (0.5 + self._jitter(0.5))

    def prompt(self, now: float) -> None:
        """There are news of the peer: the next round starts soon, and the back-off anew."""
        if now < self._prompted_at + PROMPT_EVERY_S:
            return
        self._prompted_at = now
        self._step = 0
        soon = now + self._jitter(PROMPT_S)
        self.at = soon if self.at is None else min(self.at, soon)

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

    # --- inside ----------------------------------------------------------------------------------

    def _is_lately(self, at: float) -> bool:
        """Will the peer, or every link, still be one that was lost of late then?"""
        is_alone = self.alone_since is not None and at < self.alone_since + LATELY_S
        return is_alone or at < self._lately_until
