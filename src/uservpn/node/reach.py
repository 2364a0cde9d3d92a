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
from itertools import chain
from typing import Final

from uservpn.errors import PeerFault
from uservpn.kit.endpoint import Endpoint
from uservpn.mesh.addresses import Networks, Scope, is_here, preferred, scope_of
from uservpn.mesh.liveness import LinkState
from uservpn.mesh.observed import Observed
from uservpn.mesh.records import EndpointKind, Known, Record, Role, known_of
from uservpn.node.bindings import DATAGRAM, QUIET_CODE, Bindings
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
FRESH_S: Final = 15.0
"""What was seen of us so long ago holds: no NAT forgets so soon."""


class Code(enum.IntEnum):
    """The first byte of a REACH message."""

    SEEN = 1
    MEET = 2
    MET = 3
    """The answer to MEET."""
    QUIET = QUIET_CODE
    ASK = 5
    """For SEEN."""


class Reach:
    """This node's endpoints, and the ways to peers that cannot simply be dialled."""

    def __init__(self, table: Table, own: Record) -> None:
        self._table = table
        self._protocols = table.options.protocols
        self.networks = Networks()
        self.observed = Observed()
        self.bindings = Bindings(table)
        self._proposals: dict[NodeId, tuple[LinkId, Code]] = {}
        """Who is to hear our places as soon as we know them."""
        self._fixed = _fixed(own.endpoints)
        self._local: list[Known] = []
        self._is_on_loopback = False
        self._roles = own.roles

    # --- what this node tells of itself ----------------------------------------------------------

    def configure(self, endpoints: Sequence[Known], roles: Role) -> None:
        """The fixed endpoints and roles are others now."""
        self._fixed = _fixed(endpoints)
        self._roles = roles

    def moved(
        self, local: Sequence[str], interfaces: Sequence[str], is_on_loopback: bool = False
    ) -> None:
        """The machine's addresses: where it listens, and its interfaces (`address/prefix`).

        `is_on_loopback`: it (also) listens where only programs of this machine reach it.
        """
        self._is_on_loopback = is_on_loopback
        self.networks = Networks(interfaces)
        self._local = [Known(EndpointKind.LOCAL, endpoint) for endpoint in local][:LOCAL_MAX]

    def endpoints(self) -> tuple[Known, ...]:
        """What belongs into the own record."""
        places = list(self._fixed)
        texts = {place.endpoint for place in places}
        places += [place for place in self._local if place.endpoint not in texts]
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

    def order(
        self, peer: Peer, known: Sequence[Known], configured: Sequence[Known] = ()
    ) -> list[Known]:
        """What of a peer's endpoints is worth dialling, the best first.

        `known` is what others say: nobody makes this node dial an address where no other node can be, or a
        program of its own machine, unless the mesh is on that machine. `configured` is the owner's word.
        """
        known = [*configured, *(place for place in known if self._may_dial(peer, place))]
        own = {place.endpoint for place in (*self._fixed, *self._local)}
        if self._protocols:
            known = [k for k in known if k.endpoint.partition("://")[0] in self._protocols]
        return preferred(known, self.networks, own, self.observed.hosts())

    # --- outside events --------------------------------------------------------------------------

    def wake(self, now: float) -> None:
        """The network may be another one: nothing that was seen holds."""
        self.observed.forget()
        self._proposals.clear()
        self._follow(now)
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
        else:
            self._ask(peer, state.link)
            self._follow(now)

    def link_down(self, link: LinkId, now: float) -> None:
        """The link is gone."""
        self.bindings.link_down(link, now)

    def probed(self, link: LinkId, now: float) -> None:
        """A PROBE came over this link."""
        self.bindings.probed(link, now)

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
            if not entry.hops:
                self.bindings.help(link, int.from_bytes(body[:2], "big"), now)
        return False

    # --- meeting ---------------------------------------------------------------------------------

    def may_meet(self, peer: Peer, now: float) -> bool:
        """Is it time to try for a direct way to a peer that is only reached over relays?"""
        return now >= peer.meet_at and peer.is_needed() and peer.contact.direct() is None

    def meet(self, peer: Peer, link: LinkId, now: float) -> None:
        """Asks the peer, over this relayed link, to open a direct way together."""
        wait = min(MEET_AGAIN_MAX_S, MEET_AGAIN_S * 2.0 ** min(peer.meet_failures, 8))
        peer.meet_at = now + wait * (0.75 + self._table.jitter(0.5))
        peer.meet_failures += 1
        self._propose(peer, link, Code.MEET, now)

    def _propose(self, peer: Peer, link: LinkId, code: Code, now: float) -> None:
        """Tells our places, once it is sure that they are right: a NAT forgets what was long silent."""
        if self.bindings.is_kept or now < self.observed.newest_at() + FRESH_S:
            self._send_places(peer, link, code)
            return
        self._proposals[peer.id] = link, code
        links = self.bindings.links()
        if links:
            self._ask(links[0][0], links[0][1].link)
        else:
            self.bindings.relink(now)

    def _send_places(self, peer: Peer, link: LinkId, code: Code) -> None:
        own = self._meeting_places()
        if own:
            self._table.touch(peer)
            peer.outbox.append((link, Kind.REACH, _packed(code, own), 0))

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        self.bindings.on_deadline(now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        return self.bindings.next_deadline()

    # --- questions -------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        """For status: where this node can be reached, and what a NAT in between needs."""
        return {
            "endpoints": [place.endpoint for place in self.endpoints()],
            "kinds": [place.kind.name.lower() for place in self.endpoints()],
            "seen_at": sorted(map(str, self.observed.newest())),
            "nat": self.is_natted,
            "binding_s": self.bindings.binding.interval_s if self.bindings.is_kept else None,
        }

    # --- inside ----------------------------------------------------------------------------------

    def _may_dial(self, peer: Peer, place: Known) -> bool:
        scope = scope_of(place.endpoint)
        return scope is Scope.BEYOND or (scope is Scope.MACHINE and self._shares_machine(peer))

    def _shares_machine(self, peer: Peer) -> bool:
        """Can this peer be on our machine? Where we are reached, start from, or are linked to it there.

        Where we are reached from elsewhere too, a web server here may hand that on to where we listen.
        """
        table = self._table
        is_apart = not all(is_here(place.endpoint) for place in (*self._fixed, *self._local))
        links = (state for state in peer.contact.links if state.dialled or not is_apart)
        remotes = (table.links[state.link].remote for state in links)
        places = (place.endpoint for place in self._fixed)
        servers = (endpoint for endpoints in table.servers.values() for endpoint in endpoints)
        is_on_loopback = self._is_on_loopback and not is_apart
        return is_on_loopback or any(map(is_here, chain(remotes, places, servers)))

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
                endpoint = Endpoint.parse(place.endpoint)
                if self.observed.is_news(peer.id, endpoint):
                    self.bindings.binding.remapped(now)
                before = self.observed.hosts(), self.endpoints()
                self.observed.learn(peer.id, endpoint, now)
                self._follow(now)
                self._send_proposals()
                return before != (self.observed.hosts(), self.endpoints())
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
        if wants_answer:
            self._propose(peer, link, Code.MET, now)
        peer.contact.punch([place.endpoint for place in self.order(peer, known)], now)

    def _send_proposals(self) -> None:
        proposals, self._proposals = self._proposals, {}
        for node, (link, code) in proposals.items():
            if link in self._table.links:
                self._send_places(self._table.peers[node], link, code)

    def _meeting_places(self) -> list[Known]:
        """Where our probes come from, as far as we know."""
        seen = [Known(EndpointKind.OBSERVED, str(endpoint)) for endpoint in self.observed.newest()]
        places = [*seen, *self._fixed, *self._local]
        return [place for place in places if _is_datagram(place)][:MEET_MAX]

    def _follow(self, now: float) -> None:
        """What is seen of us may be another address: what has to be kept alive?"""
        network = min(self.observed.hosts(), default="")
        self.bindings.follow(network if self.wants_reach and self.is_natted else "", now)


def _fixed(endpoints: Sequence[Known]) -> list[Known]:
    return [place for place in endpoints if place.kind == EndpointKind.FIXED][:FIXED_MAX]


def _is_datagram(place: Known) -> bool:
    return place.endpoint.startswith(DATAGRAM + "://")


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
            kind, end = body[at], at + 2 + body[at + 1]
            if end > len(body):
                raise PeerFault("a list of endpoints is cut off")
            known = known_of(kind, body[at + 2 : end].decode())
            if known is not None:
                found.append(known)
            at = end
        return found
    except (IndexError, ValueError) as error:
        raise PeerFault(f"a list of endpoints is malformed: {error}") from None
