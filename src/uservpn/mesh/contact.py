"""How one node stays in touch with one other: dialling, back-off, liveness, and when it counts as dead.

A `Contact` never sees bytes. It is told that links came up or went down, that the peer was heard, and
that dials failed; it answers with plans: dial this endpoint, probe that link, give that link up. A
node that is only known by the links it opened to us (no endpoints) is never dialled.

A datagram link is "open" at once, whether anybody is there or not. Until its peer was heard on it, it is
*tentative*: it may carry messages where nothing better is there, but counts as a dial still under way.

A peer is *dead* for its streams when every endpoint refuses, or when nothing of it was heard for the
grace time, which begins when its last link is lost, or with the first stream that finds none. (That
it is back with a new boot is seen by its session, not here.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from uservpn.types import LinkId

BACKOFF_START_S: Final = 0.25
BACKOFF_MAX_S: Final = 120.0
BACKOFF_BUSY_MAX_S: Final = 2.0
"""While streams wait the next attempt is never further away than this."""
ANSWER_S: Final = 4.0
"""A link whose peer owes an answer is probed after so long (or 4 round trips), and given up after twice."""
DIAL_LIMIT_S: Final = 8.0
"""How long a dial may take; one without any result counts as failed a little later."""
_DIAL_LATE_S: Final = 2.0
RETRY_S: Final = 1.0
"""A lossy link whose peer owes an answer is probed after so long, then after 3 and 7 times that (RFC 6298's
start value and back-off): one lost datagram must not cost ANSWER_S, nor two of them the link."""
IDLE_S: Final = 600.0
"""A link that was opened on demand and carried no stream for so long is closed."""
SHORT_LIFE_S: Final = 1.0
"""A link that ended this soon counts as a failed dial: else it would be dialled in a hot loop."""
LEAVE_S: Final = 1.0
"""Links to a peer that is no longer wanted stay this long, so that the ends of streams get through."""


class Dial(NamedTuple):
    """Open a link to this endpoint."""

    endpoint: str


class Probe(NamedTuple):
    """Send a PROBE (or, when idle, a KEEPALIVE) over this link."""

    link: LinkId
    is_keepalive: bool


class GiveUp(NamedTuple):
    """Close this link: its peer does not answer."""

    link: LinkId


class Dead(NamedTuple):
    """The peer's streams end now."""

    reason: Literal["refused", "silent"]


Plan = Dial | Probe | GiveUp | Dead


@dataclass(slots=True)
class LinkState:
    """What is known of one open link to the peer."""

    link: LinkId
    protocol: str
    dialled: bool
    endpoint: str
    up_at: float
    heard_at: float
    sent_at: float
    owed_since: float | None = None
    """Since when the peer owes an answer on this link; None: it does not."""
    probed: bool = False
    early_s: float = 0.0
    """How much before its time the next KEEPALIVE goes, so that a mesh's do not fall together."""
    check_s: float = 0.0
    """While streams wait on a silent link: how much silence until it is probed; doubles."""
    rtt_s: float | None = None
    """Smoothed round trip of this link (RFC 6298, alpha 1/8)."""
    relayed: bool = False
    """It goes over other nodes: used while no direct one carries."""
    is_lossy: bool = False
    """Messages may be lost on it, and it ends without a word."""
    is_tentative: bool = False
    """A lossy one that was dialled and has not been answered yet."""
    retry_s: float = RETRY_S
    """When, after `owed_since`, the next probe of a lossy link goes."""


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
        self.endpoints = endpoints
        self.is_kept = True
        """Linked also while nobody needs it; else dialled on demand, closed when idle."""
        self.links: list[LinkState] = []
        self.has_streams = False
        self.has_mail = False
        """Out-of-band messages wait for a way, or for their confirmation."""
        self.heard_at: float | None = None
        self.last_failure = ""
        self._keepalive_s = keepalive_s
        self._grace_s = grace_s
        self._jitter = jitter
        self._dialling: dict[str, float] = {}
        self._refused: set[str] = set()
        self._failures = 0
        self._dial_at: float | None = None
        self._lost_at: float | None = None
        self._leave_at: float | None = None
        self._used_at = 0.0
        self._plans: list[Plan] = []

    # --- outside events --------------------------------------------------------------------------

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
        """A link to the peer is open (for one we did not dial: and proved to be the peer's)."""
        if (
            not dialled and not relayed
        ):  # the peer dials one link of a kind at a time: an older one is dead
            for state in self.links:
                if not state.dialled and state.protocol == protocol:
                    self._plans.append(GiveUp(state.link))
        self._dialling.pop(endpoint, None)
        state = LinkState(
            link, protocol, dialled, endpoint, now, now, now,
            relayed=relayed, is_lossy=is_lossy, is_tentative=is_lossy and dialled,
        )  # fmt: skip
        state.early_s = self._jitter(self._keepalive_s / 10)
        self.used(state, now)
        if dialled:
            state.owed_since = now  # it has to answer once: a wrong key would never
        # `heard` brings it to the front: an unproved one waits behind, a tentative one behind all
        place = len(self.links)
        if not state.is_tentative:
            place -= sum(1 for other in self.links if other.is_tentative)
        self.links.insert(place, state)
        if not relayed and not state.is_tentative:
            self._refused.clear()
            self._dial_at = None
        return state

    def link_down(self, link: LinkId, now: float, refused: bool = False) -> None:
        """The link is gone; dials again at once if the peer has endpoints.

        `refused`: the peer's machine says that nobody is there.
        """
        state = next((state for state in self.links if state.link == link), None)
        if state is None:
            return
        self.links.remove(state)
        if state.dialled and not state.relayed and now < state.up_at + SHORT_LIFE_S:
            self._failures += 1
        if not self.links and self._lost_at is None:
            self._lost_at = now
        if state.is_tentative:
            self.dial_failed(state.endpoint, refused, "refused" if refused else "no answer", now)
        elif state.relayed:
            if not self.links:
                self._judge()
        elif self.direct() is None:
            self._refused.clear()
            if self.endpoints and self._is_wanted():
                self._dial_at = now if self._failures == 0 else now + self._backoff()

    def heard(self, state: LinkState, now: float) -> None:
        """A genuine message came over this link."""
        self.heard_at = state.heard_at = now
        self._lost_at = None
        state.owed_since = None
        state.probed = False
        state.retry_s = RETRY_S
        if state.is_tentative:
            state.is_tentative = False
            self._refused.clear()
            self._dial_at = None
        if not state.relayed:
            self._failures = 0
        if self.links[0] is not state:
            self.links.remove(state)
            place = sum(1 for other in self.links if not other.relayed) if state.relayed else 0
            self.links.insert(place, state)

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
        state.check_s = max(ANSWER_S, self._grace_s / 2)

    def dial_failed(self, endpoint: str, refused: bool, detail: str, now: float) -> None:
        """A dial ended without a link."""
        self._dialling.pop(endpoint, None)
        self.last_failure = f"{endpoint}: {detail}"
        if refused:
            self._refused.add(endpoint)
        if self._is_dialling() or self.direct() is not None:
            return
        if not self.links:
            self._judge()
        self._failures += 1
        if self._is_wanted():
            self._dial_at = now + self._backoff()

    def measured(self, state: LinkState, rtt_s: float) -> None:
        """One round trip over this link."""
        state.rtt_s = rtt_s if state.rtt_s is None else state.rtt_s + (rtt_s - state.rtt_s) / 8

    def want_stream(self, now: float) -> None:
        """A stream begins; `has_streams` still tells of the others. What was lost before it is past."""
        if not self.has_streams and (self._lost_at is not None or not self.links):
            self._lost_at = now
        self.has_streams = True
        self.want(now)

    def leave(self, now: float) -> None:
        """The peer is no longer configured: its dialled links end soon."""
        self.endpoints = ()
        self._leave_at = now + LEAVE_S

    def want(self, now: float) -> None:
        """Somebody needs the peer now: no waiting for the back-off."""
        if self.direct() is None and not self._is_dialling() and self.endpoints:
            self._dial(now)

    def direct(self) -> LinkState | None:
        """The preferred link that goes over nobody else; a tentative one is none yet."""
        if not self.links or self.links[0].relayed or self.links[0].is_tentative:
            return None
        return self.links[0]

    def best(self) -> LinkState:
        """The link to send over: the preferred one that is not silent. There must be one."""
        return next((state for state in self.links if not state.probed), self.links[0])

    def wake(self, now: float) -> None:
        """After sleep, or when the network changed: one try of everything, at once."""
        self._failures = 0
        for state in self.links:
            state.owed_since = now
            state.probed = True
            self._plans.append(Probe(state.link, False))
        self.want(now)

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self._dial_at is not None and now >= self._dial_at:
            self._dial(now)
        if self._leave_at is not None and now >= self._leave_at:
            self._leave_at = None
            if not self.endpoints:
                self._give_up_dialled()
        if self._is_idle() and now >= self._used_at + IDLE_S:
            self._used_at = now
            self._give_up_dialled()
        for endpoint, until in list(self._dialling.items()):
            if now >= until:
                self.dial_failed(endpoint, False, "no answer in time", now)
        for state in list(self.links):
            patience = max(ANSWER_S, 4 * (state.rtt_s or 0.0))
            if state.owed_since is not None and now >= state.owed_since + 2 * patience:
                if state.heard_at == state.up_at and not state.is_tentative:
                    self._failures += 1
                    self.last_failure = f"{state.endpoint}: connected, but no answer (wrong key?)"
                self._plans.append(GiveUp(state.link))
                state.owed_since = None
            elif (
                state.owed_since is not None
                and not state.probed
                and now >= state.owed_since + patience
            ):
                state.probed = True
                self._plans.append(Probe(state.link, False))
            elif (
                state.is_lossy
                and state.owed_since is not None
                and now >= state.owed_since + state.retry_s
            ):
                state.retry_s = 2 * state.retry_s + RETRY_S
                self._plans.append(Probe(state.link, False))
            elif self.has_streams and now >= self._check_at(state):
                state.check_s = min(2 * state.check_s, self._keepalive_s)
                self._plans.append(Probe(state.link, False))
            elif now >= state.sent_at + self._keepalive_s - state.early_s:
                state.sent_at = now
                state.early_s = self._jitter(self._keepalive_s / 10)
                self._plans.append(Probe(state.link, True))
            elif now >= state.heard_at + 2.5 * self._keepalive_s:
                self._plans.append(GiveUp(state.link))
                state.heard_at = now
        if self.has_streams and self._lost_at is not None and now >= self._lost_at + self._grace_s:
            self._lost_at = None
            self._plans.append(Dead("silent"))

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called, monotonic seconds."""
        times: list[float] = list(self._dialling.values())
        if self._dial_at is not None:
            times.append(self._dial_at)
        for state in self.links:
            if state.owed_since is not None:
                patience = max(ANSWER_S, 4 * (state.rtt_s or 0.0))
                times.append(state.owed_since + (2 * patience if state.probed else patience))
                if state.is_lossy:
                    times.append(state.owed_since + state.retry_s)
            elif self.has_streams:
                times.append(self._check_at(state))
            times.append(state.sent_at + self._keepalive_s - state.early_s)
            times.append(state.heard_at + 2.5 * self._keepalive_s)
        if self._leave_at is not None:
            times.append(self._leave_at)
        if self._is_idle():
            times.append(self._used_at + IDLE_S)
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

    def _judge(self) -> None:
        """No link is left: did every endpoint refuse?"""
        refused = bool(self._refused) and self._refused.issuperset(self.endpoints)
        if self.has_streams and refused:
            self._plans.append(Dead("refused"))

    def _give_up_dialled(self) -> None:
        self._plans += [GiveUp(state.link) for state in self.links if state.dialled]

    def _is_wanted(self) -> bool:
        return self.is_kept or self.has_streams or self.has_mail

    def _is_idle(self) -> bool:
        return not self._is_wanted() and bool(self.links)

    def _check_at(self, state: LinkState) -> float:
        return max(state.heard_at, state.sent_at) + state.check_s

    def _dial(self, now: float) -> None:
        self._dial_at = None
        self._refused.clear()
        for endpoint in self.endpoints:
            if endpoint not in self._dialling and not self._has_tentative(endpoint):
                self._dialling[endpoint] = now + DIAL_LIMIT_S + _DIAL_LATE_S
                self._plans.append(Dial(endpoint))

    def _is_dialling(self) -> bool:
        return bool(self._dialling) or any(state.is_tentative for state in self.links)

    def _has_tentative(self, endpoint: str) -> bool:
        return any(state.is_tentative and state.endpoint == endpoint for state in self.links)

    def _backoff(self) -> float:
        is_waiting = (self.has_streams or self.has_mail) and not self.links
        most = BACKOFF_BUSY_MAX_S if is_waiting else BACKOFF_MAX_S
        delay = min(most, BACKOFF_START_S * 2.0 ** min(self._failures - 1, 16))
        return delay * (0.5 + self._jitter(0.5))
