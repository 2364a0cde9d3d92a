"""How others reach this node: its own endpoints, ways through NATs, and bindings that are kept alive.

Short messages of the kind REACH (docs/wire.md, section 20), the first byte says which:

    SEEN     "your datagrams come from there": to a peer whose datagram link is new and proved, or who asks
    MEET     "I send to these endpoints of yours now, send to these of mine": over a relay, both ways at
             once, so that each side's probes open its own NAT for the other's
    QUIET    "say nothing on this link for so long, then probe me": finds out how long a NAT remembers

What peers see becomes `observed` endpoints of the own record where others can use it. A relayed way in use
is tried to be replaced by a direct one; where that fails the relay stays, and it is tried ever less often.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

from uservpn.errors import PeerFault
from uservpn.kit.endpoint import Endpoint
from uservpn.mesh.addresses import Networks, preferred
from uservpn.mesh.binding import MAX_S, Binding
from uservpn.mesh.contact import LinkState
from uservpn.mesh.observed import Observed
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.node.table import LinkEntry, Peer, Table
from uservpn.types import LinkId, NodeId
from uservpn.wire.constants import Kind

MEET_AGAIN_S: Final = 30.0
"""After a way was tried to be opened in vain it is tried again so much later, then twice as long..."""
MEET_AGAIN_MAX_S: Final = 3600.0
"""...up to this."""
MEET_EVERY_S: Final = 5.0
"""A peer's word makes us send to addresses that it names at most so often..."""
MEET_MAX: Final = 6
"""...and to so many of them."""
FIXED_MAX: Final = 6
LOCAL_MAX: Final = 4
OBSERVED_MAX: Final = 2
"""Of the record's 12 endpoints."""
QUIETS_MAX: Final = 254
DATAGRAM: Final = "udp"
"""The protocol whose one socket makes holes in NATs."""


class Code(enum.IntEnum):
    """The first byte of a REACH message."""

    SEEN = 1
    MEET = 2
    MET = 3
    """The answer to MEET."""
    QUIET = 4
    ASK = 5
    """For SEEN."""


class Reach:
    """This node's endpoints, and the ways to peers that cannot simply be dialled."""

    def __init__(self, table: Table, own: Record) -> None:
        self._table = table
        self._protocols = table.options.protocols
        self.networks = Networks()
        self.observed = Observed()
        self.binding = Binding(table.jitter)
        self._fixed = _fixed(own.endpoints)
        self._local: list[Known] = []
        self._roles = own.roles
        self._quiets: dict[LinkId, tuple[float, float]] = {}
        """Links of others' trials: when to probe, and since when it has to be silent."""
        self._trial_at: float | None = None

    # --- what this node tells of itself ----------------------------------------------------------

    def configure(self, endpoints: Sequence[Known], roles: Role) -> None:
        """The fixed endpoints and roles are others now."""
        self._fixed = _fixed(endpoints)
        self._roles = roles

    def moved(self, local: Sequence[str], interfaces: Sequence[str]) -> None:
        """The machine's addresses: where it listens, and its interfaces (`address/prefix`)."""
        self.networks = Networks(interfaces)
        self._local = [Known(EndpointKind.LOCAL, endpoint) for endpoint in local][:LOCAL_MAX]

    def endpoints(self) -> tuple[Known, ...]:
        """What belongs into the own record."""
        places = [*self._fixed, *self._local]
        if self.wants_reach:
            texts = {place.endpoint for place in places}
            seen = [str(endpoint) for endpoint in self.observed.usable()][:OBSERVED_MAX]
            places += [Known(EndpointKind.OBSERVED, text) for text in seen if text not in texts]
        return tuple(places)

    @property
    def wants_reach(self) -> bool:
        """Is this node of use to others who cannot reach it now? A mere client is not."""
        return bool(self._local or self._fixed or self._roles & Role.EXIT)

    @property
    def is_natted(self) -> bool:
        """Do others see it at an address that is not its own?"""
        hosts = self.observed.hosts()
        return bool(hosts) and bool(hosts - self.networks.addresses)

    def order(self, known: Sequence[Known]) -> list[Known]:
        """What of a peer's endpoints is worth dialling, the best first."""
        own = {place.endpoint for place in (*self._fixed, *self._local)}
        if self._protocols:
            known = [k for k in known if k.endpoint.partition("://")[0] in self._protocols]
        return preferred(known, self.networks, own, self.observed.hosts())

    # --- outside events --------------------------------------------------------------------------

    def wake(self, now: float) -> None:
        """The network may be another one: nothing that was seen holds."""
        self.observed.forget()
        self.binding.enter("")
        self._trial_at = None
        for peer in self._table.peers.values():
            peer.meet_at = peer.meet_failures = 0
            for state in peer.contact.links:
                if state.is_lossy and state.dialled:
                    self._ask(peer, state.link)

    def link_proved(self, peer: Peer, state: LinkState, now: float) -> None:
        """A datagram link is proved: what is seen of it is told to who opened it, or asked."""
        if state.protocol != DATAGRAM:
            return
        if not state.dialled:
            self._tell(peer, state.link)
        elif self.observed.knows(peer.id):
            self._keep_alive(now)
        else:
            self._ask(peer, state.link)

    def link_down(self, link: LinkId) -> None:
        """The link is gone."""
        self._quiets.pop(link, None)
        if link == self.binding.trial:
            self.binding.disturbed()

    def probed(self, link: LinkId, now: float) -> None:
        """A PROBE came over this link."""
        if link == self.binding.trial and self.binding.probed(link, now):
            self._trial_at = now
            self._keep_alive(now)

    def hear(self, peer: Peer, link: LinkId, entry: LinkEntry, payload: bytes, now: float) -> bool:
        """A REACH message; True: this node's endpoints may be others now.

        Raises:
            PeerFault: it is malformed.
        """
        code, body = payload[:1], payload[1:]
        if code == bytes((Code.SEEN,)):
            return self._hear_seen(peer, entry, body, now)
        if code in (bytes((Code.MEET,)), bytes((Code.MET,))):
            self._hear_meet(peer, link, code[0] == Code.MEET, body, now)
        elif code == bytes((Code.ASK,)):
            if not entry.hops:
                self._tell(peer, link)
        elif code == bytes((Code.QUIET,)):
            if len(body) < 2:
                raise PeerFault("a request for silence is cut off")
            delay = min(MAX_S, int.from_bytes(body[:2], "big"))
            if entry.hops == () and len(self._quiets) < QUIETS_MAX:
                self._quiets[link] = now + delay, now
        return False

    # --- meeting ---------------------------------------------------------------------------------

    def may_meet(self, peer: Peer, now: float) -> bool:
        """Is it time to try for a direct way to a peer that is only reached over relays?"""
        return now >= peer.meet_at and peer.is_needed() and peer.contact.direct() is None

    def meet(self, peer: Peer, link: LinkId, now: float) -> None:
        """Asks the peer, over this relayed link, to open a direct way together."""
        own = self._meeting_places()
        wait = min(MEET_AGAIN_MAX_S, MEET_AGAIN_S * 2.0 ** min(peer.meet_failures, 8))
        peer.meet_at = now + wait * (0.75 + self._table.jitter(0.5))
        peer.meet_failures += 1
        if own:
            self._table.touch(peer)
            peer.outbox.append((link, Kind.REACH, _packed(Code.MEET, own), 0))

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        for link, (due, since) in list(self._quiets.items()):
            if now >= due:
                del self._quiets[link]
                entry = self._table.links.get(link)
                if entry is not None and entry.peer is not None and _silent(entry, since):
                    self._table.touch(entry.peer)
                    self._table.probe(entry.peer, link, now)
        trial = self.binding.trial
        if trial is not None and not _silent(
            self._table.links.get(trial), self.binding.trial_began
        ):
            self.binding.disturbed()
            self._trial_at = now + self.binding.interval_s
        if self.binding.on_deadline(now):
            self._trial_at = now
        if self._trial_at is not None and now >= self._trial_at:
            self._trial_at = None
            self._keep_alive(now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        times = [due for due, _ in self._quiets.values()]
        times += [at for at in (self._trial_at, self.binding.next_deadline()) if at is not None]
        return min(times, default=None)

    # --- inside ----------------------------------------------------------------------------------

    def _ask(self, peer: Peer, link: LinkId) -> None:
        payload = bytes((Code.ASK,)) + self._table.padding()
        self._table.touch(peer)
        peer.outbox.append((link, Kind.REACH, payload, 0))

    def _tell(self, peer: Peer, link: LinkId) -> None:
        place = Known(EndpointKind.OBSERVED, self._table.links[link].remote)
        if not _is_datagram(place):
            return  # the port of a connection is of no use to anybody else
        payload = _packed(Code.SEEN, [place]) + self._table.padding()
        self._table.touch(peer)
        peer.outbox.append((link, Kind.REACH, payload, 0))

    def _hear_seen(self, peer: Peer, entry: LinkEntry, body: bytes, now: float) -> bool:
        for place in _unpacked(body, 1):
            if _is_datagram(place) and not entry.hops:
                self.observed.learn(peer.id, Endpoint.parse(place.endpoint), now)
                self._keep_alive(now)
                return True
        return False

    def _hear_meet(
        self, peer: Peer, link: LinkId, wants_answer: bool, body: bytes, now: float
    ) -> None:
        known = [place for place in _unpacked(body, MEET_MAX) if _is_datagram(place)]
        if now < peer.met_at + MEET_EVERY_S or peer.contact.direct() is not None:
            return
        peer.met_at = now
        peer.meet_at = max(peer.meet_at, now + MEET_AGAIN_S)
        self._table.touch(peer)
        if wants_answer and (own := self._meeting_places()):
            peer.outbox.append((link, Kind.REACH, _packed(Code.MET, own), 0))
        peer.contact.punch([place.endpoint for place in self.order(known)], now)

    def _meeting_places(self) -> list[Known]:
        """Where our probes come from, as far as we know."""
        seen = [Known(EndpointKind.OBSERVED, str(endpoint)) for endpoint in self.observed.newest()]
        places = [*seen, *self._fixed, *self._local]
        return [place for place in places if _is_datagram(place)][:MEET_MAX]

    def _keep_alive(self, now: float) -> None:
        """Sets how often each of our datagram links speaks; begins a trial if there is one to make."""
        is_needed = self.wants_reach and self.is_natted
        self.binding.enter(min(self.observed.hosts(), default="") if is_needed else "")
        homes: list[tuple[NodeId, LinkId]] = []
        for peer in self._table.peers.values():
            for state in peer.contact.links:
                if state.link == self.binding.trial:
                    continue
                if state.is_lossy and state.dialled and not state.is_tentative:
                    state.keep_s = self.binding.interval_s if is_needed else 0.0
                    self._table.touch(peer)
                    if is_needed and peer.contact.is_kept and not peer.is_needed():
                        homes.append((peer.id, state.link))
        if homes and self.binding.wants_trial():
            self._begin_trial(*min(homes), now)
        elif is_needed and self._trial_at is None and self.binding.trial is None:
            self._trial_at = self.binding.next_deadline() or now + self.binding.interval_s

    def _begin_trial(self, node: NodeId, link: LinkId, now: float) -> None:
        peer = self._table.peers[node]
        state = self._table.links[link].state
        assert state is not None
        delay = self.binding.asked(link, now)
        state.keep_s = 0.0  # nothing may go out before the peer's probe has come
        payload = bytes((Code.QUIET,)) + round(delay).to_bytes(2, "big")
        self._table.touch(peer)
        peer.outbox.append((link, Kind.REACH, payload + self._table.padding(), 0))


def _fixed(endpoints: Sequence[Known]) -> list[Known]:
    return [place for place in endpoints if place.kind == EndpointKind.FIXED][:FIXED_MAX]


def _is_datagram(place: Known) -> bool:
    return place.endpoint.startswith(DATAGRAM + "://")


def _silent(entry: LinkEntry | None, since: float) -> bool:
    """Has nothing been sent or heard on it, but what came with the request itself?"""
    if entry is None or entry.state is None:
        return False
    state = entry.state
    allowed = since + 1.0 + 2 * (state.rtt_s or 0.0)
    return state.sent_at <= allowed and state.heard_at <= allowed


def _packed(code: Code, endpoints: Sequence[Known]) -> bytes:
    parts = [bytes((code, len(endpoints)))]
    for kind, endpoint in endpoints:
        data = endpoint.encode()
        parts += (bytes((kind, len(data))), data)
    return b"".join(parts)


def _unpacked(body: bytes, count_max: int) -> list[Known]:
    """The endpoints in a message, of more than `count_max` the first ones. Raises PeerFault."""
    try:
        found = []
        at = 1
        for _ in range(min(body[0], count_max)):
            kind, end = EndpointKind(body[at]), at + 2 + body[at + 1]
            if end > len(body):
                raise PeerFault("a list of endpoints is cut off")
            found.append(Known(kind, str(Endpoint.parse(body[at + 2 : end].decode()))))
            at = end
        return found
    except (IndexError, ValueError) as error:
        raise PeerFault(f"a list of endpoints is malformed: {error}") from None
