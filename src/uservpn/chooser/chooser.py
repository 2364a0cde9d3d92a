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

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from uservpn.chooser.affinity import Key, Session, Sessions
from uservpn.chooser.cases import (
    NOWHERE,
    Case,
    Choice,
    ExitState,
    Mesh,
    Want,
    refusal,
    wished_target,
)
from uservpn.chooser.hosts import normal_host, number_of
from uservpn.chooser.measure import NEVER_MS, SAMPLES_MIN, Knowledge
from uservpn.chooser.targets import Action, Pick, Target
from uservpn.chooser.testing import (
    CANDIDATES_MAX,
    KEEP,
    RESOLVE,
    RESOLVE_WAIT_S,
    TRIAL_LIFE_S,
    TRIALS_MAX,
    WAIT_S,
    Budget,
    Finding,
    Inquiry,
    Trial,
)
from uservpn.chooser.wishes import parse_wish
from uservpn.errors import Fault
from uservpn.types import NodeId

if TYPE_CHECKING:  # rules cost memory where there are some, and only there
    from uservpn.chooser.rules import Verdict

KNOWN_MAX: Final = 8192
"""Targets remembered as having connected; the oldest is forgotten."""
CASES_MAX: Final = 4096
COUNTRIES_MAX: Final = 4096
COUNTRY_AGAIN_S: Final = 3600.0
"""A country that no exit knew is asked for again after so long."""
ADDRESS_KEPT_S: Final = 60.0
ADDRESSES_KEPT_MAX: Final = 1024
LOOKUPS_MAX: Final = 2
"""Exits that are asked for an address at once."""
ANYWHERE: Final = Target()
MUTE_COUNT: Final = 6
"""So many connections in a row without any reply, to at least `MUTE_SITES`: the exit counts as dead."""
MUTE_SITES: Final = 3
MUTE_S: Final = 600.0
"""Unless something comes through it before."""
HYSTERESIS: Final = 0.07
"""How much better another exit must be than the last one to take over a new session."""
HYSTERESIS_MS: Final = 1.0
TESTS_MIN: Final = 2
"""Samples, tests and real ones, without which an exit does not take a session over."""
CONTENDER: Final = 1.5
"""An exit that is expected to take longer than the best by this factor is not looked at again."""
LOOK_S: Final = 60.0
"""A session looks at other exits at most this often, while they are not known well enough."""
REFRESH_S: Final = 3 * 3600.0
"""What is known is looked at anew when it is this old."""
_UNREACHED: Final = frozenset(
    (Fault.TIMEOUT, Fault.HOST_UNREACHABLE, Fault.NETWORK_UNREACHABLE, Fault.NOT_ALLOWED)
)
"""Results of a dial that speak against the exit."""


class Ruling(Protocol):
    """The owner's rules; `rules.RuleSet` is them."""

    def match(self, host: str, port: int, country: str | None = None) -> Verdict:
        """What they say; `country` is the site's, "" where it is not known, None: nobody asked."""


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
        self.sessions = Sessions(idle_s)
        self.knowledge = Knowledge()
        self.countries: OrderedDict[str, str] = OrderedDict()
        """Where sites are, as exits found out."""
        self.countries_changed: set[str] = set()
        self.trial_count = 0
        self.request_count = 0
        """Tests asked of exits."""
        self.mesh = mesh
        self.site_of = site_of
        self._default = default
        self._rules = rules
        self.wall_s = wall_s
        """Added to `now`: Unix time."""
        self._wait_s = wait_s
        self._near = near
        self._cases: dict[tuple[str, int, str], Case] = {}
        self._known: OrderedDict[tuple[int, str, int], None] = OrderedDict()
        self._dead: set[NodeId] = set()
        self._silence: dict[NodeId, list[str]] = {}  # the sites that it last failed to reach
        self._mute: dict[NodeId, float] = {}  # until when
        self._trials: OrderedDict[int, Trial] = OrderedDict()
        self._waiting: dict[Key, Trial] = {}
        self._token = 0
        self._budget = Budget()
        self._requests: list[tuple[NodeId, Inquiry]] = []
        self._decided: list[tuple[Any, Choice]] = []
        self._moved: list[str] = []
        self._begun: list[Trial] = []
        self._asked: dict[str, float] = {}  # sites whose country nobody knew, until when
        self._addresses: dict[str, tuple[float, tuple[str, ...]]] = {}

    def reconfigure(self, default: Target, rules: Ruling | None, idle_s: float) -> None:
        """Live change; what is known stays known, and sessions stay where they may."""
        self._default = default
        self._rules = rules
        self.sessions.idle_s = idle_s
        self._cases.clear()

    def mesh_changed(self) -> None:
        """Names, countries or roles of nodes may be others now."""
        self._cases.clear()

    # --- the choice ------------------------------------------------------------------------------

    def choose(self, host: str, port: int, user: str, now: float) -> Choice | Trial:
        """Where a connection to `host`:`port` goes; a Trial: that has to be found out first."""
        case = self._cases.get((host, port, user)) or self._new_case(host, port, user, now)
        if case.answer is not None:
            return case.answer
        if case.want is not Want.NOTHING:
            return self._look_up(case, now)
        session = self.sessions.live(case.key, now + self.wall_s())
        if session is None:
            return self._begin(case, self.sessions.peek(case.key), False, now)
        exit = session.exit
        if exit not in case.taken and not session.is_pinned and not self._fits(case, exit):
            return self._begin(case, None, False, now)
        if self.mesh.is_linked(exit) and not self._mute:
            self._dead.discard(exit)
        elif self._is_gone(exit, now) and not (session.is_pinned or case.target.is_strict):
            return self._begin(case, session, True, now)
        if now >= session.look_at:
            self._look(case, session, now)
        return Choice(exit, session.reason, case.key, case.key.site)

    def _new_case(self, host: str, port: int, user: str, now: float) -> Case:
        if len(self._cases) >= CASES_MAX:
            del self._cases[next(iter(self._cases))]
        case = self._cases[host, port, user] = self.case(host, port, user, now)
        return case

    def case(self, host: str, port: int, user: str, now: float) -> Case:
        """What is asked for; nothing is remembered."""
        site = self.site_of(host)
        wish = parse_wish(user)
        target, reason, scope, want = Target(), "", "", Want.NOTHING
        problem = wish.problem
        try:
            wished = None if problem else wished_target(wish)
        except ValueError as error:
            wished, problem = None, str(error)
        if wished is not None:
            target, scope = wished
            reason = "program"
        elif not problem:
            target, reason, want = self._ruled(host, port, site, now)
        key = Key(site, ",".join(part for part in (scope, wish.session) if part))
        case = Case(host, port, user, key, target, reason)
        if problem:
            case.answer = refusal(site, Fault.NOT_ALLOWED, problem)
        elif self._is_pinned(key):
            case.target, case.reason = Target(), "pinned"
        elif want is Want.COUNTRY:
            case.want = want
        elif target.action is Action.REJECT:
            case.answer = refusal(site, Fault.NOT_ALLOWED, f"{reason} rejects this target")
        elif target.action is Action.DIRECT:
            if number_of(normal_host(host)) is None:
                case.want = Want.ADDRESS
            else:
                addresses = (normal_host(host),)
                case.answer = Choice(
                    NOWHERE, reason, None, site, is_direct=True, addresses=addresses
                )
        return case

    def _ruled(self, host: str, port: int, site: str, now: float) -> tuple[Target, str, Want]:
        """The target of the rules, else the default; and whether they must know the country."""
        if self._rules is not None:
            country = self.countries.get(site)
            if country is None and now < self._asked.get(site, 0.0):
                country = ""  # it was asked for, and nobody knew
            verdict = self._rules.match(host, port, country)
            if verdict.needs_country and country is None:
                return Target(), "", Want.COUNTRY
            if verdict.match is not None:
                return verdict.match.target, verdict.match.text, Want.NOTHING
        reason = "" if self._default.action is Action.AUTO else "default"
        return self._default, reason, Want.NOTHING

    def _is_pinned(self, key: Key) -> bool:
        session = self.sessions.peek(key)
        return session is not None and session.is_pinned

    def _fits(self, case: Case, exit: NodeId) -> bool:
        """May this exit carry the case? It is asked once."""
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
        key = Key(case.host, f"\0{case.want.name}")
        waiting = self._waiting.get(key)
        if waiting is not None:
            return waiting
        kept = self._addresses.get(case.host)
        if case.want is Want.ADDRESS and kept is not None and now < kept[0]:
            return self._direct(case, kept[1])
        linked = [state for state in self.mesh.exits() if state.is_linked]
        linked.sort(key=lambda state: NEVER_MS if state.flight_ms is None else state.flight_ms)
        wait_s = RESOLVE_WAIT_S if case.want is Want.ADDRESS else self._wait_s
        trial = self._ask(case, linked[:LOOKUPS_MAX], now, wait_s, RESOLVE, key)
        self._waiting[key] = trial
        if not linked:
            trial.cut_at = now
        return trial

    def _looked_up(self, trial: Trial, now: float) -> None:
        """The answer to `_look_up`, or none: those who wait go on."""
        case: Case = trial.case
        if case.want is Want.ADDRESS:
            if not trial.addresses:
                text = "no exit could resolve the name"
                choice = refusal(case.key.site, trial.fault, text)
            else:
                if len(self._addresses) >= ADDRESSES_KEPT_MAX:
                    del self._addresses[next(iter(self._addresses))]
                self._addresses[case.host] = (now + ADDRESS_KEPT_S, trial.addresses)
                choice = self._direct(case, trial.addresses)
        else:
            if not trial.country:
                if len(self._asked) >= COUNTRIES_MAX:
                    self._asked.clear()
                self._asked[case.key.site] = now + COUNTRY_AGAIN_S
                self._cases.clear()
            found = self.choose(case.host, case.port, case.user, now)
            if isinstance(found, Trial):
                found.waiters += trial.waiters
                return
            choice = found
        self._decided += [(waiter, choice) for waiter in trial.waiters]

    def _direct(self, case: Case, addresses: tuple[str, ...]) -> Choice:
        return Choice(
            NOWHERE, case.reason, None, case.key.site, is_direct=True, addresses=addresses
        )

    def _is_gone(self, exit: NodeId, now: float) -> bool:
        """Dead or mute, while somebody else is there (else it is this node that is offline)."""
        if now >= self._mute.get(exit, 0.0):
            self._mute.pop(exit, None)
            if self.mesh.is_linked(exit):
                self._dead.discard(exit)
                return False
            if exit not in self._dead and not self.mesh.is_lost(exit):
                return False
        return any(state.is_linked and state.node != exit for state in self.mesh.exits())

    def state_of(self, exit: NodeId, now: float) -> str:
        """One word for people: linked, mute, dead, down, or known (it can be dialled)."""
        if now < self._mute.get(exit, 0.0):
            return "mute"
        if self.mesh.is_linked(exit):
            return "linked"
        if exit in self._dead:
            return "dead"
        return "down" if self.mesh.is_lost(exit) else "known"

    # --- the beginning of a session --------------------------------------------------------------

    def _begin(self, case: Case, last: Session | None, is_move: bool, now: float) -> Choice | Trial:
        """A new session, or one whose exit died (`is_move`)."""
        waiting = self._waiting.get(case.key)
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
        best, is_sure = self.best(case, pool, before, at)
        if best is not None and is_sure:
            return self._bind(case, best, "measured", moved_from, now)
        trial = self._try(case, pool, now, wait_s=self._wait_s)
        if trial is None:
            exit, reason = (best, "measured") if best else self._by_order(case, pool)
            return self._bind(case, exit, reason, moved_from, now)
        trial.last = before
        trial.moved_from = moved_from
        self._waiting[case.key] = trial
        return trial

    def pool(self, case: Case, now: float) -> list[ExitState]:
        """The exits that come into question now: the first tier in which one is not gone."""
        states = {state.node: state for state in self.mesh.exits()}
        tiers = case.target.tiers([s.candidate for s in states.values()], case.key.site)
        for tier in tiers:
            there = [states[node] for node in tier if not self._is_gone(node, now)]
            if there:
                return there
        return [states[node] for node in tiers[0]] if tiers else []

    def best(
        self, case: Case, pool: Sequence[ExitState], last: NodeId | None, at: float
    ) -> tuple[NodeId | None, bool]:
        """The exit that is measured best; `last` keeps its place unless beaten clearly.

        False: another one looks better, but too little is known of it.
        """
        site = case.key.site
        expected = self.knowledge.expected(site, at)
        all_ = {state.node: expected[state.node] for state in pool if state.node in expected}
        known = {
            node: ms
            for node, ms in all_.items()
            if node == last or self.knowledge.samples(site, node, at) >= TESTS_MIN
        }
        if not known:
            return None, False
        best = min(known, key=lambda node: known[node])
        if known[best] >= NEVER_MS / 2:
            return None, False  # all that is known is bad: find out
        if last is not None and last in known and not _is_better(known[best], known[last]):
            best = last
        return best, not _is_better(min(all_.values()), known[best])

    def _by_order(self, case: Case, pool: Sequence[ExitState]) -> tuple[NodeId, str]:
        """Without a measurement: the nearest by country, else the owner's order."""
        pool = [state for state in pool if state.is_linked] or pool
        country = self.countries.get(case.key.site, "")
        if country:
            far = [
                (distance, index)
                for index, state in enumerate(pool)
                if (distance := self._near(country, state.candidate.country)) is not None
            ]
            if far:
                return pool[min(far)[1]].node, "nearest"
        return pool[0].node, case.reason or "owner's order"

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

    def _try(
        self, case: Case, pool: Iterable[ExitState], now: float, wait_s: float
    ) -> Trial | None:
        """Asks the likely exits of the pool; None: that would be one trial too many."""
        if not self._budget.take(now):
            return None
        site = case.key.site
        expected = self.knowledge.expected(site, now + self.wall_s())

        def likely(state: ExitState) -> float:
            flight = NEVER_MS if state.flight_ms is None else state.flight_ms
            return expected.get(state.node, flight)

        # sorted() keeps the owner's order among equals
        asked = sorted(pool, key=likely)[:CANDIDATES_MAX]
        return self._ask(case, asked, now, wait_s, KEEP if wait_s else 0, case.key)

    def _ask(
        self,
        case: Case,
        asked: Sequence[ExitState],
        now: float,
        wait_s: float,
        flags: int,
        key: Key,
    ) -> Trial:
        self._drop_old(now)
        self._token = self._token % 0xFFFF_FFFF + 1
        flights = {state.node: state.flight_ms for state in asked}
        is_lookup = bool(flags & RESOLVE)
        trial = Trial(self._token, key, case, flights, now, wait_s, is_lookup)
        trial.is_waited_for = wait_s > 0
        self._trials[trial.token] = trial
        inquiry = Inquiry(trial.token, flags, case.host, case.port)
        self._requests += [(exit, inquiry) for exit in flights]
        if trial.is_waited_for:
            self._begun.append(trial)
        self.trial_count += 1
        self.request_count += len(flights)
        return trial

    def _drop_old(self, now: float) -> None:
        """Trials that nobody answers any more; those that are waited for go by their own bound."""
        while self._trials:
            trial = next(iter(self._trials.values()))
            if now < trial.began_at + TRIAL_LIFE_S and len(self._trials) < TRIALS_MAX:
                return
            self._decide(trial, now)
            self._trials.popitem(last=False)

    def _look(self, case: Case, session: Session, now: float) -> None:
        """Looks at exits that may be better than the session's: for the next session."""
        session.look_at = now + REFRESH_S
        at = now + self.wall_s()
        site = case.key.site
        if session.is_pinned or case.target.pick is Pick.SPREAD:
            return
        expected = self.knowledge.expected(site, at)
        limit = CONTENDER * min(expected.values(), default=NEVER_MS)
        unknown = [
            state
            for state in self.pool(case, now)
            if self._may_take(site, state, expected, at) <= limit
            and self._wants_look(site, state.node, at)
        ]
        if unknown and self._try(case, unknown, now, wait_s=0.0) is not None:
            session.look_at = now + LOOK_S

    def _may_take(
        self, site: str, state: ExitState, expected: dict[NodeId, float], at: float
    ) -> float:
        """The least that this exit may take in ms: until enough is known, its flight time."""
        if self.knowledge.samples(site, state.node, at) < SAMPLES_MIN:
            return state.flight_ms or 0.0
        return expected.get(state.node, 0.0)

    def _wants_look(self, site: str, exit: NodeId, at: float) -> bool:
        newest = self.knowledge.newest(site, exit)
        if newest is None or at >= newest + REFRESH_S:
            return True
        return self.knowledge.samples(site, exit, at) < SAMPLES_MIN

    def take_requests(self) -> list[tuple[NodeId, Inquiry]]:
        """What to ask of which exit."""
        requests, self._requests = self._requests, []
        return requests

    def tested(self, exit: NodeId, tested: Finding, now: float) -> Trial | None:
        """An exit's answer came; to which trial (its `cut_at` may be another now), None: to none."""
        trial = self._trials.get(tested.token)
        if trial is None:
            return None
        sum_ms = trial.answered(exit, tested, now)
        if sum_ms is None:
            return None
        site = trial.case.key.site
        if sum_ms < NEVER_MS:
            self._speaks(exit)
        if not trial.is_lookup:
            self.knowledge.tested(site, exit, sum_ms, now + self.wall_s())
        if tested.country:
            self._learn_country(site, tested.country)
        if trial.is_due(now):
            self._decide(trial, now)
        if trial.is_complete:
            del self._trials[tested.token]
        return trial

    def cut(self, trial: Trial, now: float) -> None:
        """Its time is up."""
        self._decide(trial, now)

    @property
    def has_news(self) -> bool:
        """Would a take return something?"""
        return bool(self._requests or self._moved or self._decided or self._begun)

    def take_begun(self) -> list[Trial]:
        """Trials that are waited for, and so have to be cut in time."""
        begun, self._begun = self._begun, []
        return begun

    def take_moved(self) -> list[str]:
        """News for the log: sessions whose exit died."""
        moved, self._moved = self._moved, []
        return moved

    def take_decided(self) -> list[tuple[Any, Choice]]:
        """Who waited, and what for."""
        decided, self._decided = self._decided, []
        return decided

    def _decide(self, trial: Trial, now: float) -> None:
        if trial.is_decided:
            return
        trial.is_decided = True
        if not trial.is_waited_for:
            return
        del self._waiting[trial.key]
        if trial.is_lookup:
            self._looked_up(trial, now)
        else:
            choice = self._judge(trial, now)
            self._decided += [(waiter, choice) for waiter in trial.waiters]
        trial.waiters.clear()

    def _judge(self, trial: Trial, now: float) -> Choice:
        """The trial's winner, else the best of what was known before."""
        case: Case = trial.case
        moved_from = trial.moved_from
        winner = trial.winner()
        if winner is not None:
            self.know(winner, case.host, case.port)
            if trial.last is not None:  # one more sample of each, for a session that was before
                best, _ = self.best(case, self.pool(case, now), trial.last, now + self.wall_s())
                if best is not None:
                    return self._bind(case, best, "measured", moved_from, now, is_fresh=True)
            return self._bind(case, winner, "test", moved_from, now, is_fresh=True)
        pool = self.pool(case, now)
        left = [state for state in pool if state.node not in trial.sums] or pool
        if not left:
            return refusal(case.key.site, Fault.EXIT_DEAD, "no exit is there any more")
        exit, reason = self._by_order(case, left)
        return self._bind(case, exit, reason, moved_from, now)

    def _learn_country(self, site: str, country: str) -> None:
        if self.countries.get(site) != country:
            self.countries[site] = country
            self.countries_changed.add(site)
            if len(self.countries) > COUNTRIES_MAX:
                self.countries_changed.add(self.countries.popitem(last=False)[0])
            self._cases.clear()  # rules may ask for a site's country

    # --- what became of connections --------------------------------------------------------------

    def knows(self, exit: NodeId, host: str, port: int) -> bool:
        """Has this target connected through this exit before (and not failed since)?"""
        return (exit, host, port) in self._known

    def know(self, exit: NodeId, host: str, port: int) -> None:
        """The exit reached the target."""
        target = (exit, host, port)
        self._known[target] = None
        self._known.move_to_end(target)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def connected(self, choice: Choice, host: str, port: int) -> None:
        """The exit reached the target."""
        self.know(choice.exit, host, port)
        if choice.key is not None:
            session = self.sessions.peek(choice.key)
            if session is not None and session.exit == choice.exit:
                session.is_proved = True

    def failed(self, choice: Choice, host: str, port: int, fault: Fault, now: float) -> None:
        """It did not: the next answer waits for the result. A session that never worked is over."""
        self._known.pop((choice.exit, host, port), None)
        if choice.is_direct or choice.key is None or fault not in _UNREACHED:
            return
        self.replied(choice, NEVER_MS, now)
        session = self.sessions.peek(choice.key)
        if session is not None and session.exit == choice.exit and not session.is_proved:
            self.sessions.give_up(choice.key)

    def replied(self, choice: Choice, ms: float, now: float) -> None:
        """A first round trip of a connection."""
        if not choice.site or choice.is_direct:
            return
        self.knowledge.replied(choice.site, choice.exit, ms, now + self.wall_s())
        if ms < NEVER_MS:
            self._speaks(choice.exit)
            return
        silence = self._silence.setdefault(choice.exit, [])
        silence.append(choice.site)
        if len(silence) >= MUTE_COUNT and len(set(silence)) >= MUTE_SITES:
            self._mute[choice.exit] = now + MUTE_S
        del silence[:-MUTE_COUNT]

    def _speaks(self, exit: NodeId) -> None:
        """Something came through this exit: it is not mute."""
        self._silence.pop(exit, None)
        self._mute.pop(exit, None)

    def expected_ms(self, choice: Choice, now: float) -> float | None:
        """The first round trip to expect."""
        return self.knowledge.expected(choice.site, now + self.wall_s()).get(choice.exit)

    def ended(self, choice: Choice, bytes_in: int, bytes_out: int) -> None:
        """A connection is over."""
        if choice.site and not choice.is_direct:
            self.knowledge.moved(choice.site, choice.exit, bytes_in, bytes_out)

    def exit_died(self, exit: NodeId) -> None:
        """Its connections ended with it."""
        if any(state.is_linked and state.node != exit for state in self.mesh.exits()):
            self._dead.add(exit)  # else it may be this node that is offline

    # --- the owner's word ------------------------------------------------------------------------

    def pin(self, site: str, exit: NodeId, now: float) -> bool:
        """The site leaves at this exit until it is forgotten. False: there are too many pins."""
        self._cases.clear()
        return self.sessions.pin(Key(site), exit, now + self.wall_s())

    def forget(self, site: str) -> bool:
        """Ends the site's sessions and all knowledge of it; False: there was nothing."""
        self._cases.clear()
        sessions = self.sessions.forget(site)
        return self.knowledge.forget(site) or bool(sessions)


def _is_better(one: float, other: float) -> bool:
    """Better by more than what changes by itself?"""
    return one < other * (1 - HYSTERESIS) and one < other - HYSTERESIS_MS
