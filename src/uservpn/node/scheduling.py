"""Which path carries a tunnel: one at a time, another one beside it while the two are compared.

One direct link carries the tunnel; which one is decided at each take, from what was measured:

- A path is *silent* when nothing on it is confirmed although it was asked for, twice where messages may get
  lost. With the first question another link is asked as well; if that one answers, the silent path is left,
  else nothing moves, because in a black hole every link is silent. What was on it is resent over the other.
  It is tried again after a while that doubles, and only if its peer was heard on it since.
- Where the peer has moved to another link, and what we sent stays unanswered meanwhile, we move, too.
- On short paths without loss a reliable link (TCP, KCP) costs far less work for each byte, everywhere else
  one that loses messages is faster: its loss is recovered by us. NEAR_S tells them apart, with hysteresis.
- Some networks throttle UDP. While bulk flows both are compared now and then: for a while the other link may
  carry what the one in use has no room for. It is first given time to find its rate, which may be another one
  than long ago. If it delivers far more it takes over; one that took over gives way again when the other one
  is nearly as good. The next comparison is later each time nothing changed.
- Reports go where the newest message came from: the peer found that way to carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from uservpn.mesh.liveness import LinkState
from uservpn.tunnel.limits import FAR_RTT_S
from uservpn.tunnel.path import SILENT_COUNT, Path
from uservpn.types import LinkId

NEAR_S: Final = 0.006
"""Below this round trip, and without loss, reliable links are preferred."""
HYSTERESIS: Final = 1.5
LOSS_MAX: Final = 0.003
ASK_EVERY_S: Final = 0.5
FOLLOW_RTTS: Final = 1.75
"""Where the peer's messages come over another link, ours may be unanswered for so many round trips."""
AWAY_S: Final = 2.0
AWAY_MAX_S: Final = 120.0
TRIAL_START_S: Final = 1.0
TRIAL_START_RTTS: Final = 8.0
"""So long, whichever is longer, a comparison lets the other path find its rate; then the bytes count..."""
TRIAL_COUNT_S: Final = 0.5
TRIAL_COUNT_RTTS: Final = 3.0
"""...for so long."""
TRIAL_BUSY: Final = 0.75
"""If bulk waited for less of that, there was too little to compare by."""
TRIAL_GAP: Final = 0.4
"""Bulk that waits is looked at with each report. If nobody looked for so much of that, nothing waited."""
TRIAL_FIRST_S: Final = 4.0
TRIAL_EVERY_S: Final = 60.0
TRIAL_MAX_S: Final = 600.0
FAR_MORE: Final = 2.0
NEARLY: Final = 0.7
MOVING: Final = 512 << 10
MOVING_S: Final = 1.0
MOVING_LONG: Final = 64 << 10
MOVING_COUNT: Final = 3
"""A tunnel that moves MOVING bytes in MOVING_S, or MOVING_LONG in each of so many of them in a row, gets a
second connection for what should not wait."""


def _is_silent(state: LinkState, path: Path) -> bool:
    """Was nothing heard on it since it was asked about? Its path may have carried nothing to be confirmed."""
    return path.silent_count >= SILENT_COUNT and state.heard_at <= path.asked_at


def _is_outdone(state: LinkState, links: Sequence[tuple[LinkState, Path]]) -> bool:
    """Was another link heard since this one owes an answer? Else all may be silent: no reason to leave."""
    since = state.heard_at if state.owed_since is None else max(state.heard_at, state.owed_since)
    return any(other.heard_at > since for other, _ in links if other is not state)


def _express(path: Path, able: Sequence[tuple[LinkState, Path]]) -> tuple[LinkState, Path] | None:
    """Beside a connection over a long path: a second one."""
    if path.is_lossy or path.rtt_min_s < FAR_RTT_S:
        return None
    for pair in able:
        if pair[1] is not path and not pair[1].is_lossy and not pair[0].relayed:
            return pair
    return None


@dataclass(slots=True)
class Record:
    """What one link has shown."""

    away_until: float = 0.0
    away_s: float = AWAY_S
    left_at: float = 0.0
    asked_at: float = 0.0


@dataclass(slots=True)
class Trial:
    """Two links side by side: bytes delivered by each when the counting began."""

    link: LinkId
    count_at: float
    until: float
    ours: int = 0
    theirs: int = 0
    is_counting: bool = False
    busy_s: float = 0.0
    """So long, while it counts, bulk waited..."""
    looked_at: float = 0.0
    """...up to this time."""


@dataclass(slots=True)
class Choice:
    """What `choose` decided for one take."""

    state: LinkState
    path: Path
    beside: tuple[LinkState, Path] | None = None
    """The other side of a trial: gets what the first has no room for."""
    express: tuple[LinkState, Path] | None = None
    """Another link for all but bulk, which would wait behind it on this one."""
    ask: LinkState | None = None
    """Please probe this link, and ask over it what came."""
    left: Path | None = None
    """This path was left just now."""


@dataclass(slots=True)
class Schedule:
    """The choice of one peer's links. At most one record for each of its links."""

    current: LinkId | None = None
    heard_on: LinkId | None = None
    """The direct link that the newest message of the peer's tunnel came over."""
    only: Choice | None = None
    """The choice where there is one link."""
    _records: dict[LinkId, Record] = field(default_factory=dict)
    _trial: Trial | None = None
    _trial_at: float | None = None
    _trial_every_s: float = TRIAL_EVERY_S
    _preferred: LinkId | None = None
    """The winner of a comparison."""
    _moved: int = 0
    _moved_at: float = 0.0
    _moving_count: int = 0
    _is_moving: bool = False

    # --- direct links ----------------------------------------------------------------------------

    def choose(
        self,
        links: list[tuple[LinkState, Path]],
        is_busy: bool,
        now: float,
        ways: Sequence[tuple[LinkState, Path]] = (),
    ) -> Choice:
        """Which of the direct links carries this take; there is at least one. `is_busy`: bulk waits.

        `ways` over relays are taken when no direct link is heard any more.
        """
        by_link = {state.link: (state, path) for state, path in links}
        if len(self._records) > len(links) + len(ways):
            known = {state.link for state, _ in (*links, *ways)}
            self._records = {k: v for k, v in self._records.items() if k in known}
        present = by_link.get(self.current) if self.current is not None else None
        if len(links) == 1 and not ways:
            self._trial = None
            self.current = links[0][0].link
            return Choice(*links[0])
        if present is None:
            self.current = None
        others = [*links, *ways]
        ask = self._ask_another(present, others, now) if present and present[1].is_asked else None
        choice = self._leave_silent(present, others, now) if present is not None else None
        if choice is None:
            able = [
                pair
                for pair in links
                if self._is_able(*pair, now)
                or (pair[0].link == self.current and not _is_outdone(pair[0], others))
            ]
            able = able or [pair for pair in ways if self._is_able(*pair, now)]
            able = able or [pair for pair in links if not pair[0].probed] or links
            choice = Choice(*self._best(able))
            self.current = choice.state.link
            if (
                not choice.path.is_asked
            ):  # what another link has room for is kept for what may be lost
                other = choice.beside = self._compare(choice, able, by_link, is_busy, now)
                if other is not None and choice.state.link == self._preferred:
                    # the same bottleneck leaves nothing to the second: who is to come back goes first
                    choice = Choice(*other, beside=(choice.state, choice.path))
            choice.express = _express(choice.path, able)
        if choice.left is None:
            choice.ask = ask
        return choice

    def _leave_silent(
        self,
        present: tuple[LinkState, Path],
        links: list[tuple[LinkState, Path]],
        now: float,
    ) -> Choice | None:
        """The present one fell silent: away from it, once another one is heard."""
        state, path = present
        followed = self._followed(present, links, now)
        if followed is not None:
            return self._move(state, path, followed, now)
        if not path.is_stuck:
            if path.silent_count == 0:
                self._records.get(state.link, Record()).away_s = AWAY_S
            return None
        self._trial = None
        for pair in links:
            record = self._records.get(pair[0].link)
            if pair[0] is state or record is None:
                continue
            if record.asked_at > path.heard_at and pair[0].heard_at > record.asked_at:
                return self._move(state, path, pair, now)
        return Choice(state, path)

    def _move(self, state: LinkState, path: Path, to: tuple[LinkState, Path], now: float) -> Choice:
        """Away from a silent link to one that was heard since: a silence of that one is over."""
        self._trial = None
        self.put_away(state.link, now)
        self.current = to[0].link
        to[1].silent_count = 0
        return Choice(*to, left=path)

    def _followed(
        self,
        present: tuple[LinkState, Path],
        links: list[tuple[LinkState, Path]],
        now: float,
    ) -> tuple[LinkState, Path] | None:
        """The link that the peer has moved to, if nothing comes over the present one any more."""
        state, path = present
        if self.heard_on == state.link or not path.is_lossy or not path.inflight:
            return None
        since = path.awaited_since
        if now < since + FOLLOW_RTTS * (path.rtt_s or ASK_EVERY_S) or state.heard_at > since:
            return None
        for pair in links:
            if pair[0].link == self.heard_on and pair[0].heard_at > since and not pair[0].probed:
                return pair
        return None

    def _ask_another(
        self,
        present: tuple[LinkState, Path],
        links: list[tuple[LinkState, Path]],
        now: float,
    ) -> LinkState | None:
        """The present one was asked and has not answered yet: another one, asked now, may tell more."""
        state, path = present
        ask: LinkState | None = None
        for other, other_path in links:
            if other is state or _is_silent(other, other_path):
                continue
            record = self._records.setdefault(other.link, Record())
            if now >= record.asked_at + ASK_EVERY_S or record.asked_at < path.heard_at:
                record.asked_at = now
                ask = other
        return ask

    def put_away(self, link: LinkId, now: float) -> None:
        """This link fell silent: others carry for a while."""
        gone = self._records.setdefault(link, Record())
        gone.left_at = now
        gone.away_until = now + gone.away_s
        gone.away_s = min(2 * gone.away_s, AWAY_MAX_S)
        if self._trial is not None and self._trial.link == link:
            self._trial = None

    def _is_able(self, state: LinkState, path: Path, now: float) -> bool:
        """Was it not left lately, or heard since and due for another try?"""
        record = self._records.get(state.link)
        if record is None or not record.left_at:
            return not state.probed
        if now < record.away_until or state.heard_at <= record.left_at:
            return False
        record.left_at = 0.0
        path.silent_count = 0
        return not state.probed

    def _best(self, able: list[tuple[LinkState, Path]]) -> tuple[LinkState, Path]:
        """The fastest that is worth its work."""
        best = able[0]
        for pair in able:
            if pair[0].link == self.current:
                best = pair
        if any(pair[0].link == self._preferred for pair in able):
            return next(pair for pair in able if pair[0].link == self._preferred)
        for pair in able:
            if self._rank(pair) > self._rank(best):
                best = pair
        return best

    def _rank(self, pair: tuple[LinkState, Path]) -> int:
        """0: for the other kind of path; 1: unknown, or between the two; 2: this one's own."""
        state, path = pair
        rtt = path.rtt_min_s if path.rtt_s is not None else state.rtt_s
        if rtt is None:
            return 0
        is_current = state.link == self.current
        near = NEAR_S * (HYSTERESIS if is_current != path.is_lossy else 1 / HYSTERESIS)
        if path.is_lossy:
            return 2 if rtt > near or path.loss > LOSS_MAX else 0
        return 1

    def _compare(
        self,
        choice: Choice,
        able: list[tuple[LinkState, Path]],
        by_link: dict[LinkId, tuple[LinkState, Path]],
        is_busy: bool,
        now: float,
    ) -> tuple[LinkState, Path] | None:
        """Starts, goes on with, or ends a comparison; returns its other side while it lasts."""
        trial = self._trial
        if trial is not None:
            other = by_link.get(trial.link)
            if other is None or choice.state.link == trial.link:
                self._trial = None
                return None
            if not trial.is_counting and now >= trial.count_at:
                if choice.path.is_lossy and choice.path.is_starting:
                    # what little there was to send was not enough to find out what the one in use carries
                    self._trial = None
                    self._trial_at = now + TRIAL_FIRST_S
                    return None
                trial.is_counting = True
                trial.looked_at = now
                trial.ours, trial.theirs = choice.path.delivered, other[1].delivered
            if trial.is_counting:
                if is_busy and now - trial.looked_at < TRIAL_GAP * (trial.until - trial.count_at):
                    trial.busy_s += now - trial.looked_at
                trial.looked_at = now
            if now < trial.until:
                return other
            self._trial = None
            ours = choice.path.delivered - trial.ours
            theirs = other[1].delivered - trial.theirs
            if trial.busy_s < TRIAL_BUSY * (trial.until - trial.count_at):
                self._trial_at = now + TRIAL_FIRST_S
                return None
            if theirs > FAR_MORE * ours:
                self._preferred = trial.link
                self._trial_every_s = TRIAL_EVERY_S
            elif self._preferred is not None and theirs > NEARLY * ours:
                self._preferred = None
                self._trial_every_s = TRIAL_EVERY_S
            else:
                self._trial_at = now + self._trial_every_s
                self._trial_every_s = min(2 * self._trial_every_s, TRIAL_MAX_S)
                return None
            self._trial_at = now + TRIAL_EVERY_S
            return None
        if not is_busy:
            if self._trial_at is not None and now > self._trial_at + TRIAL_EVERY_S:
                self._trial_at = None
            return None
        if self._trial_at is None:
            self._trial_at = now + TRIAL_FIRST_S
        if now < self._trial_at:
            return None
        others = [p for p in able if p[1].is_lossy != choice.path.is_lossy]
        if not others:
            return None
        state, path = others[0]
        path.look_anew()
        rtt_s = max(path.rtt_s or state.rtt_s or 0.0, choice.path.rtt_s or 0.0)
        count_at = now + max(TRIAL_START_S, TRIAL_START_RTTS * rtt_s)
        until = count_at + max(TRIAL_COUNT_S, TRIAL_COUNT_RTTS * rtt_s)
        self._trial = Trial(state.link, count_at, until)
        return others[0]

    def wants_second(self, choice: Choice, moved: int, now: float) -> bool:
        """Should there be a second connection? `moved` bytes went over the tunnel so far, both ways.

        Much flows over a long path that keeps its order: one lost packet stops all that is behind it.
        """
        if now >= self._moved_at + MOVING_S:
            much = moved - self._moved if now < self._moved_at + 2 * MOVING_S else 0
            self._moving_count = self._moving_count + 1 if much >= MOVING_LONG else 0
            self._is_moving = much >= MOVING or self._moving_count >= MOVING_COUNT
            self._moved, self._moved_at = moved, now
        path = choice.path
        return self._is_moving and not path.is_lossy and path.rtt_min_s >= FAR_RTT_S
