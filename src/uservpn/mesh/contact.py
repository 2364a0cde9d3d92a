"""How one node stays in touch with one other: dialling, proof, liveness, and when it counts as dead.

A `Contact` never sees bytes. It is told that links came up or went down, that the peer was heard, and
that dials failed; it answers with plans: dial this endpoint, probe that link, give that link up. Which
endpoint is dialled when, `Dials` knows (mesh/addresses.py); a node without endpoints is never dialled.

Proof. A message proves that the peer has sent it, not that it is where the message comes from: who copies a
fresh one can send it on from anywhere, a handshake of his own in front. So a link that the peer opened is
*unproved*: it is not among `links`, and nothing but answers goes there, until a PROBE of ours that went over
it was answered. Then it goes to the front, and the older one it seems to replace is asked whether it is still
there. (A connection is used at once where there is no living link that could be robbed.) Unproved is also any
link that we dial at an address which need not be the peer's (local and observed ones). A datagram link to
a fixed endpoint is open at once, whether anybody is there or not: until it is answered it is
*tentative*: it may carry messages where nothing better is there, but counts as a dial still under way.

A peer is *dead* for its streams when every fixed endpoint refuses, or when nothing of it was heard for the
grace time, which begins when its last link is lost, or with the first stream that finds none. (That
it is back with a new boot is seen by its session, not here.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

from uservpn.mesh.addresses import Dials, host_of
from uservpn.mesh.beside import BESIDE_MAX, Beside
from uservpn.mesh.liveness import HURRY_S, PUNCH_RETRY_S, PUNCH_S, RETRY_S, LinkState, Verdict
from uservpn.mesh.records import EndpointKind, Known
from uservpn.mesh.redial import Redial
from uservpn.types import LinkId

IDLE_S: Final = 600.0
"""A link that was opened on demand and carried no stream for so long is closed."""
SPARE_S: Final = 300.0
"""A datagram link beside a connection goes sooner: before its first keep-alive."""
SHORT_LIFE_S: Final = 1.0
"""A link that ended this soon counts as a failed dial: else it would be dialled in a hot loop."""
LEAVE_S: Final = 1.0
"""Links to a peer that is no longer wanted stay this long, so that the ends of streams get through."""
HOLD_S: Final = 120.0
"""A silent connection of a peer that cannot be dialled, and that nobody waits for, stays so long: the way to
it may be cut for a while, and of its own it would not notice for a keep-alive time."""
UNPROVED_MAX: Final = 4
"""Datagram links of one peer that wait for their proof; a further one takes the place of the oldest."""


class Dial(NamedTuple):
    """Open a link to this endpoint."""

    endpoint: str


class Probe(NamedTuple):
    """Send a PROBE (or, when idle, a KEEPALIVE) over this link."""

    link: LinkId
    is_keepalive: bool


class GiveUp(NamedTuple):
    """Close this link: its peer does not answer, or it is not needed."""

    link: LinkId


class Dead(NamedTuple):
    """The peer's streams end now."""

    reason: Literal["refused", "silent"]


Plan = Dial | Probe | GiveUp | Dead


class Contact:
    """Links and dials to one peer.

    `links` is in order of preference: direct ones first, among equals the newest heard from.
    """

    def __init__(
        self,
        endpoints: tuple[str, ...],
        *,
        keepalive_s: float,
        grace_s: float,
        jitter: Callable[[float], float],
    ) -> None:
        self.dials = Dials(jitter)
        self.redial = Redial(jitter)
        self.endpoints = endpoints
        self.is_kept = True
        """Linked also while nobody needs it; else dialled on demand, closed when idle."""
        self.is_kept_there = False
        """The peer keeps its link to us, and would only dial anew."""
        self.links: list[LinkState] = []
        self.unproved: list[LinkState] = []
        """Links of which it is not known that they lead to the peer; at most UNPROVED_MAX accepted ones."""
        self.has_streams = False
        self.has_mail = False
        """Out-of-band messages wait for a way, or for their confirmation."""
        self.heard_at: float | None = None
        self.last_failure = ""
        self._keepalive_s = keepalive_s
        self._grace_s = grace_s
        self._jitter = jitter
        self._lost_at: float | None = None
        self._leave_at: float | None = None
        self._used_at = 0.0
        self._plans: list[Plan] = []
        self._punching: dict[str, float] = {}
        self._beside = Beside()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where it may be dialled, in the order of preference."""
        return self.dials.endpoints

    @endpoints.setter
    def endpoints(self, endpoints: tuple[str, ...]) -> None:
        self.offer([Known(EndpointKind.FIXED, endpoint) for endpoint in endpoints])

    def offer(self, known: Sequence[Known]) -> None:
        """Replaces the list of endpoints; the preferred ones first."""
        self.dials.offer(known)

    # --- outside events --------------------------------------------------------------------------

    def takes(self, protocol: str, endpoint: str) -> bool:
        """A dial succeeded: is its link still wanted, or was another one faster?"""
        self.dials.came_up(endpoint)
        if self._beside.ends_dial(endpoint):
            return True
        return not any(
            state.dialled and not state.probed and not state.is_tentative
            for state in self._direct_of(protocol)
        )

    def link_up(
        self,
        link: LinkId,
        protocol: str,
        endpoint: str,
        dialled: bool,
        now: float,
        relayed: bool = False,
        is_lossy: bool = False,
    ) -> LinkState:
        """A link to the peer is open (for one we did not dial: and spoken for by a message of it)."""
        self.dials.came_up(endpoint)
        is_punch = dialled and now < self._punching.pop(endpoint, now)
        if dialled:
            is_unproved = is_punch or not self.dials.is_fixed(endpoint)
        else:
            is_unproved = is_lossy or self._has_living()
        state = LinkState(
            link, protocol, dialled, endpoint, now, now, now,
            relayed=relayed, is_lossy=is_lossy, is_tentative=is_lossy and dialled,
            is_unproved=is_unproved and not relayed, is_punch=is_punch,
        )  # fmt: skip
        state.early = self._jitter(0.1)
        self.used(state, now)
        if dialled or is_unproved:
            state.owed_since = now  # it has to answer once: a wrong key would never
        if state.is_unproved:
            rtts = [other.rtt_s for other in self.links if other.rtt_s is not None]
            state.retry_s = max(PUNCH_RETRY_S, 1.5 * min(rtts, default=0.0))
        if state.is_unproved:
            accepted = [other for other in self.unproved if not other.dialled]
            if len(accepted) >= UNPROVED_MAX and not dialled:
                self._plans.append(GiveUp(accepted[0].link))
            self.unproved.append(state)
            return state
        self._used_at = now
        # `heard` brings it to the front: one that is new waits behind, a tentative one behind all
        place = len(self.links)
        if not state.is_tentative:
            place -= sum(1 for other in self.links if other.is_tentative)
        self.links.insert(place, state)
        if not relayed and not state.is_tentative:
            self.redial.at = None
        return state

    def link_down(self, link: LinkId, now: float, refused: bool = False) -> None:
        """The link is gone; dials again at once if the peer has endpoints.

        `refused`: the peer's machine says that nobody is there.
        """
        state = next((s for s in [*self.links, *self.unproved] if s.link == link), None)
        if state is None:
            return
        if state.is_unproved:
            self.unproved.remove(state)
            if state.dialled and not state.is_punch:
                self.dial_failed(state.endpoint, refused, "no answer", now)
            return
        self.links.remove(state)
        self._beside.forget_dials()
        if not state.is_lossy and any(
            s.dialled and not s.probed for s in self._direct_of(state.protocol)
        ):
            self._beside.failed(now)
            return  # it was one of several
        if state.dialled and not state.relayed and now < state.up_at + SHORT_LIFE_S:
            self.redial.failures += 1
        if self._lost_at is None and all(other.heard_at == other.up_at for other in self.links):
            self._lost_at = now  # what is left was never heard
        if state.is_tentative:
            self.dial_failed(state.endpoint, refused, "refused" if refused else "no answer", now)
            return
        if state.relayed:
            if not self.links:
                self._judge()
            return
        if state.dialled and state.heard_at == state.up_at:
            self.dials.failed(state.endpoint, refused, now)
        for other in self.links:
            if other.is_lossy and not other.is_tentative and other.owed_since is None:
                self.ask(other, now)  # nobody would tell if it went the same way
        if self.direct() is None and self.endpoints and self._is_wanted():
            self.redial.again(now, self._is_waiting())
        else:
            self._seek_other(now)

    def believes_refusal(self, state: LinkState) -> bool:
        """Does "nobody is there" end this link?"""
        return state.dialled and not state.is_punch and self.dials.is_fixed(state.endpoint)

    def heard(self, state: LinkState, now: float) -> None:
        """A genuine message came over this link."""
        self.heard_at = now
        self._lost_at = None
        if state.is_unproved or state.is_tentative:  # only an answer tells that it came from there
            state.heard_at = now
            return
        if state.heard_at == state.up_at and state.dialled and not state.relayed:
            self._answered(state)
        state.heard(now)
        if not state.relayed:
            self.redial.reached()
        if self.links[0] is not state:
            self._to_front(state)
        if state.relayed:
            self._doubt_direct(now)

    def proved(self, state: LinkState, now: float) -> None:
        """A probe was answered over this very link: its peer is where it seems to be."""
        if not state.is_unproved and not state.is_tentative:
            return
        if state.is_unproved:
            self.unproved.remove(state)
            self.links.append(state)
            self._used_at = now
            if not state.dialled:
                self._retire(state)
            for other in self.links:
                if other is not state and self._may_replace(state, other, now):
                    self.ask(other, now)
        state.is_unproved = state.is_tentative = False
        state.up_at = now - SHORT_LIFE_S
        if state.dialled:
            self._answered(state)
        self.redial.at = None
        self.heard(state, now)

    def stalled(self, state: LinkState, silent_s: float, now: float) -> None:
        """The other machine has confirmed nothing on this connection for so long.

        If that makes it silent it is asked, and the peer is dialled at the same time: once a way was cut, TCP
        tries it ever more seldom.
        """
        if not state.stalled(silent_s, now):
            return
        self._plans.append(Probe(state.link, False))
        if self._has_living():
            return
        self.redial.missed(now)
        if self._is_wanted() and not self._is_dialling():
            self._dial(now)

    def check(self, state: LinkState) -> None:
        """Is it still there? It was not heard for a while, which need not mean anything."""
        if state.owed_since is None:
            self._plans.append(Probe(state.link, False))

    def heard_of(self, now: float) -> None:
        """The mesh has news of the peer: who waits to dial it again does so soon."""
        if self._is_wanted() and self.endpoints and not self._has_living():
            self.redial.prompt(now)

    def replaces(self, state: LinkState) -> bool:
        """Does this link of the peer look like an older one that has moved?"""
        return not state.dialled and any(not s.dialled for s in self._direct_of(state.protocol))

    def progress(self, state: LinkState, now: float) -> None:
        """Bytes moved on this link, though no whole message yet."""
        if state.owed_since is not None:
            state.owed_since = now

    def sent(self, state: LinkState, expects_answer: bool, now: float) -> None:
        """Something was sent over this link."""
        state.sent_at = now
        if expects_answer and state.owed_since is None:
            state.owed_since = now

    def used(self, state: LinkState, now: float) -> None:
        """Streams moved on this link: silence from now on is probed early, then ever less often."""
        self._used_at = now
        state.used(self._grace_s)

    def dial_failed(
        self, endpoint: str, refused: bool, detail: str, now: float, offline: bool = False
    ) -> None:
        """A dial ended without a link. `offline`: the system says that no way leads there."""
        if self._punching.pop(endpoint, None) is not None:
            return
        if self._beside.ends_dial(endpoint):
            self._beside.failed(now)
            return
        self.dials.failed(endpoint, refused, now)
        self.last_failure = f"{endpoint}: {detail}"
        if offline:
            self.redial.calm(now)
        self._run_dials(now)
        if self._is_dialling():
            return
        if self.direct() is not None:
            self._seek_other(now)
            return
        if not self.links:
            self._judge()
        self.redial.failures += 1
        if not self._is_wanted():
            return
        if offline:
            self.redial.offline(now)
        else:
            self.redial.back_off(now, self._is_waiting())

    def want_stream(self, now: float) -> None:
        """A stream begins; `has_streams` still tells of the others. What was lost before it is past."""
        if not self.has_streams and (self._lost_at is not None or not self.links):
            self._lost_at = now
        self.has_streams = True
        self.want(now)
        if self.direct() is not None and self._lacks_protocol() and not self.redial.is_other_tried:
            self._dial(now)

    def leave(self, now: float) -> None:
        """The peer is no longer configured: its dialled links end soon."""
        self.endpoints = ()
        self._leave_at = now + LEAVE_S

    def want(self, now: float) -> None:
        """Somebody needs the peer now: no waiting for the back-off."""
        if self.direct() is None and not self._is_dialling() and self.endpoints:
            self._dial(now)

    def want_other(self, now: float) -> None:
        """A link stands; one of each other protocol is wanted, too."""
        if self._lacks_protocol() and not self._is_dialling():
            self._dial(now)

    def want_beside(self, link: LinkId, now: float) -> None:
        """Over this link much flows, and other streams should not wait behind it: BESIDE_MAX more are wanted.

        Only whoever dialled the first one dials them. They are closed BESIDE_S after this was last said.
        """
        self._beside.wanted(now)
        state = next((s for s in self.links if s.link == link), None)
        if state is None or not state.dialled or state.relayed:
            return
        if self._is_dialling() or state.endpoint not in self.dials.endpoints:
            return
        missing = self._beside.missing(self._direct_of(state.protocol), state.endpoint, now)
        self._plans += [Dial(state.endpoint)] * missing

    def punch(self, endpoints: Sequence[str], now: float) -> None:
        """The peer sends to us now, so do we: each side's probes open its own NAT for the other's."""
        self._punching = {}
        for endpoint in endpoints:
            if not any(state.endpoint == endpoint for state in [*self.links, *self.unproved]):
                self._punching[endpoint] = now + PUNCH_S
                self._plans.append(Dial(endpoint))

    def direct(self) -> LinkState | None:
        """The preferred link that goes over nobody else; a tentative one is none yet."""
        if not self.links or self.links[0].relayed or self.links[0].is_tentative:
            return None
        return self.links[0]

    def carrier(self) -> LinkState | None:
        """The direct link to send over: the preferred one that is not silent, if there is any such."""
        for state in self.links:
            if not (state.probed or state.relayed or state.is_tentative):
                return state
        return self.direct()

    @property
    def is_failing(self) -> bool:
        """No link, and tries to open one have failed again and again."""
        return not self.links and self.redial.is_failing

    @property
    def is_reached(self) -> bool:
        """Is there a direct link that is heard?"""
        return self._has_living()

    def best(self) -> LinkState:
        """The link to send over: the preferred one that is not silent. There must be one."""
        return next((state for state in self.links if not state.probed), self.links[0])

    def is_silent(self) -> bool:
        """Is no link heard though answers are owed? A tentative one never was."""
        return all(state.probed or state.is_tentative for state in self.links)

    def ask(self, state: LinkState, now: float) -> None:
        """Is this link still there? Until it has answered, others are preferred."""
        state.doubt(now)
        self._plans.append(Probe(state.link, False))

    def ask_all(self, now: float) -> None:
        """As `ask`, of every direct link that has not been asked."""
        for state in self.links:
            if not (state.probed or state.relayed or state.is_tentative):
                self.ask(state, now)

    def is_neighbour_silent(self) -> bool:
        """Is no direct link heard though answers are owed, so that nothing may be going over this peer?"""
        direct = [state for state in self.links if not state.relayed and not state.is_tentative]
        return bool(direct) and all(state.probed for state in direct)

    def doubt(self, since: float, now: float) -> None:
        """What goes over this peer to others has not been answered since then: is the peer there?

        A datagram link may be dead without a word, or the peer not know whose it is, because a NAT on the
        way has given it another address: messages that only pass the peer do not tell it.
        """
        state = self.carrier()
        if state is not None and state.owed_since is None and state.heard_at < since:
            state.owed_since = now
            state.retry_s = max(HURRY_S, 3 * (state.rtt_s or 0.0))
            self._plans.append(Probe(state.link, False))

    def wake(self, now: float) -> None:
        """After sleep, or when the network changed: one try of everything, at once.

        What is asked has HURRY_S; a peer with streams is dialled at the same time, since a link that
        has come through may take seconds to find that out.
        """
        self.redial.forget()
        self.dials.forget()
        self._beside.forget_dials()
        for state in self.links:
            self.ask(state, now)
        if not self._is_wanted() or not self.endpoints:
            return
        if self.has_streams or self.direct() is None:
            self._dial(now)
        else:
            rtts = [state.rtt_s for state in self.links if state.rtt_s is not None]
            self.redial.at = now + max(HURRY_S, 3 * min(rtts, default=0.0))

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self.redial.is_due(now):
            self._dial(now)
        self._run_dials(now)
        if self._leave_at is not None and now >= self._leave_at:
            self._leave_at = None
            if not self.endpoints:
                self._give_up_dialled()
        if self._is_idle() and now >= self._idle_at():
            self._used_at = now
            if self._is_wanted() or self.is_kept_there:
                self._plans += [GiveUp(state.link) for state in self._spare()]
            else:
                self._give_up_dialled()
        for endpoint in self.dials.overdue(now):
            self.dial_failed(endpoint, False, "no answer in time", now)
        if now >= self._beside.ends_at(self.links):
            self._beside.wanted(now)
            self._plans += [GiveUp(state.link) for state in self._beside.those(self.links)]
        for state in [*self.links, *self.unproved]:
            self._look_at(state, now)
        if self._is_in_hurry() and self.redial.hurry(now, self.has_streams):
            self.dials.renew(now, self._fine())
            self._run_dials(now)
        if self.has_streams and self._lost_at is not None and now >= self._lost_at + self._grace_s:
            self._lost_at = None
            self._plans.append(Dead("silent"))

    def _look_at(self, state: LinkState, now: float) -> None:
        """Due work of one link."""
        state.hold_s = self._hold_s(state)
        match state.look(now, self._keepalive_s, self.has_streams, self._jitter):
            case Verdict.ASK:
                self._plans.append(Probe(state.link, False))
            case Verdict.KEEP:
                self._plans.append(Probe(state.link, True))
            case Verdict.LOST:
                self._plans.append(GiveUp(state.link))
            case Verdict.UNANSWERED:
                self.redial.failures += 1
                self.last_failure = f"{state.endpoint}: connected, but no answer (wrong key?)"
                self._plans.append(GiveUp(state.link))

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called, monotonic seconds."""
        times: list[float] = self.dials.deadlines()
        if self.redial.at is not None:
            times.append(self.redial.at)
        keepalive_s, is_used = self._keepalive_s, self.has_streams
        states = [*self.links, *self.unproved] if self.unproved else self.links
        for state in states:
            state.hold_s = self._hold_s(state)
            times.append(state.due_at(keepalive_s, is_used))
        if self._is_in_hurry():
            times.append(self.redial.hurries_at(self.has_streams))
        if self._leave_at is not None:
            times.append(self._leave_at)
        if len(self.links) > 1 and (ends := self._beside.ends_at(self.links)) < math.inf:
            times.append(ends)
        if self._is_idle():
            times.append(self._idle_at())
        if self.has_streams and self._lost_at is not None:
            times.append(self._lost_at + self._grace_s)
        return min(times, default=None)

    def has_plans(self) -> bool:
        """Would `take_plans` return something?"""
        return bool(self._plans)

    def take_plans(self) -> list[Plan]:
        """What to do now."""
        plans = self._plans
        if plans:
            self._plans = []
        return plans

    # --- inside ----------------------------------------------------------------------------------

    def _direct_of(self, protocol: str) -> list[LinkState]:
        return [s for s in self.links if s.protocol == protocol and not s.relayed]

    def _has_living(self) -> bool:
        return any(not s.relayed and not s.probed and not s.is_tentative for s in self.links)

    def _retire(self, state: LinkState) -> None:
        """The peer opens BESIDE_MAX links of a kind beside one: no more than that are kept."""
        older = [s for s in self._direct_of(state.protocol) if not s.dialled and s is not state]
        self._plans += [GiveUp(other.link) for other in older[BESIDE_MAX:]]

    def _doubt_direct(self, now: float) -> None:
        """The peer sends over relays: if it was not heard directly of late, its way here may be shut.

        It would know first: it dialled, or its dials fail now, while we only confirm what we hear.
        """
        direct = [state for state in self.links if not state.relayed and not state.is_tentative]
        if all(now >= state.heard_at + RETRY_S for state in direct):
            for state in direct:
                if not state.probed:
                    self.ask(state, now)

    def _may_replace(self, state: LinkState, other: LinkState, now: float) -> bool:
        """Is `other` a link that the peer opened from a place it may have left for that of `state`?"""
        if other.dialled or other.relayed:
            return False
        if host_of(other.endpoint) != host_of(state.endpoint):
            return True
        # one beside it, unless it fell silent
        return other.protocol == state.protocol and now > other.heard_at + RETRY_S

    def _answered(self, state: LinkState) -> None:
        """The first answer on a link that was dialled: others of its protocol are not needed."""
        self.redial.answered()
        self.dials.answered(state.endpoint)
        self.dials.won(state.protocol)
        for other in self._direct_of(state.protocol):
            if other is not state and other.dialled and (other.probed or other.is_tentative):
                self._plans.append(GiveUp(other.link))
        for other in self.unproved:
            if other.dialled and other.protocol == state.protocol:
                self._plans.append(GiveUp(other.link))

    def _to_front(self, state: LinkState) -> None:
        self.links.remove(state)
        place = 0
        if state.relayed:  # behind those that go over nobody; a tentative one is behind all
            place = sum(1 for other in self.links if not (other.relayed or other.is_tentative))
        self.links.insert(place, state)

    def _judge(self) -> None:
        """No link is left: did every endpoint refuse?"""
        if self.has_streams and self.dials.all_refused():
            self._plans.append(Dead("refused"))

    def _give_up_dialled(self) -> None:
        self._plans += [GiveUp(state.link) for state in self.links if state.dialled]

    def _is_wanted(self) -> bool:
        return self.is_kept or self.has_streams or self.has_mail

    def _is_idle(self) -> bool:
        """Will a link be closed if nothing changes?"""
        if self.has_streams or self.has_mail or not self.links:
            return False
        return not (self.is_kept or self.is_kept_there) or bool(self._spare())

    def _idle_at(self) -> float:
        return self._used_at + (SPARE_S if self.is_kept else IDLE_S)

    def _spare(self) -> list[LinkState]:
        """Datagram links that nobody needs while nothing is carried: a connection stands, too.

        A NAT forgets them long before their next keep-alive, and they are quickly dialled again.
        """
        spare = [s for s in self.links if s.is_lossy and s.dialled and not s.keep_s]
        if spare and any(not s.is_lossy and not s.relayed and not s.probed for s in self.links):
            return spare
        return []

    def _is_dialling(self) -> bool:
        return (
            self.dials.is_busy
            or any(state.is_tentative for state in self.links)
            or any(state.dialled for state in self.unproved)
        )

    def _dial(self, now: float) -> None:
        """A round: of every protocol that has no link which is heard."""
        self.redial.began(now)
        self.dials.start(now, self._fine())
        self._run_dials(now)
        if not self.dials.is_busy and self.direct() is None and self._is_wanted():
            self.redial.when(now, self.dials.retry_at())

    def _fine(self) -> set[str]:
        """Protocols and endpoints that need no dial."""
        fine = {
            state.protocol
            for state in self.links
            if not state.relayed and not state.is_tentative and not state.probed
        }
        fine |= {state.endpoint for state in self.links if state.dialled and state.is_lossy}
        return fine | {state.endpoint for state in self.unproved if state.dialled}

    def _is_in_hurry(self) -> bool:
        """Is it wanted, though no link is heard, and may a dial be lost in the same silence?"""
        if not self.dials.has_fixed or not self._is_wanted():
            return False
        has_connection = False
        for state in self.links:  # a loop, not a list: this is asked at every flush
            if not state.is_tentative:
                if not state.probed:
                    return False
                has_connection = has_connection or not state.is_lossy
        return has_connection or self.dials.is_under_way

    def _hold_s(self, state: LinkState) -> float:
        """How long this link stays though it is silent; 0: no longer than any other."""
        if not state.probed or state.dialled or state.is_lossy or state.relayed:
            return 0.0
        is_last = not self.dials.has_fixed and not self._has_living()
        return HOLD_S if is_last and not self.has_streams and not self.has_mail else 0.0

    def _run_dials(self, now: float) -> None:
        self._plans += [Dial(endpoint) for endpoint in self.dials.take_due(now)]

    def _seek_other(self, now: float) -> None:
        """A link stands; another protocol that streams could use is tried again now and then."""
        if not self.has_streams or self.redial.at is not None or self._is_dialling():
            return
        if self._lacks_protocol():
            self.redial.other(now)

    def _lacks_protocol(self) -> bool:
        return not self.dials.protocols() <= {state.protocol for state in self.links}

    def _is_waiting(self) -> bool:
        """Does somebody wait for a link?"""
        return (self.has_streams or self.has_mail) and not self.links
