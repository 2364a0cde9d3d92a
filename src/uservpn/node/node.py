"""The whole core behind one door: what arrives, what leaves, and when to come back.

A `Node` keeps one `Peer` for each node it knows: the wire session, the contact (links, dials,
liveness) and the tunnel. It routes between them and holds the rules that need all three: who a link belongs
to, what a first contact may do, and what a new boot ends. Sans-I/O: `now` is monotonic seconds,
`wall_s` is added to get the wall clock.

The driver's contract, in this order: `receive` for what arrived, `on_deadline` when due,
`take_transmits` per link with room, `take_events`, then sleep until `next_deadline`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.mesh import topology
from uservpn.mesh.contact import Contact, Dead, Dial, GiveUp, LinkState, Probe
from uservpn.mesh.directory import Directory
from uservpn.mesh.gossip import DIGEST, Gossip
from uservpn.mesh.records import Edge, Record, Role, coarse
from uservpn.mesh.routes import Route, Routes
from uservpn.node.relay import Reason, Relay, next_hop
from uservpn.tunnel import limits
from uservpn.tunnel.events import Event
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.tunnel.tunnel import Tunnel
from uservpn.types import Buffer, LinkId, NodeId
from uservpn.wire.constants import (
    FLAG_BOUND,
    SKEW_LOGGED_MS,
    STAMP_MASK,
    TAG_SIZE,
    Kind,
)
from uservpn.wire.header import Header, HeaderCodec
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session, first_contact_is_fresh

HELD_MAX: Final = 64
"""First contacts of one origin that wait for its echo; more are dropped (it will ask again)."""
HELD_SIZE_MAX: Final = 1 << 20
"""Bytes of them."""
UNPROVEN_S: Final = 20.0
"""How long an accepted link may stay without one message that was acted on."""
OVERRUN_MAX: Final = 1 << 20
"""Bytes queued on a full link beyond which even answers and reports wait: its peer does not read."""
CUT_BELOW: Final = 1 << 16
CUT_MIN: Final = 1 << 12
"""Messages are cut to the room of a link that has less than CUT_BELOW, never below CUT_MIN."""
NOTICE_EVERY_S: Final = 0.2
CHALLENGE_SIZE: Final = 16
ROUTE_AFTER_S: Final = 1.0
"""Streams that wait so long for a direct link take a relayed one, until there is a direct one."""
RELAYED_MAX: Final = 8
"""Ways to one peer at a time."""
RELAYED_WINDOW: Final = 2 << 20
"""Unconfirmed bytes of one tunnel on its way over relays: half of what a relay queues."""
RELAYED_ACK: Final = 256 << 10
TELL_EVERY_S: Final = 0.2
TOLD_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node is told at its start."""

    node: NodeId
    boot: int
    servers: Mapping[NodeId, tuple[str, ...]]
    record: Record | None = None
    """What this node says of itself; None: only that it is there."""
    keepalive_s: float = 600.0
    grace_s: float = 60.0
    chacha: bool = False


class DialWanted(NamedTuple):
    """Please open a link to this endpoint of `peer`, then say `link_up` or `dial_failed`."""

    peer: NodeId
    endpoint: str


class CloseWanted(NamedTuple):
    """Please close this link."""

    link: LinkId


class PeerNews(NamedTuple):
    """Something an operator may want to read; one line of the log."""

    peer: NodeId
    text: str
    level: Literal["info", "warning"]


NodeEvent = DialWanted | CloseWanted | PeerNews | Event


@dataclass(slots=True)
class LinkEntry:
    """A link as the node sees it."""

    size_max: int
    protocol: str
    remote: str
    peer: Peer | None = None
    state: LinkState | None = None
    hops: Route = ()
    """The relays it goes over; none: a link of the driver."""

    @property
    def hops_code(self) -> int:
        """The hops as the wire has them."""
        if not self.hops:
            return 0
        return self.hops[0] << 8 | (self.hops[1] if len(self.hops) > 1 else 0)


class Peer:
    """All that is known of one other node."""

    def __init__(self, session: Session, contact: Contact, tunnel: Tunnel) -> None:
        self.id = NodeId(session.peer)
        self.session = session
        self.contact = contact
        self.tunnel = tunnel
        self.held: list[tuple[Header, bytes, LinkId]] = []
        self.challenge = b""
        self.notice_at = 0.0
        self.probes: dict[bytes, tuple[LinkId, float]] = {}
        self.outbox: deque[tuple[LinkId, int, bytes, int]] = deque()
        self.is_greeted = False
        self.is_neighbour = False
        """It is linked, and gossip knows."""
        self.skew_told = False
        self.route_at: float | None = None
        """When a relayed way is sought, if there is no direct link by then."""
        self.is_onward = False
        """Messages of others wait to be passed on to it."""
        self.relayed_bytes = 0
        self.fault = ""

    def has_work(self) -> bool:
        """Would a take return something, now or when a link has room again?"""
        if self.outbox or self.is_onward or self.contact.has_plans() or self.tunnel.has_events():
            return True
        return bool(self.contact.links) and self.tunnel.has_outgoing()


@dataclass(slots=True)
class Counters:
    """Weather and faults, for status."""

    stale: int = 0
    forged: int = 0
    misdirected: int = 0
    peer_faults: int = 0


class Node:
    """The core. Not thread-safe; no method blocks, and bad input never raises out of one."""

    def __init__(
        self,
        options: NodeOptions,
        ring: KeyRing,
        codec: HeaderCodec,
        random: Callable[[int], bytes],
        *,
        now: float,
        wall_s: float,
    ) -> None:
        self.options = options
        self.codec = codec
        self.wall_s = wall_s
        self.peers: dict[int, Peer] = {}
        self.links: dict[LinkId, LinkEntry] = {}
        self.counters = Counters()
        self._ring = ring
        self._servers = options.servers
        self._random = random
        self._started = now
        self._started_ms = int((now + wall_s) * 1000)
        self._unproven: dict[LinkId, float] = {}  # until when, soonest first
        self._events: list[NodeEvent] = []
        self._touched: dict[int, Peer] = {}
        """Peers something happened to: the only ones that takes and deadlines look at."""
        self._dues: dict[int, float] = {}
        self._soonest: float | None = None
        own = options.record or Record(options.node, options.boot)
        self.directory = Directory(own, now)
        self.gossip = Gossip(self.directory, self._jitter, now)
        self.routes = Routes(options.node)
        self.relay = Relay(options.node)
        self._map_generation = -1
        self._relayed: dict[tuple[NodeId, Route], LinkId] = {}
        self._last_relayed = 0
        self._told_at: dict[tuple[int, int], float] = {}
        for peer in options.servers:
            self._peer(peer)

    # --- commands --------------------------------------------------------------------------------

    def open(
        self, exit: NodeId, host: str, port: int, owner: StreamOwner | None, now: float
    ) -> Stream:
        """A new stream that leaves the mesh at `exit`.

        Raises:
            StreamFault: the exit is unknown, or cannot be reached and nothing is being tried.
        """
        peer = self.peers.get(exit)
        if peer is None:
            raise StreamFault(Fault.EXIT_DEAD, f"node {exit} is not known")
        if peer.session.is_spent:
            raise StreamFault(Fault.EXIT_DEAD, f"numbers to node {exit} have run out")
        if not self.can_reach(exit, now):
            raise StreamFault(Fault.EXIT_DEAD, f"there is no link to node {exit}")
        self._touch(peer)
        peer.contact.has_streams = bool(peer.tunnel.streams)
        stream = peer.tunnel.open(host, port, owner)
        peer.contact.want_stream(now)
        if peer.contact.direct() is None and peer.route_at is None:
            peer.route_at = now + ROUTE_AFTER_S if peer.contact.endpoints else now
        return stream

    def can_reach(self, node: NodeId, now: float) -> bool:
        """Is there a link, an endpoint to dial, or a relay that is linked with it?"""
        peer = self.peers.get(node)
        if peer is not None and (peer.contact.links or peer.contact.endpoints):
            return True
        return bool(self.routes.neighbours(node, now))

    def tunnel(self, stream: Stream) -> Tunnel:
        """The tunnel that carries `stream`; ask anew for each use, which the next takes look at."""
        peer = self._touched[stream.peer] = self.peers[stream.peer]
        return peer.tunnel

    def start(self, now: float) -> None:
        """Dials the configured servers, and whom the node list says to keep in touch with."""
        for record in self.directory:
            self._learn(record)
        self._arrange(now)
        for peer in self.peers.values():
            if peer.contact.is_kept:
                self._touch(peer)
                peer.contact.want(now)

    def describe(self, now: float, **changes: object) -> None:
        """Changes fields of this node's own record (mesh/records.py); the mesh is told."""
        if self.directory.update_own(**changes):
            self.gossip.own_changed(now)

    def set_servers(self, servers: Mapping[NodeId, tuple[str, ...]], now: float) -> None:
        """Replaces the configured servers; links and streams of those that stay are untouched."""
        self._servers = servers
        for peer in self.peers.values():
            self._touch(peer)
            endpoints = servers.get(peer.id, ())
            record = self.directory.get(peer.id)
            if not endpoints and record is not None and record.fixed_endpoints():
                self._learn(record)  # no longer configured, still a member
                continue
            if peer.contact.endpoints and not endpoints:
                self._end_streams(peer, f"node {peer.id} is no longer configured")
                peer.contact.leave(now)
            peer.contact.endpoints = endpoints
        for node in servers:
            peer = self._peer(node)
            self._touch(peer)
            peer.contact.want(now)
        self._arrange(now)

    def wake(self, now: float) -> None:
        """The machine slept, or its network changed."""
        for peer in self.peers.values():
            self._touch(peer)
            peer.contact.wake(now)

    def goodbye(self) -> None:
        """Tells every linked peer that this node stops."""
        for peer in self.peers.values():
            self._touch(peer)
            for state in peer.contact.links:
                if not state.relayed or peer.tunnel.streams:
                    peer.outbox.append((state.link, Kind.GOODBYE, b"", 0))

    # --- links -----------------------------------------------------------------------------------

    def link_up(
        self, link: LinkId, protocol: str, size_max: int, remote: str, now: float,
        peer: NodeId | None = None, endpoint: str = "",
    ) -> None:  # fmt: skip
        """A link is open; `peer` and `endpoint` are given for one that was dialled."""
        entry = self.links[link] = LinkEntry(size_max - TAG_SIZE - 64, protocol, remote)
        if peer is not None:
            self._bind(link, entry, self._peer(peer), True, endpoint, now)
        else:
            self._unproven[link] = now + UNPROVEN_S

    def link_down(self, link: LinkId, reason: str, now: float) -> None:
        """A link is gone."""
        entry = self.links.pop(link, None)
        self._unproven.pop(link, None)
        if entry is not None and entry.hops:
            self._relayed = {key: kept for key, kept in self._relayed.items() if kept != link}
        if entry is not None and entry.peer is not None:
            peer = entry.peer
            self._touch(peer)
            peer.contact.has_streams = bool(peer.tunnel.streams)
            peer.contact.link_down(link, now)
            if peer.is_neighbour and peer.contact.direct() is None:
                peer.is_neighbour = False
                self.gossip.link_down(peer.id)
                self._neighbour_lost(peer, now)
                self._arrange(now)
            if peer.tunnel.streams and peer.contact.direct() is None:
                self._seek_route(peer, now)
            if peer.contact.links:
                peer.tunnel.link_lost()
            else:
                text = f"lost the link to node {peer.id} ({entry.remote}): {reason}"
                self._events.append(PeerNews(peer.id, text, "info"))

    def dial_failed(
        self, peer: NodeId, endpoint: str, refused: bool, detail: str, now: float
    ) -> None:
        """A wanted dial did not lead to a link."""
        known = self.peers[peer]
        self._touch(known)
        known.contact.has_streams = bool(known.tunnel.streams)
        if known.tunnel.streams:
            self._seek_route(known, now)  # before it is judged that nothing is left
        known.contact.dial_failed(endpoint, refused, detail, now)
        self._arrange(now)

    def link_progress(self, link: LinkId, now: float) -> None:
        """Bytes of a large message moved on this link."""
        entry = self.links.get(link)
        if entry is not None and entry.peer is not None and entry.state is not None:
            self._touch(entry.peer)
            entry.peer.contact.progress(entry.state, now)

    def receive(self, link: LinkId, header: Header, body: Buffer, now: float) -> None:
        """A message whose header is genuine. Stale, forged and foreign ones have no effect."""
        if header.destination != self.options.node:
            self._pass(link, header, body, now)
            return
        if header.hop1:
            link = self._arrival(link, header, now)
        if header.origin == self.options.node or not link:
            self.counters.misdirected += 1
            return
        peer = self._touched[header.origin] = self._peer(NodeId(header.origin))
        session = peer.session
        boot = session.peer_boot
        if header.flags & FLAG_BOUND:
            payload = session.open_bound(header, body)
            if payload is None:
                self._not_opened(peer, link, header, now)
                return
        else:
            first = session.open_first(header, body)
            if first is None:
                self.counters.stale += 1
                return
            self._note_skew(peer, first.sent_ms, now)
            wall_ms = int((now + self.wall_s) * 1000)
            # by the clock of then and by that of now: either may be wrong, and was put right since
            started_ms = int((self._started + self.wall_s) * 1000)
            self._started_ms = max(self._started_ms, started_ms)
            if not first_contact_is_fresh(first.sent_ms, wall_ms, self._started_ms):
                self._hold(peer, link, header, first.payload, now)
                return
            if not session.accept_first(header):
                return
            payload = first.payload
        if session.peer_boot != boot:
            self._new_boot(peer, boot)
        self._act(peer, link, header.kind, payload, now)
        entry = self.links.get(link)
        if boot and boot != session.peer_boot and entry is not None and entry.peer is peer:
            self._probe(peer, link, now)  # what was measured and asked was the old one

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work of every part; harmless when early."""
        for link, until in list(self._unproven.items()):
            if now < until:
                break
            del self._unproven[link]
            self._events.append(CloseWanted(link))
        self.gossip.on_deadline(now)
        self._pass_on()
        for gone in self.directory.on_deadline(now):
            self._forget(gone)
        for node, due in self._dues.items():
            if due <= now:
                self._touch(self.peers[node])
        for peer in self._touched.values():
            peer.contact.has_streams = bool(peer.tunnel.streams)
            peer.contact.on_deadline(now)
            if peer.route_at is not None and now >= peer.route_at:
                peer.route_at = None
                if peer.tunnel.streams and peer.contact.direct() is None:
                    self._seek_route(peer, now)
            if peer.contact.links:
                self.directory.heard(peer.id, peer.contact.heard_at or 0.0)
                peer.tunnel.on_deadline(now)
            self._follow(peer, now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        if self._touched:
            busy = {}
            for node, peer in self._touched.items():
                due = self._due(peer)
                if due is None:
                    self._dues.pop(node, None)
                else:
                    self._dues[node] = due
                if peer.has_work():
                    busy[node] = peer
            self._touched = busy
            self._soonest = min(self._dues.values(), default=None)
        times = [self._soonest, self.gossip.next_deadline()]
        if self._unproven:
            times.append(next(iter(self._unproven.values())))
        return min((time for time in times if time is not None), default=None)

    # --- takes -----------------------------------------------------------------------------------

    def take_events(self, now: float) -> list[NodeEvent]:
        """What happened, in order per tunnel."""
        events = self._events
        self._events = []
        for peer in self._touched.values():
            self._follow(peer, now)
            events += peer.tunnel.take_events()
        events += self._events
        self._events = []
        return events

    def take_transmits(
        self, room: Callable[[LinkId], int], now: float
    ) -> list[tuple[LinkId, list[bytes]]]:
        """Per link, sealed headers and payloads in the order to send them."""
        out: list[tuple[LinkId, list[bytes]]] = []
        for peer in self._touched.values():
            tunnel = peer.tunnel
            if peer.is_onward:
                self._take_relayed(peer, room, out, now)
            if not peer.outbox and not tunnel.has_outgoing():
                continue
            if peer.session.is_spent:
                self._spent(peer)
                continue
            wall = now + self.wall_s
            wall_ms = int(wall * 1000)
            stamp = (wall_ms & STAMP_MASK).to_bytes(3, "big")
            seal = peer.session.seal
            while peer.outbox:
                link, kind, payload, boot = peer.outbox.popleft()
                carrier = self._carrier(link)
                if carrier is not None and room(carrier) > -OVERRUN_MAX:
                    entry = self.links[link]
                    sealed = seal(kind, payload, stamp, wall_ms, boot, entry.hops_code)
                    out.append((carrier, list(sealed)))
                    if entry.state is not None:
                        peer.contact.sent(entry.state, kind == Kind.PROBE, now)
            links = peer.contact.links
            if not links:
                continue
            state = links[0]
            if state.probed:
                state = peer.contact.best()
            entry = self.links[state.link]
            carrier = self._carrier(state.link) if entry.hops else state.link
            if carrier is None:
                continue
            free = room(carrier)
            if free <= -OVERRUN_MAX:
                continue
            size_max = entry.size_max
            if free < CUT_BELOW:  # a slow link: no message is longer than what it takes now
                size_max = min(size_max, max(CUT_MIN, free))
            hops = entry.hops_code
            if hops:
                free = min(free, RELAYED_WINDOW - tunnel.cache_size)
            messages = tunnel.take_messages(free, size_max, state.link, now)
            if messages:
                batch: list[bytes] = []
                for kind, data in messages:
                    batch += seal(kind, data, stamp, wall_ms, 0, hops)
                out.append((carrier, batch))
                if hops:
                    peer.relayed_bytes += sum(map(len, batch))
                peer.contact.used(state, now)
                peer.contact.sent(state, tunnel.cache_size > 0, now)
        return out

    # --- inside ----------------------------------------------------------------------------------

    def _touch(self, peer: Peer) -> None:
        """Something happens to this peer: the next takes look at it, and its deadline is anew."""
        self._touched[peer.id] = peer

    def _due(self, peer: Peer) -> float | None:
        """When this peer wants to be looked at without being touched."""
        contact = peer.contact
        contact.has_streams = bool(peer.tunnel.streams)
        due = contact.next_deadline()
        if peer.route_at is not None and (due is None or peer.route_at < due):
            due = peer.route_at
        other = peer.tunnel.next_deadline() if contact.links else None
        if due is None or (other is not None and other < due):
            return other
        return due

    def _peer(self, node: NodeId) -> Peer:
        peer = self.peers.get(node)
        if peer is None:
            options = self.options
            session = Session(
                self._ring, self.codec, options.node, options.boot, node, options.chacha
            )
            contact = Contact(
                self._servers.get(node, ()),
                keepalive_s=options.keepalive_s,
                grace_s=options.grace_s,
                jitter=self._jitter,
            )
            contact.is_kept = node in self._servers
            peer = self.peers[node] = Peer(session, contact, self._new_tunnel(node))
        return peer

    def _learn(self, record: Record) -> None:
        """A record came, or changed: where its node can be dialled. `_arrange` after the last."""
        node = record.node
        self.routes.forgive(node)
        if node != self.options.node and node not in self._servers:
            self._peer(node).contact.endpoints = record.fixed_endpoints()

    def _arrange(self, now: float) -> None:
        """Decides anew whom to keep a link to, and dials who is missing."""
        me = self.options.node
        if self._map_generation != self.directory.generation:
            self._map_generation = self.directory.generation
            self.routes.learn(self.directory)
        servers = [record.node for record in self.directory if record.fixed_endpoints()]
        if self.directory.own.roles & Role.SERVER:
            kept = topology.kept_by_server(me, servers) | set(self._servers)
        else:
            linked = {NodeId(n) for n, peer in self.peers.items() if peer.contact.direct()}
            kept = topology.kept_by_other(me, set(self._servers), servers, linked)
        for peer in self.peers.values():
            was_kept = peer.contact.is_kept
            peer.contact.is_kept = peer.id in kept
            if peer.contact.is_kept != was_kept:
                self._touch(peer)
                if not was_kept:
                    peer.contact.want(now)
        self._advertise(now)
        for peer in self.peers.values():  # who waited for a way may have one now
            if peer.tunnel.streams and not peer.contact.links:
                self._seek_route(peer, now)

    def _forget(self, node: NodeId) -> None:
        """A node was dropped from the list: it is dialled no more."""
        peer = self.peers.get(node)
        if peer is not None and node not in self._servers:
            peer.contact.endpoints = ()
            peer.contact.is_kept = False

    def _pass_on(self) -> None:
        """Gossip messages go to their neighbours' first links."""
        for node, payload in self.gossip.take_messages():
            peer = self.peers.get(node)
            state = peer.contact.direct() if peer is not None else None
            if peer is not None and state is not None:
                self._touch(peer)
                pad = self._random_below(64) if payload[0] == DIGEST else 0
                peer.outbox.append((state.link, Kind.GOSSIP, payload + bytes(pad), 0))

    def _new_tunnel(self, node: NodeId) -> Tunnel:
        return Tunnel(self.options.node, node, self._random_below)

    def _random_below(self, limit: int) -> int:
        return int.from_bytes(self._random(4), "big") % limit

    def _jitter(self, span: float) -> float:
        return self._random_below(1 << 20) / (1 << 20) * span

    def _bind(
        self, link: LinkId, entry: LinkEntry, peer: Peer, dialled: bool, endpoint: str, now: float
    ) -> None:
        """From now on this link is one of `peer`'s."""
        self._touch(peer)
        was_linked = bool(peer.contact.links)
        self._unproven.pop(link, None)
        entry.peer = peer
        entry.state = peer.contact.link_up(
            link, entry.protocol, endpoint, dialled, now, bool(entry.hops)
        )
        peer.tunnel.ack_size = RELAYED_ACK if entry.hops else limits.ACK_SIZE
        if not was_linked or not dialled:
            peer.tunnel.link_up()
        self._probe(peer, link, now)

    def _probe(self, peer: Peer, link: LinkId, now: float) -> None:
        token = self._random(8)
        if len(peer.probes) > 16:
            peer.probes.clear()
        peer.probes[token] = (link, now)
        pad = bytes(self._random_below(64))
        peer.outbox.append((link, Kind.PROBE, token + pad, 0))

    def _follow(self, peer: Peer, now: float) -> None:
        """Carries out what the contact planned."""
        for plan in peer.contact.take_plans():
            match plan:
                case Dial(endpoint):
                    self._events.append(DialWanted(peer.id, endpoint))
                case Probe(link, True):
                    peer.outbox.append((link, Kind.KEEPALIVE, bytes(self._random_below(64)), 0))
                case Probe(link, False):
                    self._probe(peer, link, now)
                    if peer.tunnel.streams and peer.contact.best().probed:
                        self._seek_route(peer, now)
                case GiveUp(link) if link < 0:
                    self.link_down(link, "no answer over relays", now)
                case GiveUp(link):
                    self._events.append(CloseWanted(link))
                case Dead(reason):
                    text = f"node {peer.id} is dead ({reason}); {peer.contact.last_failure}"
                    self._end_streams(peer, text)

    def _end_streams(self, peer: Peer, text: str) -> None:
        """Every stream to the peer ends; a fresh tunnel takes over, under the same boots.

        The sequence starts anew at both ends only with a new boot, so an abort between living
        boots resets each stream instead.
        """
        self._events.append(PeerNews(peer.id, text, "warning"))
        peer.tunnel.fail_all(Fault.EXIT_DEAD)

    def _new_boot(self, peer: Peer, old: int) -> None:
        """The peer was started anew (or is heard for the first time)."""
        peer.held = [held for held in peer.held if held[0].boot == peer.session.peer_boot]
        if old:
            text = f"node {peer.id} has restarted; its connections end"
            self._events.append(PeerNews(peer.id, text, "warning"))
            peer.tunnel.abort(Fault.EXIT_DEAD)
            self._events += peer.tunnel.take_events()
            rtt_s = peer.tunnel.rtt_s
            peer.tunnel = self._new_tunnel(peer.id)
            peer.tunnel.rtt_s = rtt_s

    def _spent(self, peer: Peer) -> None:
        """No number is left for messages to this peer, and none may repeat: silence."""
        if peer.tunnel.streams:
            text = f"numbers to node {peer.id} have run out: restart this node"
            self._events.append(PeerNews(peer.id, text, "warning"))
        peer.outbox.clear()
        peer.tunnel.abort(Fault.EXIT_DEAD)

    def _not_opened(self, peer: Peer, link: LinkId, header: Header, now: float) -> None:
        """A bound message that did not open: bound to a boot of ours that is gone, or forged."""
        self.counters.stale += 1
        known = peer.session.peer_boot
        if header.boot < known or (header.boot == known and peer.is_greeted):
            return  # it knows our boot: replayed or damaged
        if now < peer.notice_at:
            return
        peer.notice_at = now + NOTICE_EVERY_S
        self._reply_unproven(peer, link, header, Kind.NOTICE, b"")

    def _reply_unproven(
        self, peer: Peer, link: LinkId, header: Header, kind: int, payload: bytes
    ) -> None:
        """An answer to an origin whose boot is claimed, not yet proved: sealed for that boot."""
        peer.outbox.append((link, kind, payload + bytes(self._random_below(64)), header.boot))

    def _hold(self, peer: Peer, link: LinkId, header: Header, payload: bytes, now: float) -> None:
        """A stale first contact waits until its origin has echoed a random value."""
        size = sum(len(payload) for _, payload, _ in peer.held) + len(payload)
        if len(peer.held) < HELD_MAX and size <= HELD_SIZE_MAX:
            peer.held.append((header, payload, link))
        if not peer.challenge:
            peer.challenge = self._random(CHALLENGE_SIZE)
        if now >= peer.notice_at:
            peer.notice_at = now + NOTICE_EVERY_S
            self._reply_unproven(peer, link, header, Kind.CHALLENGE, peer.challenge)

    def _act(self, peer: Peer, link: LinkId, kind: int, payload: bytes, now: float) -> None:
        """A message that is genuine, fresh and for us."""
        peer.is_greeted = True
        entry = self.links.get(link)
        if entry is None:
            return
        if entry.peer is not peer:
            if entry.peer is not None:
                self.counters.misdirected += 1
                return
            self._bind(link, entry, peer, False, entry.remote, now)
        assert entry.state is not None
        peer.contact.heard(entry.state, now)
        if not peer.is_neighbour and not entry.hops:
            peer.is_neighbour = True
            self.gossip.link_up(peer.id)
            self._pass_on()
            self._arrange(now)
        if kind in (Kind.DATA, Kind.SINK):
            try:
                peer.tunnel.receive(kind, payload, now)
            except PeerFault as fault:
                self.counters.peer_faults += 1
                self._end_streams(peer, f"node {peer.id} broke the protocol: {fault}")
                self._events.append(CloseWanted(link))
        elif kind == Kind.KEEPALIVE:
            self.directory.heard(peer.id, now)
        elif kind == Kind.GOSSIP:
            self._hear_gossip(peer, link, payload, now)
        elif kind == Kind.PROBE:
            peer.outbox.append((link, Kind.ANSWER, payload[:8] + bytes(self._random_below(64)), 0))
        elif kind == Kind.ANSWER:
            probe = peer.probes.pop(payload[:8], None)
            if probe is not None and probe[0] == link:
                peer.contact.measured(entry.state, now - probe[1])
                peer.tunnel.rtt_s = entry.state.rtt_s or peer.tunnel.rtt_s
                self._advertise(now)
        elif kind == Kind.UNREACHABLE:
            self._hear_unreachable(peer, payload, now)
        elif kind == Kind.CHALLENGE:
            if peer.session.first_boot == peer.session.peer_boot:
                peer.outbox.append((link, Kind.ECHO, payload[:CHALLENGE_SIZE], 0))
        elif kind == Kind.ECHO:
            self._release_held(peer, payload, now)
        elif kind == Kind.GOODBYE:
            self._end_streams(peer, f"node {peer.id} stops")
            self._events.append(CloseWanted(link))

    # --- relays and routes -----------------------------------------------------------------------

    def _pass(self, link: LinkId, header: Header, body: Buffer, now: float) -> None:
        """A message on its way over this node, or one that has no business here."""
        ends = next_hop(header, self.options.node)
        entry = self.links.get(link)
        if ends is None or entry is None or entry.peer is None or entry.peer.id != ends[0]:
            self.counters.misdirected += 1
            self.relay.counters.misrouted += ends is not None
            return
        if not self.relay.freshness.admit(header):
            self.relay.counters.stale += 1
            return
        onward = self.peers.get(ends[1])
        state = onward.contact.direct() if onward is not None else None
        if onward is None or state is None:
            self._tell_unreachable(header, ends[1], Reason.NO_LINK, 0, now)
            return
        size_max = self.links[state.link].size_max
        if header.length > size_max + TAG_SIZE + 64:
            self._tell_unreachable(header, ends[1], Reason.TOO_LARGE, size_max, now)
            return
        self.relay.put(header, bytes(body), ends[1], now)
        onward.is_onward = True
        self._touch(onward)

    def _take_relayed(
        self,
        peer: Peer,
        room: Callable[[LinkId], int],
        out: list[tuple[LinkId, list[bytes]]],
        now: float,
    ) -> None:
        """What waits for this neighbour, as far as its link has room."""
        state = peer.contact.direct()
        if state is None:
            return  # `_neighbour_lost` has emptied the queue
        stamp = (int((now + self.wall_s) * 1000) & STAMP_MASK).to_bytes(3, "big")
        batch: list[bytes] = []
        for waiting in self.relay.take(peer.id, room(state.link), now):
            batch += (self.codec.reseal(waiting.header, waiting.is_second, stamp), waiting.body)
        peer.is_onward = peer.id in self.relay.queues
        if batch:
            out.append((state.link, batch))
            peer.contact.used(state, now)
            peer.contact.sent(state, False, now)

    def _tell_unreachable(
        self, header: Header, to: int, reason: Reason, size_max: int, now: float
    ) -> None:
        """The origin learns that its message did not go on, a few times a second at most."""
        self.relay.counters.unreachable += 1
        pair = header.origin, header.destination
        if now < self._told_at.get(pair, now) + TELL_EVERY_S and pair in self._told_at:
            return
        if len(self._told_at) >= TOLD_MAX:
            self._told_at.clear()
        self._told_at[pair] = now
        origin = self._peer(NodeId(header.origin))
        link: LinkId | None
        if header.hop1 == self.options.node:
            state = origin.contact.direct()
            link = state.link if state is not None else None
        else:
            link = self._relayed_link(origin.id, (NodeId(header.hop1),), now)
        if link is not None:
            self._touch(origin)
            payload = bytes((header.destination, to, reason)) + size_max.to_bytes(4, "big")
            origin.outbox.append((link, Kind.UNREACHABLE, payload, header.boot))

    def _hear_unreachable(self, relay: Peer, payload: bytes, now: float) -> None:
        """A relay could not pass a message of ours on: another way, or smaller messages."""
        if len(payload) < 7:
            self.counters.peer_faults += 1
            return
        to, reason = NodeId(payload[1]), payload[2]
        if reason == Reason.NO_LINK:
            self.routes.avoid(relay.id, to, now)
        for (destination, hops), link in list(self._relayed.items()):
            way = (*hops, destination)
            if relay.id not in hops or way[way.index(relay.id) + 1] != to:
                continue
            if reason == Reason.NO_LINK:
                self.link_down(link, f"node {relay.id} has no link to node {to}", now)
            elif reason == Reason.TOO_LARGE:
                entry = self.links[link]
                size_max = int.from_bytes(payload[3:7], "big")
                entry.size_max = max(CUT_MIN, min(entry.size_max, size_max))

    def _arrival(self, link: LinkId, header: Header, now: float) -> LinkId:
        """The relayed link that a message to us came by; 0: it cannot have come this way."""
        hops: Route = tuple(NodeId(hop) for hop in (header.hop2, header.hop1) if hop)
        entry = self.links.get(link)
        way = {header.origin, *hops, self.options.node}
        if entry is None or entry.peer is None or entry.peer.id != hops[0]:
            return LinkId(0)
        if len(way) != len(hops) + 2:
            return LinkId(0)
        return self._relayed_link(NodeId(header.origin), hops, now) or LinkId(0)

    def _relayed_link(self, peer: NodeId, hops: Route, now: float) -> LinkId | None:
        """The link to `peer` over these relays, made if need be; None: too many, or no first hop."""
        link = self._relayed.get((peer, hops))
        if link is not None:
            return link
        first = self.peers.get(hops[0])
        state = first.contact.direct() if first is not None else None
        if state is None or sum(1 for node, _ in self._relayed if node == peer) >= RELAYED_MAX:
            return None
        self._last_relayed -= 1
        link = self._relayed[peer, hops] = LinkId(self._last_relayed)
        text = "relay:" + ",".join(map(str, hops))
        size_max = self.links[state.link].size_max
        self.links[link] = LinkEntry(size_max, "relay", text, hops=hops)
        self._unproven[link] = now + UNPROVEN_S
        return link

    def _carrier(self, link: LinkId) -> LinkId | None:
        """The driver's link that carries this one; None: it is gone."""
        entry = self.links.get(link)
        if entry is None or not entry.hops:
            return link if entry is not None else None
        first = self.peers.get(entry.hops[0])
        state = first.contact.direct() if first is not None else None
        return state.link if state is not None else None

    def _seek_route(self, peer: Peer, now: float) -> None:
        """Opens a way over relays, unless one stands; where none is, dials who would be one."""
        self._touch(peer)
        if any(state.relayed and not state.probed for state in peer.contact.links):
            return
        linked = {
            NodeId(node): state.rtt_s
            for node, other in self.peers.items()
            if other is not peer and (state := other.contact.direct()) and other.is_neighbour
        }
        for route in self.routes.find(peer.id, linked, now):
            link = self._relayed_link(peer.id, route, now)
            if link is None:
                continue
            entry = self.links[link]
            if entry.peer is None:
                self._bind(link, entry, peer, True, entry.remote, now)
                return
        for node in self.routes.neighbours(peer.id, now)[:2]:
            if node not in linked and node != peer.id:
                other = self._peer(node)
                self._touch(other)
                other.contact.want(now)

    def _neighbour_lost(self, peer: Peer, now: float) -> None:
        """The last direct link to it is gone: nothing goes over it, nor on to it."""
        peer.is_onward = False
        for waiting in self.relay.drop(peer.id):
            self._tell_unreachable(waiting.header, peer.id, Reason.NO_LINK, 0, now)
        for (_, hops), link in list(self._relayed.items()):
            if hops[0] == peer.id:
                self.link_down(link, f"lost node {peer.id} on the way", now)

    def _advertise(self, now: float) -> None:
        """This node's record tells the links it keeps, with coarse round trips."""
        old = {edge.neighbour: edge.rtt_s for edge in self.directory.own.links}
        links = []
        for node in sorted(self.peers):
            contact = self.peers[node].contact
            state = contact.direct()
            if state is None or not state.dialled or not contact.is_kept or state.rtt_s is None:
                continue
            known = old.get(NodeId(node), 0.0)
            is_near = known / 1.5 <= state.rtt_s <= known * 1.5 or abs(state.rtt_s - known) < 0.005
            links.append(Edge(NodeId(node), known if known and is_near else coarse(state.rtt_s)))
        self.describe(now, links=tuple(links))

    def _hear_gossip(self, peer: Peer, link: LinkId, payload: bytes, now: float) -> None:
        try:
            self.gossip.receive(peer.id, payload, now)
        except PeerFault as fault:
            self.counters.peer_faults += 1
            text = f"node {peer.id} sent gossip that makes no sense: {fault}"
            self._events.append(PeerNews(peer.id, text, "warning"))
            self._events.append(CloseWanted(link))
        self._pass_on()
        news = self.gossip.take_news()
        for node in news:
            record = self.directory.get(node)
            if record is not None:
                self._learn(record)
        if news:
            self._arrange(now)

    def _release_held(self, peer: Peer, payload: bytes, now: float) -> None:
        if not peer.challenge or payload[:CHALLENGE_SIZE] != peer.challenge:
            return
        held = peer.held
        peer.held = []
        peer.challenge = b""
        for header, first, link in held:
            if header.boot == peer.session.peer_boot and peer.session.accept_first(header):
                self._act(peer, link, header.kind, first, now)

    def _note_skew(self, peer: Peer, sent_ms: int, now: float) -> None:
        skew_ms = sent_ms - int((now + self.wall_s) * 1000)
        if abs(skew_ms) > SKEW_LOGGED_MS and not peer.skew_told:
            peer.skew_told = True
            side = "ahead of" if skew_ms > 0 else "behind"
            minutes = abs(skew_ms) / 60_000
            text = f"the clock of node {peer.id} is {minutes:.0f} min {side} this node's"
            self._events.append(PeerNews(peer.id, text, "warning"))
