"""Two links side by side: what one delivers beside the other while bulk flows, and which one shall carry.

Some networks throttle UDP, and say so to nobody. While bulk flows the link in use and one of the other kind
are compared now and then, ever more rarely while nothing changes:

- *Beside*: for a while the other link may carry what the one in use has no room for. It is first given time
  to find its rate, which may be another one than long ago; then the bytes of both count. If it delivers far
  more, it takes over.
- A link that took over is to give way again when the other one is nearly as good. Beside it the other goes
  first; yet on the same bottleneck its start ends at the queue of the one in use. So one that is no longer
  throttled to next to nothing then gets it all for a while, *alone*: once the queue has run off it looks for
  its rate, and is judged by what both delivered together. If it is still throttled, that costs a second's
  throughput: hence the two steps.

Another link of the kind that took over carries in the place of one that ended, or is silent.

A link that loses most of what is sent, round after round, is compared at once, and one that delivers far
less than when it was last compared soon: throttling may begin at any time.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from uservpn.mesh.liveness import LinkState
from uservpn.tunnel.path import Path
from uservpn.types import LinkId

Pair = tuple[LinkState, Path]

START_S: Final = 1.0
START_RTTS: Final = 8.0
"""So long, whichever is longer, a comparison lets the other path find its rate; then the bytes count..."""
COUNT_S: Final = 0.5
COUNT_RTTS: Final = 3.0
"""...for so long."""
DRAIN_RTTS: Final = 2.0
"""The queue of the link in use has run off after so long."""
BUSY: Final = 0.75
"""If bulk waited for less of the counted time, there was too little to compare by."""
GAP: Final = 0.4
"""Bulk that waits is looked at with each report. If nobody looked for so much of that, nothing waited."""
FIRST_S: Final = 4.0
"""Nothing is compared until so long after bulk began, or after a comparison that there was too little of it
for; after the next one like that for twice as long."""
STEADY_S: Final = 1.0
PAUSE_S: Final = 0.5
"""And not until bulk has waited for so long without a pause: a short transfer would only be slowed down."""
CHOKED_ROUNDS: Final = 3
"""Not so long if most gets lost for so many rounds..."""
FALLEN: Final = 0.5
FALLEN_S: Final = 1.0
"""...or the rate stays below that of what it was when it was compared..."""
HURRY_S: Final = 30.0
"""...but not sooner than so long after the last time that this was the reason."""
EVERY_S: Final = 60.0
EVERY_MAX_S: Final = 600.0
FAR_MORE: Final = 2.0
NEARLY: Final = 0.7
SOME: Final = 0.1
"""One that delivers less than that of what the link in use does is still throttled."""


def _cheapest(links: Sequence[Pair], is_lossy: bool) -> Pair | None:
    """The first of these that loses messages, or does not; KCP is throttled with UDP, so it comes last."""
    alike = [pair for pair in links if pair[1].is_lossy == is_lossy]
    return min(alike, key=lambda pair: pair[1].is_costly, default=None)


class Part(enum.Enum):
    """What the other link gets."""

    REST = enum.auto()
    """What the link in use has no room for."""
    FIRST = enum.auto()
    """The link in use gets what it has no room for."""
    ALL = enum.auto()


class _Phase(enum.Enum):
    START = enum.auto()
    COUNT = enum.auto()
    ALONE_DRAIN = enum.auto()
    ALONE_START = enum.auto()
    ALONE_COUNT = enum.auto()


_ALONE: Final = (_Phase.ALONE_DRAIN, _Phase.ALONE_START, _Phase.ALONE_COUNT)


@dataclass(slots=True)
class _Trial:
    """One comparison."""

    used: LinkId
    link: LinkId
    """The other one."""
    rtt_s: float
    until: float
    """When the phase ends."""
    phase: _Phase = _Phase.START
    ours: int = 0
    theirs: int = 0
    """Bytes delivered by each when the counting began."""
    together: float = 0.0
    """Bytes/s of both, beside each other."""
    counted_at: float = 0.0
    busy_s: float = 0.0
    """So long, while it counts, bulk waited..."""
    looked_at: float = 0.0
    """...up to this time."""

    @property
    def start_s(self) -> float:
        return max(START_S, START_RTTS * self.rtt_s)

    @property
    def count_s(self) -> float:
        return max(COUNT_S, COUNT_RTTS * self.rtt_s)

    def count(self, phase: _Phase, ours: Path, theirs: Path, now: float) -> None:
        """The counting begins."""
        self.phase = phase
        self.ours, self.theirs = ours.delivered, theirs.delivered
        self.busy_s = 0.0
        self.looked_at = self.counted_at = now
        self.until = now + self.count_s

    def look(self, is_busy: bool, now: float) -> None:
        if self.phase is _Phase.COUNT or self.phase is _Phase.ALONE_COUNT:
            if is_busy and now - self.looked_at < GAP * self.count_s:
                self.busy_s += now - self.looked_at
            self.looked_at = now


class Comparing:
    """The comparisons of one peer's links, one at a time."""

    __slots__ = (
        "_again_s",
        "_at",
        "_busy_at",
        "_busy_since",
        "_every_s",
        "_fallen_at",
        "_hurried_at",
        "_is_lossy",
        "_rate",
        "_trial",
        "preferred",
    )

    def __init__(self) -> None:
        self.preferred: LinkId | None = None
        """The link that took over: what it shows is that of its kind."""
        self._is_lossy = False
        self._trial: _Trial | None = None
        self._at: float | None = None
        """When the next comparison is due; None: bulk has not flowed for long enough."""
        self._every_s = EVERY_S
        self._again_s = FIRST_S
        self._busy_at = self._busy_since = float("-inf")
        self._hurried_at = float("-inf")
        self._rate = 0.0
        """Bytes/s that the link in use delivered when it was last compared."""
        self._fallen_at: float | None = None
        """Since when it delivers far less."""

    def stop(self, link: LinkId | None = None) -> None:
        """The comparison at hand says nothing: the link in use, or `link`, fell silent or ended."""
        if self._trial is not None and link in (None, self._trial.link):
            self._trial = None

    def follow(self, links: Sequence[Pair]) -> None:
        """These are the links now. In the place of the one that took over comes another one of its kind.

        It may lead through another network: soon both kinds are compared anew.
        """
        if self.preferred is None or any(state.link == self.preferred for state, _ in links):
            return
        alike = _cheapest(links, self._is_lossy)
        if alike is not None:
            self.preferred = alike[0].link
            self._at = None
            self._every_s = EVERY_S

    def best(self, able: Sequence[Pair]) -> Pair | None:
        """Of those that may carry the one that took over, or one of its kind; None: none took over."""
        if self.preferred is None:
            return None
        for pair in able:
            if pair[0].link == self.preferred:
                return pair
        return _cheapest(able, self._is_lossy)

    def fell_silent(self, path: Path, to: Path, now: float) -> None:
        """The link in use was left for another one.

        If it had lost most before, only a comparison brings it back, not the time that a silence costs.
        """
        if path.choked_rounds >= CHOKED_ROUNDS and to.is_lossy != path.is_lossy:
            self._end_changed(to, self._rate, now)
        self._trial = None

    def other(
        self,
        used: Pair,
        able: Sequence[Pair],
        direct: Mapping[LinkId, Pair],
        is_busy: bool,
        now: float,
    ) -> tuple[Pair, Part] | None:
        """The link that is compared with the one in use, and what it gets; None: none at present.

        `able` are the links that may carry, `direct` all of them; `is_busy`: bulk waits. Starts, goes on
        with, or ends a comparison; `preferred` changes when one shows that another link shall carry.
        """
        if is_busy:
            if now > self._busy_at + PAUSE_S:
                self._busy_since, self._fallen_at = now, None
            self._busy_at = now
        if self._trial is None and not self._begins(used, able, is_busy, now):
            return None
        trial = self._trial
        assert trial is not None
        other = direct.get(trial.link)
        if other is None or used[0].link != trial.used:  # what was counted is another link's
            self._trial = None
            return None
        if trial.phase in _ALONE and other[1].is_stuck:  # and nothing else carries
            self._end_unchanged(now)
            return None
        trial.look(is_busy, now)
        if now >= trial.until:
            self._next(trial, used[1], other[1], now)
        if self._trial is None:
            return None
        if trial.phase in _ALONE:
            return other, Part.ALL
        return other, Part.FIRST if self._is_return(used[1]) else Part.REST

    def _begins(self, used: Pair, able: Sequence[Pair], is_busy: bool, now: float) -> bool:
        if not is_busy:
            if self._at is not None and now > self._at + EVERY_S:
                self._at = None
            return False
        if self._at is None:
            self._at = now + FIRST_S
        is_due = now >= max(self._at, self._busy_since + STEADY_S)
        if not is_due and not self._is_hurried(used[1], now):
            return False
        other = _cheapest(able, not used[1].is_lossy)
        if other is None:
            return False
        state, path = other
        path.look_anew()
        rtt_s = max(path.rtt_s or state.rtt_s or 0.0, used[1].rtt_s or 0.0)
        self._trial = trial = _Trial(used[0].link, state.link, rtt_s, now)
        trial.until += trial.start_s
        return True

    def _is_hurried(self, path: Path, now: float) -> bool:
        """Does the link in use do so badly that it is compared before it is due?"""
        if path.rate >= FALLEN * self._rate:
            self._fallen_at = None
        elif self._fallen_at is None:
            self._fallen_at = now
        has_fallen = self._fallen_at is not None and now >= self._fallen_at + FALLEN_S
        if now < self._hurried_at + HURRY_S or not (
            has_fallen or path.choked_rounds >= CHOKED_ROUNDS
        ):
            return False
        self._hurried_at = now
        return True

    def _next(self, trial: _Trial, ours: Path, theirs: Path, now: float) -> None:
        """A phase is over."""
        if trial.phase is _Phase.START:
            if ours.is_lossy and ours.is_starting and ours.choked_rounds < CHOKED_ROUNDS:
                # what little there was to send was not enough to find out what the one in use carries
                self._end_unclear(now)
            else:
                trial.count(_Phase.COUNT, ours, theirs, now)
        elif trial.phase is _Phase.ALONE_DRAIN:
            theirs.look_on()
            trial.phase = _Phase.ALONE_START
            trial.until = now + trial.start_s
        elif trial.phase is _Phase.ALONE_START:
            trial.count(_Phase.ALONE_COUNT, ours, theirs, now)
        else:
            self._judge(trial, ours, theirs, now)

    def _judge(self, trial: _Trial, used: Path, other: Path, now: float) -> None:
        """The counting is over."""
        took_s = now - trial.counted_at
        if trial.busy_s < BUSY * trial.count_s:
            self._end_unclear(now)
            return
        is_return = self._is_return(used)
        is_beside = trial.phase is _Phase.COUNT
        ours = (used.delivered - trial.ours) / took_s if is_beside else trial.together
        theirs = (other.delivered - trial.theirs) / took_s
        if theirs > (NEARLY if is_return else FAR_MORE) * ours:
            self._end_changed(None if is_return else other, theirs, now)
        elif is_return and is_beside and theirs > SOME * ours:
            trial.together = ours + theirs
            trial.phase = _Phase.ALONE_DRAIN
            trial.until = now + DRAIN_RTTS * trial.rtt_s
        else:
            self._rate = ours
            self._end_unchanged(now)

    def _is_return(self, used: Path) -> bool:
        """Did the link in use take over from the other kind, which is to come back?"""
        return self.preferred is not None and used.is_lossy == self._is_lossy

    def _end_changed(self, winner: Path | None, rate: float, now: float) -> None:
        """From now on the `winner` carries, or what did before there was one, at this rate."""
        self._end(now, EVERY_S)
        self.preferred = None
        if winner is not None:
            self.preferred, self._is_lossy = winner.link, winner.is_lossy
        self._rate = rate
        self._every_s = EVERY_S
        self._again_s = FIRST_S

    def _end_unchanged(self, now: float) -> None:
        self._end(now, self._every_s)
        self._every_s = min(2 * self._every_s, EVERY_MAX_S)
        self._again_s = FIRST_S

    def _end_unclear(self, now: float) -> None:
        self._end(now, self._again_s)
        self._hurried_at = min(self._hurried_at, now + self._again_s - HURRY_S)  # that was none
        self._again_s = min(2 * self._again_s, EVERY_S)

    def _end(self, now: float, next_s: float) -> None:
        self._trial = None
        self._fallen_at = None
        self._at = now + next_s
