"""Which path carries a tunnel: one at a time, another one beside it while the two are compared.

One direct link carries the tunnel; which one is decided at each take, from what was measured:

- A path is *silent* when nothing on it is confirmed although it was asked for, twice where messages may get
  lost. With the first question another link is asked as well; if that one answers, the silent path is left,
  else nothing moves, because in a black hole every link is silent. What was on it is resent over the other.
  It is tried again after a while that doubles, and only if its peer was heard on it since.
- Where the peer has moved to another link, and what we sent stays unanswered meanwhile, we move, too.
- On short paths without loss a reliable link costs far less work for each byte if the kernel does it (TCP);
  one that is reliable by our own work (KCP) is the slowest there. Everywhere else one that loses messages is
  faster: its loss is recovered by us. NEAR_S tells them apart, with hysteresis.
- Some networks throttle UDP: while bulk flows both are compared now and then (node/comparing.py).
- Reports go where the newest message came from: the peer found that way to carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from uservpn.mesh.liveness import LinkState
from uservpn.node.comparing import Comparing, Part
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
MOVING: Final = 512 << 10
MOVING_S: Final = 1.0
MOVING_LONG: Final = 64 << 10
MOVING_COUNT: Final = 3
"""A tunnel that moves MOVING bytes in MOVING_S, or MOVING_LONG in each of so many of them in a row, gets
connections of its own for what should not wait."""


def _is_silent(state: LinkState, path: Path) -> bool:
    """Was nothing heard on it since it was asked about? Its path may have carried nothing to be confirmed."""
    return path.silent_count >= SILENT_COUNT and state.heard_at <= path.asked_at


def _is_outdone(state: LinkState, links: Sequence[tuple[LinkState, Path]]) -> bool:
    """Was another link heard since this one owes an answer? Else all may be silent: no reason to leave."""
    since = state.heard_at if state.owed_since is None else max(state.heard_at, state.owed_since)
    return any(other.heard_at > since for other, _ in links if other is not state)


def _rtt(pair: tuple[LinkState, Path]) -> float | None:
    """The shortest round trip over it; None: not measured."""
    state, path = pair
    return path.rtt_min_s if path.rtt_s is not None else state.rtt_s


def _express(path: Path, able: Sequence[tuple[LinkState, Path]]) -> list[tuple[LinkState, Path]]:
    """The connections beside one over a long path."""
    if path.is_lossy or path.rtt_min_s < FAR_RTT_S:
        return []
    return [p for p in able if p[1] is not path and not p[1].is_lossy and not p[0].relayed]


@dataclass(slots=True)
class Record:
    """What one link has shown."""

    away_until: float = 0.0
    away_s: float = AWAY_S
    back_at: float = 0.0
    """When it might carry again."""
    left_at: float = 0.0
    asked_at: float = 0.0

    def carries(self, path: Path) -> None:
        """It is in use, and not silent."""
        if not self.left_at and path.heard_at >= self.back_at + AWAY_S:
            self.away_s = AWAY_S

    def put_away(self, now: float) -> None:
        """It fell silent. If that was while it was away, as where all links lose much, its wait stays."""
        self.left_at = now
        if now >= self.away_until:
            self.away_until = now + self.away_s
            self.away_s = min(2 * self.away_s, AWAY_MAX_S)


@dataclass(slots=True)
class Choice:
    """What `choose` decided for one take."""

    state: LinkState
    path: Path
    beside: tuple[LinkState, Path] | None = None
    """The other side of a comparison: gets what the first has no room for."""
    express: tuple[LinkState, Path] | None = None
    """Another link for all but bulk, which would wait behind it on this one."""
    again: LinkId | None = None
    """What is small leaves over this one, too: a lost packet of one does not make it wait."""
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
    comparing: Comparing = field(default_factory=Comparing)
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
        self.comparing.follow(links)
        present = by_link.get(self.current) if self.current is not None else None
        if len(links) == 1 and not ways:
            self.comparing.stop()
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
            used = choice.state, choice.path
            if not choice.path.is_asked:
                # what another link has room for is kept for what may be lost
                self._set_beside(choice, able, by_link, is_busy, now)
            connections = _express(used[1], able)
            if choice.path is not used[1] and not connections:
                connections = [used]  # only bulk is there to try a link with
            if connections:
                choice.express = connections[0]
            if len(connections) > 1:
                choice.again = connections[1][0].link
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
            self._records.get(state.link, Record()).carries(path)
            return None
        self.comparing.stop()
        for pair in links:
            record = self._records.get(pair[0].link)
            if pair[0] is state or record is None:
                continue
            if record.asked_at > path.heard_at and pair[0].heard_at > record.asked_at:
                return self._move(state, path, pair, now)
        return Choice(state, path)

    def _move(self, state: LinkState, path: Path, to: tuple[LinkState, Path], now: float) -> Choice:
        """Away from a silent link to one that was heard since: a silence of that one is over."""
        self.comparing.fell_silent(path, to[1], now)
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
        self._records.setdefault(link, Record()).put_away(now)
        self.comparing.stop(link)

    def _is_able(self, state: LinkState, path: Path, now: float) -> bool:
        """Was it not left lately, or heard since and due for another try?"""
        record = self._records.get(state.link)
        if record is None or not record.left_at:
            return not state.probed
        if now < record.away_until or state.heard_at <= record.left_at:
            return False
        record.left_at = 0.0
        record.back_at = now
        path.silent_count = 0
        return not state.probed

    def _best(self, able: list[tuple[LinkState, Path]]) -> tuple[LinkState, Path]:
        """The fastest that is worth its work."""
        best = able[0]
        for pair in able:
            if pair[0].link == self.current:
                best = pair
        preferred = self.comparing.best(able)
        if preferred is not None:
            return preferred
        shortest = min((rtt for rtt in map(_rtt, able) if rtt is not None), default=0.0)
        for pair in able:
            if self._rank(pair, shortest) > self._rank(best, shortest):
                best = pair
        return best

    def _rank(self, pair: tuple[LinkState, Path], shortest: float) -> int:
        """On a short path 1, or -1 if it costs work of ours, and 0 for datagrams; on a long one 1, and 2.

        One that was not measured yet takes over from none, and gives way to what is better than datagrams.
        What costs much work makes its own round trips long: there the `shortest` one of all links counts.
        """
        state, path = pair
        rtt = _rtt(pair)
        is_current = state.link == self.current
        if rtt is None:
            return 0 if is_current else -1
        is_for_long = path.is_lossy or path.is_costly
        near = NEAR_S * (HYSTERESIS if is_current != is_for_long else 1 / HYSTERESIS)
        if path.is_lossy:
            return 2 if rtt > near or path.loss > LOSS_MAX else 0
        return -1 if path.is_costly and shortest <= near else 1

    def _set_beside(
        self,
        choice: Choice,
        able: list[tuple[LinkState, Path]],
        direct: dict[LinkId, tuple[LinkState, Path]],
        is_busy: bool,
        now: float,
    ) -> None:
        """Two links carry while they are compared."""
        used = choice.state, choice.path
        compared = self.comparing.other(used, able, direct, is_busy, now)
        if compared is None:
            return
        other, part = compared
        if part is Part.REST:
            choice.beside = other
        else:
            choice.state, choice.path = other
            choice.beside = used if part is Part.FIRST else None

    def wants_beside(self, choice: Choice, moved: int, now: float) -> bool:
        """Should there be connections beside this one? `moved` bytes went over the tunnel so far, both ways.

        Much flows over a long path that keeps its order: one lost packet stops all that is behind it.
        """
        if now >= self._moved_at + MOVING_S:
            much = moved - self._moved if now < self._moved_at + 2 * MOVING_S else 0
            self._moving_count = self._moving_count + 1 if much >= MOVING_LONG else 0
            self._is_moving = much >= MOVING or self._moving_count >= MOVING_COUNT
            self._moved, self._moved_at = moved, now
        path = choice.path
        return self._is_moving and not path.is_lossy and path.rtt_min_s >= FAR_RTT_S
