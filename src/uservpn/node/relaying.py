"""Ways over other nodes: our own to peers without a direct link, and those of others over us.

A way is a link of its own, with hops: it has a (negative) number, a place among its peer's links
and is probed like any other. What passes over this node is queued by neighbour (node/relay.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from uservpn.mesh.liveness import LinkState
from uservpn.mesh.routes import Route, Routes
from uservpn.node.passing import Course, Passing, Room
from uservpn.node.relay import Reason, Relay, next_hop
from uservpn.node.table import OVERHEAD, UNPROVEN_S, LinkEntry, Peer, Table
from uservpn.types import Buffer, LinkId, NodeId
from uservpn.wire.constants import STAMP_MASK, Kind
from uservpn.wire.header import Header, Run

SIZE_FLOOR: Final = 1 << 10
"""Whatever a relay says, every link carries messages of this size."""
RELAYED_MAX: Final = 8
"""Ways to one peer at a time."""
RECENT_S: Final = 15.0
"""A first hop that was silent for longer is probed when a way over it is opened: NATs forget."""
SILENT_S: Final = 1.0
"""Origins hear of a neighbour that owes an answer for so long and three round trips, and was asked again."""
TELL_EVERY_S: Final = 0.2
NOTE_EVERY_S: Final = 0.1
"""What passes without waiting is noted in the neighbour's contact this often: no flush for each read."""
TOLD_MAX: Final = 1024

Batches = list[tuple[LinkId, Sequence[Buffer]]]
"""Per link of the driver: headers and sealed payloads in the order to send them."""
Loss = tuple[LinkId, str]
"""A way that is gone, and why; for the owner's `link_down`."""


class Relaying:
    """The relayed links of one node, and what it passes on for others."""

    def __init__(self, table: Table, routes: Routes) -> None:
        self._table = table
        self.routes = routes
        self.relay = Relay(table.me)
        self._ways: dict[tuple[NodeId, Route], LinkId] = {}
        self._last_way = 0
        self._told_at: dict[tuple[int, int], float] = {}

    # --- passing on ------------------------------------------------------------------------------

    def pass_on(self, link: LinkId, header: Header, body: Buffer, now: float) -> None:
        """A message on its way over this node, or one that has no business here: queued, or dropped."""
        found = self._onward(link, header, now)
        if found is not None:
            self._queue(header, body, found[0], now)

    def passing(self, room: Room, now: float) -> Passing:
        """For what one read has brought."""
        return Passing(room, self._table.codec, self._stamp(now), self.relay.counters)

    def pass_run(
        self, link: LinkId, run: Run, passing: Passing, now: float
    ) -> Iterator[tuple[LinkId, list[Buffer]]]:
        """As `pass_on` for each; what need not wait is not queued but goes to `passing` as it lies.

        What has used the room of its link is yielded: if it is taken at once, there is room for more.
        """
        for header, body in run.messages():
            if passing.follows(header, body):
                continue
            found = self._onward(link, header, now)
            if found is None:
                passing.halt()
                continue
            onward, outlet = found[0], passing.outlet(found[1])
            is_waiting = onward.id in self.relay.queues
            if outlet.room <= 0 and outlet.parts and not is_waiting:
                yield outlet.take()
                outlet.room = passing.room(outlet.carrier)
            if is_waiting or outlet.room <= 0:
                passing.halt()
                self._queue(header, body, onward, now)
                continue
            flow = self.relay.freshness.flow_of(header)
            passing.go(Course(onward, outlet, flow, header.hop2 == self._table.me), header, body)
            if now >= onward.passed_at + NOTE_EVERY_S:
                onward.passed_at = now
                onward.is_onward = True
                self._table.touch(onward)

    def _onward(self, link: LinkId, header: Header, now: float) -> tuple[Peer, LinkId] | None:
        """To whom, and over which link, this message goes on; None: not at all, and its origin is told."""
        table = self._table
        ends = next_hop(header, table.me)
        entry = table.links.get(link)
        if ends is None or entry is None or entry.peer is None or entry.peer.id != ends[0]:
            table.counters.misdirected += 1
            self.relay.counters.misrouted += ends is not None
            return None
        if not self.relay.freshness.admit(header):
            self.relay.counters.stale += 1
            boot = self.relay.freshness.boot_of(header.origin, header.destination)
            if header.boot < boot and table.is_stamp_recent(header, now):
                self._tell_unreachable(header, ends[1], Reason.OLD_BOOT, 0, now, boot)
            return None
        onward = table.peers.get(ends[1])
        state = onward.contact.carrier() if onward is not None else None
        if onward is None or state is None:
            self._tell_unreachable(header, ends[1], Reason.NO_LINK, 0, now)
            return None
        owed = state.owed_since
        if state.probed and owed is not None and now >= owed + SILENT_S + 3 * (state.rtt_s or 0.0):
            self._tell_unreachable(
                header, ends[1], Reason.NO_LINK, 0, now
            )  # it may come back yet: tried
        size_max = table.links[state.link].size_max
        if header.length > size_max + OVERHEAD:
            self._tell_unreachable(header, ends[1], Reason.TOO_LARGE, size_max, now)
            return None
        return onward, state.link

    def _queue(self, header: Header, body: Buffer, onward: Peer, now: float) -> None:
        self.relay.put(header, bytes(body), onward.id, now)
        onward.is_onward = True
        self._table.touch(onward)

    def _stamp(self, now: float) -> bytes:
        return (int((now + self._table.wall_s) * 1000) & STAMP_MASK).to_bytes(3, "big")

    def take(self, peer: Peer, room: Room, out: Batches, now: float) -> None:
        """What waits for this neighbour, as far as its link has room; notes that something passed."""
        state = peer.contact.carrier()
        if state is None:
            return  # `neighbour_lost` has emptied the queue
        is_waiting = peer.id in self.relay.queues
        if is_waiting:
            stamp, reseal = self._stamp(now), self._table.codec.reseal
            batch: list[bytes] = []
            for waiting in self.relay.take(peer.id, room(state.link), now):
                batch += (reseal(waiting.header, waiting.is_second, stamp), waiting.body)
            peer.is_onward = peer.id in self.relay.queues
            if not batch:
                return
            out.append((state.link, batch))
        else:
            peer.is_onward = False
        peer.contact.used(state, now)
        peer.contact.sent(state, False, now)

    def neighbour_lost(self, peer: Peer, now: float) -> list[Loss]:
        """The last direct link to it is gone: nothing goes over it, nor on to it."""
        peer.is_onward = False
        for waiting in self.relay.drop(peer.id):
            self._tell_unreachable(waiting.header, peer.id, Reason.NO_LINK, 0, now)
        reason = f"lost node {peer.id} on the way"
        return [(link, reason) for (_, hops), link in self._ways.items() if hops[0] == peer.id]

    def _tell_unreachable(
        self, header: Header, to: int, reason: Reason, size_max: int, now: float, boot: int = 0
    ) -> None:
        """The origin learns that its message did not go on, a few times a second at most."""
        table = self._table
        self.relay.counters.unreachable += 1
        pair = header.origin, header.destination
        if now < self._told_at.get(pair, now) + TELL_EVERY_S and pair in self._told_at:
            return
        if len(self._told_at) >= TOLD_MAX:
            self._told_at.clear()
        self._told_at[pair] = now
        origin = table.peer(NodeId(header.origin))
        link: LinkId | None
        if header.hop1 == table.me:
            state = origin.contact.carrier()
            link = state.link if state is not None else None
        else:
            link = self._way(origin.id, (NodeId(header.hop1),), now)
        if link is not None:
            table.touch(origin)
            payload = bytes((header.destination, to, reason)) + size_max.to_bytes(4, "big")
            payload += boot.to_bytes(8, "big")
            origin.outbox.append((link, Kind.UNREACHABLE, payload, header.boot))

    # --- our own ways ----------------------------------------------------------------------------

    def hear_unreachable(self, relay: Peer, payload: bytes, now: float) -> list[Loss]:
        """A relay could not pass a message of ours on: another way, or smaller messages."""
        table = self._table
        if len(payload) < 7:
            table.counters.peer_faults += 1
            return []
        to, reason = NodeId(payload[1]), payload[2]
        if reason == Reason.NO_LINK:
            self.routes.avoid(relay.id, to, now)
        lost: list[Loss] = []
        for (destination, hops), link in self._ways.items():
            way = (*hops, destination)
            if relay.id not in hops or way[way.index(relay.id) + 1] != to:
                continue
            if reason == Reason.NO_LINK:
                lost.append((link, f"node {relay.id} has no link to node {to}"))
            elif reason == Reason.TOO_LARGE:
                entry = table.links[link]
                size_max = int.from_bytes(payload[3:7], "big")
                entry.size_max = max(SIZE_FLOOR, min(entry.size_max, size_max))
        return lost

    def ways_over(self, first: Peer) -> list[tuple[Peer, LinkState]]:
        """Whom our ways with this first hop lead to, and the ways."""
        found = []
        for (node, hops), link in self._ways.items():
            state = self._table.links[link].state
            if hops[0] == first.id and state is not None:
                found.append((self._table.peers[node], state))
        return found

    def reached_over(self, relay: Peer, node: int) -> list[Peer]:
        """The peer with this number, if a way of ours to it goes over `relay`, who may speak of it then."""
        ways = [destination for destination, hops in self._ways if relay.id in hops]
        return [self._table.peers[node]] if node in ways and node in self._table.peers else []

    def arrival(self, link: LinkId, header: Header, now: float) -> LinkId:
        """The relayed link that a message to us came by; 0: it cannot have come this way."""
        hops: Route = tuple(NodeId(hop) for hop in (header.hop2, header.hop1) if hop)
        entry = self._table.links.get(link)
        way = {header.origin, *hops, self._table.me}
        if entry is None or entry.peer is None or entry.peer.id != hops[0]:
            return LinkId(0)
        if len(way) != len(hops) + 2:
            return LinkId(0)
        return self._way(NodeId(header.origin), hops, now) or LinkId(0)

    def carrier(self, link: LinkId) -> LinkId | None:
        """The driver's link that carries this one; None: it is gone."""
        entry = self._table.links.get(link)
        if entry is None or not entry.hops:
            return link if entry is not None else None
        first = self._table.peers.get(entry.hops[0])
        state = first.contact.carrier() if first is not None else None
        return state.link if state is not None else None

    def doubt(self, link: LinkId, now: float) -> None:
        """Where this is a way, and its peer owes an answer: is the first hop still there?"""
        entry = self._table.links.get(link)
        if entry is None or not entry.hops or entry.state is None:
            return
        first = self._table.peers.get(entry.hops[0])
        if first is not None and entry.state.owed_since is not None:
            self._table.touch(first)
            first.contact.doubt(entry.state.owed_since, now)

    def seek(self, peer: Peer, now: float) -> None:
        """Opens a way over relays, unless one stands; where none is, dials who would be one."""
        table = self._table
        table.touch(peer)
        if any(state.relayed and not state.probed for state in peer.contact.links):
            return
        linked = {
            NodeId(node): state.rtt_s
            for node, other in table.peers.items()
            if other is not peer and (state := other.contact.carrier()) and other.is_neighbour
            if not state.probed
        }
        for route in self.routes.find(peer.id, linked, now):
            link = self._way(peer.id, route, now)
            if link is None:
                continue
            entry = table.links[link]
            if entry.peer is None:
                table.bind(link, entry, peer, True, entry.remote, now)
                first = table.peers[route[0]]
                table.touch(first)
                first.contact.doubt(now - RECENT_S, now)
                return
        for node in self.routes.neighbours(peer.id, now)[:2]:
            if node not in linked and node != peer.id:
                other = table.peer(node)
                table.touch(other)
                other.contact.want(now)

    def link_down(self, link: LinkId) -> None:
        """This way is no more."""
        self._ways = {key: kept for key, kept in self._ways.items() if kept != link}

    def _way(self, peer: NodeId, hops: Route, now: float) -> LinkId | None:
        """The link to `peer` over these relays, made if need be; None: too many, or no first hop."""
        link = self._ways.get((peer, hops))
        if link is not None:
            return link
        table = self._table
        first = table.peers.get(hops[0])
        state = first.contact.carrier() if first is not None else None
        if state is None or sum(1 for node, _ in self._ways if node == peer) >= RELAYED_MAX:
            return None
        self._last_way -= 1
        link = self._ways[peer, hops] = LinkId(self._last_way)
        text = "relay:" + ",".join(map(str, hops))
        size_max = table.links[state.link].size_max
        table.links[link] = LinkEntry(size_max, "relay", text, hops=hops)
        table.unproven[link] = now + UNPROVEN_S
        return link
