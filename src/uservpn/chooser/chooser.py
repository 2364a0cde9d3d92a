"""Which exit a new connection leaves through, and why.

    1. the program's own choice      its user name: exit=3, country=us
    2. a pin                         `uservpn sites pin`
    3. a rule                        narrows the exits, or says direct or reject
    4. the session's exit            as long as the session lasts and the exit lives
    5. the best measured one         at the beginning of a session; the last one is kept unless
                                     another is better by 7 %, on two samples at least
    6. a test of the likely ones     nothing is measured yet: at most `WAIT_S`, then
    7. the nearest by country, the first in the owner's order

1 to 3 say which exits come into question, 4 to 7 which of them it is. Nothing moves a session but the
death of its exit. What is learned on the way (first round trips, tests) is for the next session.

Sans-I/O. `now` is monotonic seconds; what has to outlive a restart is kept in Unix time, which is
`now + wall_s()`. A choice that has to wait for a test is a `Trial`: put whoever waits into its
`waiters`, carry out `take_requests`, report answers with `tested`, and call `cut` at the `cut_at` of what
`take_begun` gives. A `direct` target by name waits in the same way for its address, and a rule that asks
for a site's country for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from uservpn.chooser.affinity import Key, Session, Sessions
from uservpn.chooser.askings import Cases, Ruling
from uservpn.chooser.cases import NOWHERE, Case, Choice, ExitState, Mesh, Want, refusal
from uservpn.chooser.directs import Directs
from uservpn.chooser.liveness import Liveness
from uservpn.chooser.lookups import Lookups
from uservpn.chooser.measure import NEVER_MS, Knowledge
from uservpn.chooser.outcomes import Outcomes
from uservpn.chooser.ranking import REFRESH_S, Ranking
from uservpn.chooser.reached import Reached
from uservpn.chooser.targets import Action, Pick, Target
from uservpn.chooser.testing import (
    CANDIDATES_MAX,
    KEEP,
    RESOLVE,
    RESOLVE_WAIT_S,
    WAIT_S,
    Finding,
    Inquiry,
    Trial,
)
from uservpn.chooser.trials import Trials
from uservpn.errors import Fault
from uservpn.types import NodeId

LOOKUPS_MAX: Final = 2
"""Exits that are asked for an address or a country at once."""
LOOK_S: Final = 60.0
"""A session looks at other exits at most this often, while they are not known well enough."""
ANYWHERE: Final = Target()


class Chooser:
    """Chooses exits; remembers sessions, measurements, and which targets connected.

    Everything is bounded: sessions, sites and targets by number (the one unused for longest goes),
    tests by number per minute (then the best known exit is taken without one).
    """

    def __init__(
        self,
        mesh: Mesh,
        default: Target = ANYWHERE,
        rules: Ruling | None = None,
        *,
        site_of: Callable[[str], str],
        wall_s: Callable[[], float],
        idle_s: float = 12 * 3600.0,
        wait_s: float = WAIT_S,
        near: Callable[[str, str], float | None] = lambda one, other: None,
    ) -> None:
        """`near` is the distance between two countries in any unit, None where it is unknown."""
        self.mesh = mesh
        self.wall_s = wall_s
        """Added to `now`: Unix time."""
        self.sessions = Sessions(idle_s)
        self.knowledge = Knowledge(mesh.flight_ms)
        self.lookups = Lookups()
        self.liveness = Liveness(mesh)
        self.ranking = Ranking(self.knowledge, near)
        self.trials = Trials()
        self.reached = Reached()
        self.directs = Directs()
        self._wait_s = wait_s
        self.cases = Cases(default, rules, site_of, self.sessions, self.lookups)
        self.outcomes = Outcomes(
            self.knowledge, self.sessions, self.liveness, self.reached, self.directs, wall_s
        )
        self._decided: list[tuple[Any, Choice]] = []
        self._moved: list[str] = []

    def reconfigure(self, default: Target, rules: Ruling | None, idle_s: float) -> None:
        """Live change; what is known stays known, and sessions stay where they may."""
        self.cases.reconfigure(default, rules)
        self.sessions.idle_s = idle_s
        self.directs.rules_changed()

    def mesh_changed(self) -> None:
        """Names, countries or roles of nodes may be others now."""
        self.cases.clear()

    # --- the choice ------------------------------------------------------------------------------

    def choose(self, host: str, port: int, user: str, now: float) -> Choice | Trial:
        """Where a connection to `host`:`port` goes; a Trial: that has to be found out first."""
        case = self.cases.kept.get((host, port, user))
        if case is None or now >= case.until:
            case = self.cases.keep(host, port, user, now)
        if case.answer is not None:
            return case.answer
        if case.want is not Want.NOTHING:
            return self._look_up(case, now)
        session = self.sessions.live(case.key, now + self.wall_s())
        if session is None:
            return self._begin(case, self.sessions.peek(case.key), False, now)
        exit = session.exit
        if exit not in case.taken and not session.is_pinned and not self.fits(case, exit):
            return self._begin(case, None, False, now)
        if not self.liveness.is_well(exit):
            stays = session.is_pinned or case.target.is_strict
            if not stays and self.liveness.is_gone(exit, now):
                return self._begin(case, session, True, now)
        if now >= session.look_at:
            self._look(case, session, now)
        return Choice(exit, session.reason, case.key, case.key.site)

    def fits(self, case: Case, exit: NodeId) -> bool:
        """May this exit carry the case? It is asked once."""
        if case.target.action is Action.AUTO and not case.target.avoid:
            case.taken.add(exit)
            return True
        candidates = [state.candidate for state in self.mesh.exits()]
        known = {candidate.node for candidate in candidates}
        fitting = {node for tier in case.target.tiers(candidates, case.key.site) for node in tier}
        if exit in fitting or exit not in known:  # not there now: its death is another question
            case.taken.add(exit)
            return True
        return False

    # --- what only an exit can tell --------------------------------------------------------------

    def _look_up(self, case: Case, now: float) -> Choice | Trial:
        """Asks the two nearest exits for an address or a country."""
        is_address = case.want is Want.ADDRESS
        # an address is the same for all; by a country each goes on to a choice of its own
        whose = "" if is_address else f"{case.port} {case.user}"
        key = Key(case.host, f"\0{whose}")
        waiting = self.trials.waiting(key)
        if waiting is not None:
            return waiting
        addresses = self.lookups.addresses(case.host, now) if is_address else ()
        if addresses:
            return self._direct(case, addresses)
        linked = [state for state in self.mesh.exits() if state.is_linked]
        linked.sort(key=lambda state: NEVER_MS if state.flight_ms is None else state.flight_ms)
        wait_s = RESOLVE_WAIT_S if is_address else self._wait_s
        self._drop_old(now)
        trial = self.trials.begin(case, key, linked[:LOOKUPS_MAX], now, wait_s, RESOLVE)
        trial.needs_country = not is_address
        if not linked:
            trial.cut_at = now
        return trial

    def _looked_up(self, trial: Trial, now: float) -> Choice | Trial:
        """What the answer to `_look_up`, or none, means for those who wait."""
        case: Case = trial.case
        if case.want is Want.ADDRESS:
            if not trial.addresses:
                return refusal(case.key.site, trial.fault, "no exit could resolve the name")
            self.lookups.keep(case.host, trial.addresses, now)
            return self._direct(case, trial.addresses)
        if not trial.country:
            is_sure = trial.is_complete and trial.winner() is not None
            self.lookups.nobody_knew(case.key.site, is_sure, now)
            self.cases.clear()
        return self.choose(case.host, case.port, case.user, now)

    def _direct(self, case: Case, addresses: tuple[str, ...]) -> Choice:
        return Choice(
            NOWHERE, case.reason, None, case.key.site, is_direct=True, addresses=addresses
        )

    # --- the beginning of a session --------------------------------------------------------------

    def _begin(self, case: Case, last: Session | None, is_move: bool, now: float) -> Choice | Trial:
        """A new session, or one whose exit died (`is_move`)."""
        waiting = self.trials.waiting(case.key)
        if waiting is not None:
            return waiting
        pool = self.pool(case, now)
        if not pool:
            text = f"no exit for {case.target}" if case.reason else "no exit is known"
            return refusal(case.key.site, Fault.EXIT_DEAD, text)
        at = now + self.wall_s()
        if not any(state.is_linked for state in pool):
            # nothing to choose by, and no session to lose: the last exit, or the owner's order
            first = next((s for s in pool if last is not None and s.node == last.exit), pool[0])
            return Choice(first.node, "nothing is linked yet", None, case.key.site)
        moved_from = last.exit if last is not None and is_move else None
        if len(pool) == 1 or case.target.pick is Pick.SPREAD:
            return self._bind(case, pool[0].node, case.reason or "only exit", moved_from, now)
        before = None if is_move or last is None else last.exit
        best, is_sure = self.ranking.best(case.key.site, pool, before, at)
        if best is not None and is_sure:
            return self._bind(case, best, "measured", moved_from, now)
        trial = self._try(case, pool, now, wait_s=self._wait_s)
        if trial is None:
            exit, reason = (best, "measured") if best else self._by_order(case, pool)
            return self._bind(case, exit, reason, moved_from, now)
        trial.last = before
        trial.moved_from = moved_from
        return trial

    def pool(self, case: Case, now: float) -> list[ExitState]:
        """The exits that come into question now: the first tier in which one is not gone."""
        states = {state.node: state for state in self.mesh.exits()}
        linked_count = sum(state.is_linked for state in states.values())
        tiers = case.target.tiers([s.candidate for s in states.values()], case.key.site)
        for tier in tiers:
            there = [
                states[node]
                for node in tier
                if not self.liveness.is_gone(
                    node, now, linked_count > (1 if states[node].is_linked else 0)
                )
            ]
            if there:
                return there
        return [states[node] for node in tiers[0]] if tiers else []

    def _by_order(self, case: Case, pool: list[ExitState]) -> tuple[NodeId, str]:
        country = self.lookups.countries.get(case.key.site, "")
        exit, reason = self.ranking.by_order(country, pool)
        return exit, reason if reason == "nearest" else case.reason or reason

    def _bind(
        self,
        case: Case,
        exit: NodeId,
        reason: str,
        moved_from: NodeId | None,
        now: float,
        is_fresh: bool = False,
    ) -> Choice:
        """`is_fresh`: the other exits were looked at just now."""
        at = now + self.wall_s()
        key = case.key
        pinned = self.sessions.peek(key)
        if pinned is not None and pinned.is_pinned:  # while the exits were asked
            return Choice(pinned.exit, pinned.reason, key, key.site)
        if moved_from is None:
            session = self.sessions.begin(key, exit, reason, at)
        else:
            reason = f"{reason}, since exit {moved_from} died"
            session = self.sessions.move(key, exit, reason, at)
            name = f"{key.site} (session {key.session})" if key.session else key.site
            self._moved.append(f"{name} leaves at exit {exit} now: exit {moved_from} died")
        session.look_at = now + LOOK_S if is_fresh else now
        case.taken.add(exit)
        return Choice(exit, reason, key, key.site)

    # --- tests -----------------------------------------------------------------------------------

    def _try(self, case: Case, pool: list[ExitState], now: float, wait_s: float) -> Trial | None:
        """Asks the likely exits of the pool; None: that would be one trial too many."""
        if not self.trials.budget.take(now):
            return None
        self._drop_old(now)
        asked = self.ranking.likely(case.key.site, pool, now + self.wall_s())[:CANDIDATES_MAX]
        return self.trials.begin(case, case.key, asked, now, wait_s, KEEP if wait_s else 0)

    def _look(self, case: Case, session: Session, now: float) -> None:
        """Looks at exits that may be better than the session's: for the next session."""
        session.look_at = now + REFRESH_S
        if session.is_pinned or case.target.pick is Pick.SPREAD:
            return
        pool = self.pool(case, now)
        if len(pool) < 2:
            return  # nothing to choose from
        unknown = self.ranking.contenders(case.key.site, pool, now + self.wall_s())
        if unknown and self._try(case, unknown, now, wait_s=0.0) is not None:
            session.look_at = now + LOOK_S

    def _drop_old(self, now: float) -> None:
        for trial in self.trials.drop_old(now):
            self._decide(trial, now)

    def tested(self, exit: NodeId, finding: Finding, now: float) -> Trial | None:
        """An exit's answer came; to which trial (its `cut_at` may be another now), None: to none."""
        found = self.trials.answered(exit, finding, now)
        if found is None:
            return None
        trial, sum_ms = found
        site = trial.case.key.site
        if sum_ms < NEVER_MS:
            self.liveness.speaks(exit)
        if (
            not trial.is_lookup and finding.fault is not Fault.LIMIT
        ):  # that says nothing of the site
            self.knowledge.tested(site, exit, sum_ms, now + self.wall_s())
        if finding.country and self.lookups.learn(site, finding.country) and self.cases.rules:
            self.cases.clear()  # rules may ask for a site's country
        if trial.is_due(now):
            self._decide(trial, now)
        return trial

    def cut(self, trial: Trial, now: float) -> None:
        """Its time is up."""
        self._decide(trial, now)

    def _decide(self, trial: Trial, now: float) -> None:
        if not self.trials.end(trial):
            return
        found = self._looked_up(trial, now) if trial.is_lookup else self._judge(trial, now)
        if isinstance(found, Trial):
            found.waiters += trial.waiters
        else:
            self._decided += [(waiter, found) for waiter in trial.waiters]
        trial.waiters.clear()

    def _judge(self, trial: Trial, now: float) -> Choice:
        """The trial's winner, else the best of what was known before."""
        case: Case = trial.case
        moved_from = trial.moved_from
        winner = trial.winner()
        if winner is not None:
            self.reached.add(winner, case.host, case.port)
            if trial.last is not None:  # one more sample of each, for a session that was before
                pool = self.pool(case, now)
                best, _ = self.ranking.best(case.key.site, pool, trial.last, now + self.wall_s())
                if best is not None:
                    return self._bind(case, best, "measured", moved_from, now, is_fresh=True)
            return self._bind(case, winner, "test", moved_from, now, is_fresh=True)
        pool = self.pool(case, now)
        left = [state for state in pool if state.node not in trial.sums] or pool
        if not left:
            return refusal(case.key.site, Fault.EXIT_DEAD, "no exit is there any more")
        exit, reason = self._by_order(case, left)
        choice = self._bind(case, exit, reason, moved_from, now, is_fresh=trial.is_complete)
        session = self.sessions.peek(case.key)
        if trial.is_complete and session is not None:
            session.is_proved = True  # no exit can do better: nothing is gained by choosing again
        return choice

    # --- news ------------------------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Would a take return something?"""
        return bool(self.trials.has_news or self._moved or self._decided)

    def take_requests(self) -> list[tuple[NodeId, Inquiry]]:
        """What to ask of which exit."""
        return self.trials.take_requests()

    def take_begun(self) -> list[Trial]:
        """Trials that are waited for, and so have to be cut in time."""
        return self.trials.take_begun()

    def take_moved(self) -> list[str]:
        """For the log: sessions whose exit died."""
        moved, self._moved = self._moved, []
        return moved

    def take_decided(self) -> list[tuple[Any, Choice]]:
        """Who waited, and what for."""
        decided, self._decided = self._decided, []
        return decided

    # --- the owner's word ------------------------------------------------------------------------

    def pin(self, site: str, exit: NodeId, now: float) -> bool:
        """The site leaves at this exit until it is forgotten. False: there are too many pins."""
        self.cases.clear()
        return self.sessions.pin(Key(site), exit, now + self.wall_s())

    def forget(self, site: str) -> bool:
        """Ends the site's sessions and all knowledge of it; False: there was nothing."""
        self.cases.clear()
        sessions = self.sessions.forget(site)
        has_country = self.lookups.forget(site)
        is_direct = self.directs.forget(site)
        return self.knowledge.forget(site) or bool(sessions) or has_country or is_direct
