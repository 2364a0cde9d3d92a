"""The whole core behind one door: what arrives, what leaves, and when to come back.

A `Node` makes its parts and routes between them; commands and deadlines that concern several are here. The
parts share one `Table` of peers and links:

    Arrivals    what arrives: opened, judged, passed on
    Deeds       what a message of each kind does
    Linking     links that come up and go, and what that means for their peers
    Boots       what a new boot ends; standing back
    Dues        which peers want to be looked at when
    Admission   which messages may act (first contacts, challenges, notices)
    Numbers     two nodes with one number
    Door        which numbers are taken, for newcomers
    Members     the node list: records, gossip, whom to keep a link to
    Relaying    ways over other nodes, and what passes over this one
    Sizing      how large the messages of datagram links may be
    Mailing     out-of-band messages
    Flights     flight times and the clocks of others
    Vigil       is anybody heard at all?
    Reach       own endpoints, ways through NATs
    Sender      what leaves now, and over which link

Sans-I/O: `now` is monotonic seconds, `wall_s` is added to get the wall clock.

The driver's contract, in this order: `receive` for what arrived, `on_deadline` when due,
`take_transmits` per link with room, `take_events`, then sleep until `next_deadline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from uservpn.errors import Fault, StreamFault
from uservpn.mesh.claims import INSTANCE_SIZE, Claims
from uservpn.mesh.records import Record
from uservpn.node.admission import Admission
from uservpn.node.arrivals import Arrivals
from uservpn.node.boots import Boots
from uservpn.node.deeds import Deeds
from uservpn.node.door import Door
from uservpn.node.dues import Dues
from uservpn.node.flights import Flights
from uservpn.node.linking import Linking
from uservpn.node.mailing import Mailing
from uservpn.node.members import Members
from uservpn.node.numbers import Numbers
from uservpn.node.options import CloseWanted, NodeEvent, NodeOptions
from uservpn.node.reach import Reach
from uservpn.node.relaying import Relaying
from uservpn.node.sending import Sender
from uservpn.node.sizing import Sizing
from uservpn.node.table import Peer, Table
from uservpn.node.vigil import Vigil
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.tunnel.tunnel import Tunnel
from uservpn.types import NodeId
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import Ring


class Node:
    """The core. Not thread-safe; no method blocks, and bad input never raises out of one."""

    ARRIVALS: ClassVar[type[Arrivals]] = Arrivals
    """What takes messages; simulations watch it."""

    def __init__(
        self,
        options: NodeOptions,
        ring: Ring,
        codec: HeaderCodec,
        random: Callable[[int], bytes],
        *,
        now: float,
        wall_s: float,
    ) -> None:
        self.options = options
        self.codec = codec
        self.table = Table(options, ring, codec, random, wall_s)
        self.peers = self.table.peers
        self.links = self.table.links
        self.counters = self.table.counters
        self.reach = Reach(self.table, options.record or Record(options.node, options.boot))
        self.members = Members(self.table, self.reach, now)
        self.directory = self.members.directory
        self.relaying = Relaying(self.table, self.members.routes)
        self.relay = self.relaying.relay
        self._admission = Admission(self.table, now)
        self._sizing = Sizing(self.table)
        self._mailing = Mailing(self.table)
        instance = options.instance or random(INSTANCE_SIZE)
        self.flights = Flights(self.table, instance)
        self.claims = Claims(options.node, options.boot, instance, self.table.jitter, now)
        self.numbers = Numbers(self.table, self.members, self.claims)
        self.door = Door(self.table, self.directory)
        self._vigil = Vigil(self.table)
        self._linking = Linking(
            self.table, self.members, self.relaying, self._sizing, self.reach, self._vigil
        )
        self._boots = Boots(self.table, self._linking, self.numbers, self.flights)
        self._arrivals = self._make_arrivals()
        self._sender = Sender(self.table, self.relaying, self._sizing)
        self._dues = Dues(self.table)
        # the links' side of the door is these parts' own: bound here, a message costs no call more
        self.link_up = self._linking.link_up
        self.link_down = self._linking.link_down
        self.link_refused = self._linking.link_refused
        self.link_resized = self._linking.link_resized
        self.link_progress = self._linking.link_progress
        self.link_stalled = self._linking.link_stalled
        self.dial_failed = self._linking.dial_failed
        self.receive = self._arrivals.receive
        self.receive_batch = self._arrivals.receive_batch
        self.take_transmits = self._sender.take
        for peer in options.servers:
            self.table.peer(peer)

    def _make_arrivals(self) -> Arrivals:
        deeds = Deeds(
            self.table,
            boots=self._boots,
            flights=self.flights,
            linking=self._linking,
            mailing=self._mailing,
            members=self.members,
            numbers=self.numbers,
            reach=self.reach,
            relaying=self.relaying,
            sizing=self._sizing,
            vigil=self._vigil,
        )
        return self.ARRIVALS(
            self.table,
            admission=self._admission,
            boots=self._boots,
            deeds=deeds,
            door=self.door,
            flights=self.flights,
            linking=self._linking,
            numbers=self.numbers,
            reach=self.reach,
            relaying=self.relaying,
        )

    @property
    def wall_s(self) -> float:
        """Added to `now`: the wall clock, seconds since 1970. Put right by the driver."""
        return self.table.wall_s

    @wall_s.setter
    def wall_s(self, seconds: float) -> None:
        self.table.wall_s = seconds

    # --- commands --------------------------------------------------------------------------------

    def open(
        self, exit: NodeId, host: str, port: int, owner: StreamOwner | None, now: float
    ) -> Stream:
        """A new stream that leaves the mesh at `exit`.

        Raises:
            StreamFault: the exit is unknown, or cannot be reached and nothing is being tried, or
                this node stands back (its number is another one's).
        """
        if self.table.is_back:
            raise StreamFault(
                Fault.NOT_ALLOWED, f"duplicate of node {self.options.node}: standing back"
            )
        peer = self.peers.get(exit)
        if peer is None:
            raise StreamFault(Fault.EXIT_DEAD, f"node {exit} is not known")
        if peer.session.is_spent:
            raise StreamFault(Fault.EXIT_DEAD, f"numbers to node {exit} have run out")
        if not self.can_reach(exit, now):
            raise StreamFault(Fault.EXIT_DEAD, f"there is no link to node {exit}")
        self.table.touch(peer)
        peer.note_needs()
        stream = peer.tunnel.open(host, port, owner)
        stream.opened_at = now
        peer.contact.want_stream(now)
        self._linking.seek_soon(peer, now)
        return stream

    def send_message(
        self, peer: NodeId, topic: str, payload: bytes, now: float, *, confirmed: bool = False
    ) -> int:
        """Sends an out-of-band message, ahead of the streams; its token, 0 at best effort.

        A `MessageResult` tells how a confirmed one ended, within 30 s. A peer that is not linked is
        dialled, or reached over relays. Limits, and what happens there: mesh/mailbox.py.

        Raises:
            UsageError: more than 1,000 bytes, no topic or one of more than 32 bytes of ASCII, or
                no other node's number.
        """
        token = self._mailing.post(peer, topic, payload, confirmed, now)
        other = self.peers[peer]
        other.note_needs()
        other.contact.want(now)
        self._linking.seek_soon(other, now)
        return token

    def ping(self, peer: NodeId, now: float) -> bytes | None:
        """Probes the link in use to `peer`: a `Pong` with this token follows its answer, if one comes.

        None: there is no link (a message makes one).
        """
        known = self.peers.get(peer)
        return None if known is None else self.flights.ping(known, now)

    def is_linked(self, node: NodeId) -> bool:
        """Is there a link to it, be it over relays?"""
        peer = self.peers.get(node)
        return peer is not None and bool(peer.contact.links)

    def route(self, node: NodeId) -> tuple[NodeId, ...]:
        """The nodes a message to `node` passes, itself the last; empty: there is no link."""
        if not self.is_linked(node):
            return ()
        return (*self.links[self.peers[node].contact.best().link].hops, node)

    def protocol(self, node: NodeId) -> str | None:
        """What the direct link to it speaks; None: there is none."""
        peer = self.peers.get(node)
        state = peer.contact.direct() if peer is not None else None
        return state.protocol if state is not None else None

    def can_reach(self, node: NodeId, now: float) -> bool:
        """Is there a link, an endpoint to dial, or a relay that is linked with it?"""
        peer = self.peers.get(node)
        if peer is not None and (peer.contact.links or peer.contact.endpoints):
            return True
        return bool(self.members.routes.neighbours(node, now))

    def tunnel(self, stream: Stream) -> Tunnel:
        """The tunnel that carries `stream`; ask anew for each use, which the next takes look at."""
        peer = self.table.touched[stream.peer] = self.peers[stream.peer]
        return peer.tunnel

    def start(self, now: float) -> None:
        """Dials the configured servers, and whom the node list says to keep in touch with."""
        self._linking.start(now)

    def describe(self, now: float, **changes: Any) -> None:
        """Changes fields of this node's own record (mesh/records.py); the mesh is told.

        Of `endpoints` the fixed ones count; the others come from `moved` and from the peers.
        """
        own = self.directory.own
        roles = changes.get("roles", own.roles)
        self.reach.configure(changes.get("endpoints", own.endpoints), roles)
        self.members.describe(now, **changes | {"endpoints": self.reach.endpoints()})

    def set_servers(self, servers: Mapping[NodeId, tuple[str, ...]], now: float) -> None:
        """Replaces the configured servers; links and streams of those that stay are untouched."""
        self.table.servers = servers
        for peer in self.peers.values():
            self.table.touch(peer)
            endpoints = servers.get(peer.id, ())
            record = self.directory.get(peer.id)
            if not endpoints and record is not None and record.endpoints:
                self.members.learn(record)  # no longer configured, still a member
                continue
            if peer.contact.endpoints and not endpoints:
                self.table.end_streams(peer, f"node {peer.id} is no longer configured")
                peer.contact.leave(now)
            else:
                self.members.offer(peer)
        for node in servers:
            peer = self.table.peer(node)
            self.table.touch(peer)
            self.members.offer(peer)
            peer.contact.want(now)
        self._linking.arrange(now)

    def moved(
        self,
        local: Sequence[str],
        interfaces: Sequence[str],
        now: float,
        is_on_loopback: bool = False,
    ) -> None:
        """The machine's addresses, as for `Reach.moved`; call `wake` too, if they are new."""
        self.reach.moved(local, interfaces, is_on_loopback)
        self.members.reach_changed(now)

    def wake(self, now: float) -> None:
        """The machine slept, or its network changed: every peer is tried once, at once."""
        self.reach.wake(now)
        self.members.reach_changed(now)
        for peer in self.peers.values():
            self.table.touch(peer)
            peer.note_needs()
            peer.contact.wake(now)
        self._linking.seek_ways(now)

    def goodbye(self) -> None:
        """Tells every linked peer that this node stops."""
        self._linking.goodbye()

    def retry_number(self, now: float) -> None:
        """Does the number belong to us now? Only asked when this node stands back."""
        self._boots.retry_number(now)

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work of every part; harmless when early."""
        table = self.table
        for link, until in list(table.unproven.items()):
            if now < until:
                break
            del table.unproven[link]
            table.events.append(CloseWanted(link))
        self.members.on_deadline(now)
        self._sizing.on_deadline(now)
        self.reach.on_deadline(now)
        self._vigil.on_deadline(self.reach.bindings.is_tried, now)
        self._dues.touch_due(now)
        for peer in list(table.touched.values()):  # what follows may touch others
            self._look_at(peer, now)
        self.claims.on_deadline(now)
        self._boots.follow_claims(now)

    def on_tunnel_deadlines(self, now: float) -> None:
        """`on_deadline` of those tunnels alone to which something happened; harmless when early."""
        for peer in self.table.touched.values():
            if peer.contact.links:
                peer.tunnel.on_deadline(now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        times = [self._dues.next_deadline(), self.members.gossip.next_deadline()]
        times += (self._sizing.next_deadline(), self.reach.next_deadline())
        times += (self._vigil.next_deadline(), self.claims.next_deadline())
        times.append(next(iter(self.table.unproven.values()), None))
        return min((time for time in times if time is not None), default=None)

    def _look_at(self, peer: Peer, now: float) -> None:
        """Due work of one peer."""
        peer.note_needs()
        peer.contact.on_deadline(now)
        if peer.route_at is not None and now >= peer.route_at:
            peer.route_at = None
            if peer.is_needed() and peer.contact.direct() is None:
                self.relaying.seek(peer, now)
        if peer.contact.has_mail:
            peer.mail.on_deadline(now)
        way = peer.spare_way()
        if way is not None and now >= peer.share.unused_at(way):
            self._linking.link_down(way.link, "no longer used", now)
            peer.share.way_closed()
        if peer.contact.links:
            self.directory.heard(peer.id, peer.contact.heard_at or 0.0)
            peer.tunnel.on_deadline(now)
        if peer.rival is not None:
            self._arrivals.hear_rival(peer, now)
            self.numbers.on_deadline(peer, now)
        self._linking.follow(peer, now)

    # --- takes -----------------------------------------------------------------------------------

    def take_events(self, now: float) -> list[NodeEvent]:
        """What happened, in order per tunnel."""
        table = self.table
        events = table.events
        table.events = []
        table.is_taking = True
        for peer in table.touched.values():
            self._linking.follow(peer, now)
            if peer.mail.results:
                self._mailing.report(peer)
            events += peer.tunnel.take_events()
        table.is_taking = False
        events += table.events
        table.events = []
        if table.late:
            table.touched.update(table.late)
            table.late.clear()
            events += self.take_events(now)
        return events

    # --- questions -------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Would a take, or another deadline, follow from what happened since the last ones?"""
        return bool(self.table.touched or self.table.events or self.table.strays)

    def forgotten(self) -> list[int]:
        """Peers with work, or another deadline, that no take would look at: none, or it is a bug."""
        return self._dues.forgotten()
