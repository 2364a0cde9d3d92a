"""What arrives: passed on, or opened and judged; whose link it came over; then its deed is done.

A message acts once it is genuine (its link opened the header), for us, fresh (`Admission`) and of the
boot that is known (`Numbers`). The tunnel's messages go to the tunnel, in runs where a link brings many
at a time; what all others do is in node/deeds.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from uservpn.errors import PeerFault
from uservpn.kit.slots import Slots
from uservpn.node.admission import Admission
from uservpn.node.boots import Boots
from uservpn.node.deeds import Arrived, Deeds
from uservpn.node.door import Door
from uservpn.node.flights import Flights
from uservpn.node.linking import Linking
from uservpn.node.numbers import Numbers
from uservpn.node.options import CloseWanted
from uservpn.node.passing import Passing, Room
from uservpn.node.reach import Reach
from uservpn.node.relaying import Relaying
from uservpn.node.table import LinkEntry, Peer, Table
from uservpn.types import Buffer, LinkId, NodeId
from uservpn.wire.constants import CLAIMED_KINDS, FLAG_BOUND, KIB, TAG_SIZE, Kind
from uservpn.wire.header import Header, Run

OPENED_SIZE: Final = 512 * KIB
"""Payloads opened together: as many bytes as a link reads before it hands them on."""


class Arrivals:
    """Takes what the links bring. Nothing that arrives makes it raise."""

    def __init__(
        self,
        table: Table,
        *,
        admission: Admission,
        boots: Boots,
        deeds: Deeds,
        door: Door,
        flights: Flights,
        linking: Linking,
        numbers: Numbers,
        reach: Reach,
        relaying: Relaying,
    ) -> None:
        self._table = table
        self._admission = admission
        self._boots = boots
        self._deeds = deeds
        self._door = door
        self._flights = flights
        self._linking = linking
        self._numbers = numbers
        self._reach = reach
        self._relaying = relaying
        self._opened = Slots(OPENED_SIZE)
        """Payloads of the run at hand."""

    def receive(self, link: LinkId, header: Header, body: Buffer, now: float) -> None:
        """A message whose header is genuine. Stale, forged and foreign ones have no effect."""
        if header.destination != self._table.me:
            self._relaying.pass_on(link, header, body, now)
            return
        if header.hop1:
            link = self._relaying.arrival(link, header, now)
        if header.origin == self._table.me or not link:
            if header.kind == Kind.JOIN and link:
                self._door.knock(link, header, body, now)
            else:
                self._table.counters.misdirected += 1
            return
        origin = NodeId(header.origin)
        peer = self._table.peers.get(origin) or self._table.peer(origin)
        self._table.touched[origin] = peer
        session = peer.session
        boot = session.peer_boot
        if header.boot != boot and boot:
            self._boots.seen(peer, header, now)
            if self._numbers.judge(peer, link, header, body, now):
                self.hear_rival(peer, now)
                return
        payload = session.open_bound(header, body) if header.flags & FLAG_BOUND else None
        if payload is None:
            payload = self._admission.open(peer, link, header, body, now)
            if payload is None:
                return
        if session.peer_boot != boot:
            self._boots.new_boot(peer, boot)
        self.act(peer, link, header, payload, now)
        if boot and boot != session.peer_boot:  # what was measured and asked was the old one
            entry = self._table.links.get(link)
            if entry is not None and entry.peer is peer:
                self._table.probe(peer, link, now)

    def receive_batch(
        self, link: LinkId, runs: Sequence[Run], room: Room, now: float
    ) -> Iterator[tuple[LinkId, list[Buffer]]]:
        """As `receive` for each message, at less cost: what all have in common is looked at once.

        That is whose link it is, that it was heard, and how long its stamps were under way. Messages of
        others that need not wait are yielded, payloads where they lie, for the driver to send before it asks
        for more: it has to go on to the end.
        """
        passing: Passing | None = None
        for run in runs:
            if run.header.destination != self._table.me:
                passing = passing or self._relaying.passing(room, now)
                if len(run.bodies) > 1 or not passing.follows(run.header, run.bodies[0]):
                    yield from self._relaying.pass_run(link, run, passing, now)
                continue
            if passing is not None:
                passing.halt()  # what this does may change the ways
            left, rest = len(run.bodies), run
            while left:
                done = self._receive_run(link, rest, now)
                if not done:
                    self.receive(link, rest.header, rest.bodies[0], now)
                    done = 1
                left -= done
                if left:
                    rest = rest.after(done)
        if passing is not None:
            for outlet in passing.outlets.values():
                if outlet.parts:
                    yield outlet.take()

    def hear_rival(self, peer: Peer, now: float) -> None:
        """Another boot of the peer waits: if the known one is gone, what it said is heard."""
        for link, header, body in self._boots.take_rival(peer, now):
            self.receive(link, header, body, now)

    def act(self, peer: Peer, link: LinkId, header: Header, payload: bytes, now: float) -> None:
        """A message that is genuine, fresh and for us."""
        if header.kind not in CLAIMED_KINDS:
            peer.is_greeted = True
        entry = self._table.links.get(link)
        if entry is None:
            return
        if entry.peer is not peer:
            if entry.peer is not None:
                self._table.counters.misdirected += 1
                if entry.mtu is not None and not (entry.state and entry.state.dialled):
                    # whoever had this address before is gone, and said nothing: begin anew
                    self._table.events.append(CloseWanted(link))
                return
            self._table.bind(link, entry, peer, False, entry.remote, now)
        self._heard(peer, link, entry, header, now)
        kind = header.kind
        if kind == Kind.DATA:
            if entry.hops:
                peer.share.carried_at = now
            else:
                peer.schedule.heard_on = link
            self._act_tunnel(peer, link, kind, payload, entry.is_lossy, now)
        elif kind == Kind.SINK:
            self._act_tunnel(peer, link, kind, payload, entry.is_lossy, now)
        elif kind == Kind.ECHO:
            for held in self._admission.release(peer, payload):
                self.act(peer, held.link, held.header, held.payload, now)
        else:
            self._deeds.act(Arrived(peer, link, entry, header, payload), now)

    # --- inside ----------------------------------------------------------------------------------

    def _receive_run(self, link: LinkId, run: Run, now: float) -> int:
        """Tunnel messages of the peer whose link it is; how many of the run, from the first on, were."""
        entry = self._table.links.get(link)
        if len(run.bodies) == 1 or entry is None or entry.peer is None or entry.state is None:
            return 0
        peer = entry.peer
        count = peer.session.open_run(run, self._opened)
        if not count:
            return 0
        self._table.touch(peer)
        peer.is_greeted = True
        if entry.state.heard_at != now:
            self._heard(peer, link, entry, run.header, now)
        size = run.header.length - TAG_SIZE
        if run.header.kind == Kind.DATA:
            self._act_burst(peer, link, size, count, entry.is_lossy, now)
        else:
            for payload in self._opened.cut(size, 0, count):
                self._act_tunnel(peer, link, run.header.kind, bytes(payload), entry.is_lossy, now)
        return count

    def _heard(
        self, peer: Peer, link: LinkId, entry: LinkEntry, header: Header, now: float
    ) -> None:
        """The peer has sent something over its link: what follows from that, whatever it was."""
        assert entry.state is not None
        peer.contact.heard(entry.state, now)
        if entry.hops:
            if self._reach.may_meet(peer, now):
                self._reach.meet(peer, link, now)
        elif not peer.is_neighbour:
            self._linking.neighbour_up(peer, now)
        elif peer.is_untold:
            self._linking.catch_up(peer)
        if now >= peer.sample_at:
            self._flights.heard(peer, link, entry, header, now)

    def _act_tunnel(
        self, peer: Peer, link: LinkId, kind: int, payload: bytes, is_lossy: bool, now: float
    ) -> None:
        """A tunnel's message; whoever breaks its protocol loses streams and link."""
        try:
            peer.tunnel.receive(kind, payload, now, is_lossy)
        except PeerFault as fault:
            self._broke(peer, link, fault)

    def _act_burst(
        self, peer: Peer, link: LinkId, size: int, count: int, is_lossy: bool, now: float
    ) -> None:
        """As `_act_tunnel` for DATA messages that were opened together."""
        peer.schedule.heard_on = link
        try:
            peer.tunnel.receive_burst(self._opened, size, count, now, is_lossy)
        except PeerFault as fault:
            self._broke(peer, link, fault)

    def _broke(self, peer: Peer, link: LinkId, fault: PeerFault) -> None:
        self._table.counters.peer_faults += 1
        self._table.end_streams(peer, f"node {peer.id} broke the protocol: {fault}")
        self._table.events.append(CloseWanted(link))
