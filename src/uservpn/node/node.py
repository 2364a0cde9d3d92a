"""The whole core behind one door: what arrives, what leaves, and when to come back.

A `Node` routes between its parts and holds the rules that need several of them: what a message does,
what a new boot ends, what a lost link means. The parts share one `Table` of peers and links:

    Admission   which messages may act (first contacts, challenges, notices)
    Numbers     two nodes with one number
    Door        which numbers are taken, for newcomers
    Members     the node list: records, gossip, whom to keep a link to
    Relaying    ways over other nodes, and what passes over this one
    Sizing      how large the messages of datagram links may be
    Mailing     out-of-band messages
    Flights     flight times and the clocks of others
    Reach       own endpoints, ways through NATs
    Sender      what leaves now, and over which link

Sans-I/O: `now` is monotonic seconds, `wall_s` is added to get the wall clock.

The driver's contract, in this order: `receive` for what arrived, `on_deadline` when due,
`take_transmits` per link with room, `take_events`, then sleep until `next_deadline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.mesh.claims import INSTANCE_SIZE, Claims, StandBack
from uservpn.mesh.contact import Dead, Dial, GiveUp, Probe
from uservpn.mesh.liveness import LinkState
from uservpn.mesh.records import Record
from uservpn.node.admission import Admission
from uservpn.node.door import Door
from uservpn.node.flights import Flights
from uservpn.node.mailing import Mailing
from uservpn.node.members import Members
from uservpn.node.numbers import Numbers
from uservpn.node.options import CloseWanted, DialWanted, NodeEvent, NodeOptions
from uservpn.node.reach import Reach
from uservpn.node.relay import Reason
from uservpn.node.relaying import Loss, Relaying
from uservpn.node.sending import Batches, Room, Sender
from uservpn.node.sizing import Sizing
from uservpn.node.table import OVERHEAD, UNPROVEN_S, LinkEntry, Peer, Table
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.tunnel.tunnel import Tunnel
from uservpn.types import Buffer, LinkId, NodeId
from uservpn.wire.constants import CLAIMED_KINDS, FLAG_BOUND, Kind
from uservpn.wire.header import Header, HeaderCodec
from uservpn.wire.keys import Ring

ROUTE_AFTER_S: Final = 1.0
"""Streams that wait so long for a direct link take a relayed one, until there is a direct one."""


class Node:
    """The core. Not thread-safe; no method blocks, and bad input never raises out of one."""

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
        self._sender = Sender(self.table, self.relaying, self._sizing)
        self._dues: dict[int, float] = {}
        self._soonest: float | None = None
        self._needing: dict[int, Peer] = {}
        """Peers with streams or messages, by the last flush."""
        for peer in options.servers:
            self.table.peer(peer)

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
        peer.contact.want_stream(now)
        self._seek_soon(peer, now)
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
        self._seek_soon(other, now)
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
        self.members.start(now)
        self._seek_ways(now)
        for peer in self.peers.values():
            if peer.contact.is_kept:
                self.table.touch(peer)
                peer.contact.want(now)

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
                self._end_streams(peer, f"node {peer.id} is no longer configured")
                peer.contact.leave(now)
            else:
                self.members.offer(peer)
        for node in servers:
            peer = self.table.peer(node)
            self.table.touch(peer)
            self.members.offer(peer)
            peer.contact.want(now)
        self._arrange(now)

    def moved(self, local: Sequence[str], interfaces: Sequence[str], now: float) -> None:
        """The machine's addresses: where it listens on them, and as `address/prefix`. `wake` too, if new."""
        self.reach.moved(local, interfaces)
        self._reach_changed(now)

    def wake(self, now: float) -> None:
        """The machine slept, or its network changed: every peer is tried once, at once."""
        self.reach.wake(now)
        self._reach_changed(now)
        for peer in self.peers.values():
            self.table.touch(peer)
            peer.note_needs()
            peer.contact.wake(now)
        self._seek_ways(now)

    def goodbye(self) -> None:
        """Tells every linked peer that this node stops."""
        for peer in self.peers.values():
            self.table.touch(peer)
            for state in peer.contact.links:
                if not state.relayed or peer.tunnel.streams:
                    peer.outbox.append((state.link, Kind.GOODBYE, b"", 0))

    # --- links -----------------------------------------------------------------------------------

    def link_up(
        self, link: LinkId, protocol: str, size_max: int, remote: str, now: float,
        peer: NodeId | None = None, endpoint: str = "", size_base: int = 0,
    ) -> None:  # fmt: skip
        """A link is open; `peer` and `endpoint` are given for one that was dialled.

        Sealed payloads up to `size_max` fit. A link that loses what is too large for its path, without
        a word, also has a `size_base` that no path is too small for.
        """
        if self.table.is_back:
            self.table.events.append(CloseWanted(link))
            return
        entry = self.links[link] = LinkEntry(size_max - OVERHEAD, protocol, remote)
        if size_base:
            self._sizing.link_up(entry, size_base, size_max)
        if peer is not None:
            known = self.table.peer(peer)
            if known.contact.takes(protocol, endpoint):
                self.table.bind(link, entry, known, True, endpoint, now)
            else:
                self.table.touch(known)
                self.table.events.append(CloseWanted(link))
        else:
            self.table.unproven[link] = now + UNPROVEN_S

    def link_resized(self, link: LinkId, size_max: int, now: float) -> None:
        """Another size of sealed payloads fits from now on."""
        entry = self.links.get(link)
        if entry is not None:
            self._sizing.link_resized(link, entry, size_max, now)

    def link_down(self, link: LinkId, reason: str, now: float, refused: bool = False) -> None:
        """A link is gone; `refused`: the other machine said that nobody is there."""
        entry = self.links.pop(link, None)
        self._sizing.link_down(link)
        self.table.unproven.pop(link, None)
        if entry is None:
            return
        if entry.hops:
            self.relaying.link_down(link)
        self.reach.link_down(link, now)
        peer = entry.peer
        if peer is None:
            return
        self.table.touch(peer)
        peer.note_needs()
        peer.contact.link_down(link, now, refused)
        if entry.state is not None and entry.state.is_unproved:
            return  # it carried nothing
        if entry.path is not None:
            peer.tunnel.path_down(entry.path)
        if peer.is_neighbour and peer.contact.direct() is None:
            self.members.neighbour_down(peer)
            self._drop_ways(self.relaying.neighbour_lost(peer, now), now)
            self._arrange(now)
        elif not entry.hops:
            self.members.link_lost(peer)
        peer.mail.link_lost()
        if peer.is_needed() and peer.contact.direct() is None:
            self.relaying.seek(peer, now)
        was_tried = (
            entry.state is not None and entry.state.is_tentative
        )  # a dial, to who reads the log
        if not peer.contact.links and not was_tried:
            self.table.tell(peer.id, f"lost the link to node {peer.id} ({entry.remote}): {reason}")
        if peer.rival is not None:
            self._yield_number(peer, now)

    def link_refused(self, link: LinkId, now: float) -> bool:
        """The other machine says that nobody is there; True: it is believed, and the link is gone.

        Only of a place that is the peer's for good: in front of another one a router may have said it.
        """
        entry = self.links.get(link)
        if entry is None or entry.peer is None or entry.state is None:
            return False
        if not entry.peer.contact.believes_refusal(entry.state):
            return False
        self.link_down(link, "refused", now, refused=True)
        return True

    def dial_failed(
        self, peer: NodeId, endpoint: str, refused: bool, detail: str, now: float,
        offline: bool = False,
    ) -> None:  # fmt: skip
        """A wanted dial did not lead to a link; `offline`: the system knows no way there."""
        known = self.peers[peer]
        self.table.touch(known)
        known.note_needs()
        if known.is_needed():
            self.relaying.seek(known, now)  # before it is judged that nothing is left
        known.contact.dial_failed(endpoint, refused, detail, now, offline)
        self._arrange(now)

    def link_progress(self, link: LinkId, now: float) -> None:
        """Bytes of a large message moved on this link."""
        entry = self.links.get(link)
        if entry is not None and entry.peer is not None and entry.state is not None:
            self.table.touch(entry.peer)
            entry.peer.contact.progress(entry.state, now)

    def receive(self, link: LinkId, header: Header, body: Buffer, now: float) -> None:
        """A message whose header is genuine. Stale, forged and foreign ones have no effect."""
        if header.destination != self.options.node:
            self.relaying.pass_on(link, header, body, now)
            return
        if header.hop1:
            link = self.relaying.arrival(link, header, now)
        if header.origin == self.options.node or not link:
            if header.kind == Kind.JOIN and link:
                self.door.knock(link, header, body, now)
            else:
                self.counters.misdirected += 1
            return
        peer = self.table.touched[header.origin] = self.table.peer(NodeId(header.origin))
        session = peer.session
        boot = session.peer_boot
        if header.boot != boot and boot and self.numbers.judge(peer, link, header, body, now):
            self._yield_number(peer, now)
            return
        payload = session.open_bound(header, body) if header.flags & FLAG_BOUND else None
        if payload is None:
            payload = self._admission.open(peer, link, header, body, now)
            if payload is None:
                return
        if session.peer_boot != boot:
            self._new_boot(peer, boot)
        self._act(peer, link, header, payload, now)
        entry = self.links.get(link)
        if boot and boot != session.peer_boot and entry is not None and entry.peer is peer:
            self.table.probe(peer, link, now)  # what was measured and asked was the old one

    def receive_batch(
        self, link: LinkId, messages: Sequence[tuple[Header, Buffer]], now: float
    ) -> None:
        """As `receive` for each, at less cost: what the first message of a peer told need not be told again.

        That is whose link it is, that it was heard, and how long its stamps were under way.
        """
        index, count = 0, len(messages)
        while index < count:
            header, body = messages[index]
            self.receive(link, header, body, now)
            index += 1
            entry = self.links.get(link)
            if index == count or entry is None or entry.peer is None or entry.state is None:
                continue
            if entry.state.heard_at == now:
                index = self._receive_run(entry.peer, link, entry.is_lossy, messages, index, now)

    def _receive_run(
        self,
        peer: Peer,
        link: LinkId,
        is_lossy: bool,
        messages: Sequence[tuple[Header, Buffer]],
        index: int,
        now: float,
    ) -> int:
        """Tunnel messages of a peer that was just heard; returns where they end."""
        index, opened = peer.session.open_run(messages, index)
        run: list[bytes] = []
        for kind, payload in opened:
            if kind == Kind.DATA:
                run.append(payload)
                continue
            if run:
                self._act_run(peer, link, run, is_lossy, now)
                run = []
            self._act_tunnel(peer, link, kind, payload, is_lossy, now)
        if run:
            self._act_run(peer, link, run, is_lossy, now)
        return index

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
        for node, due in self._dues.items():
            if due <= now:
                table.touch(self.peers[node])
        for peer in list(table.touched.values()):  # what follows may touch others
            peer.note_needs()
            peer.contact.on_deadline(now)
            if peer.route_at is not None and now >= peer.route_at:
                peer.route_at = None
                if peer.is_needed() and peer.contact.direct() is None:
                    self.relaying.seek(peer, now)
            if peer.contact.has_mail:
                peer.mail.on_deadline(now)
            way = peer.spare_way()
            if way is not None and now >= peer.schedule.unused_at(way):
                self.link_down(way.link, "no longer used", now)
                peer.schedule.way_closed()
            if peer.contact.links:
                self.directory.heard(peer.id, peer.contact.heard_at or 0.0)
                peer.tunnel.on_deadline(now)
            if peer.rival is not None:
                self._yield_number(peer, now)
                self.numbers.on_deadline(peer, now)
            self._follow(peer, now)
        self.claims.on_deadline(now)
        self._follow_claims(now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        table = self.table
        if table.touched:
            busy = {}
            for node, peer in table.touched.items():
                due = peer.next_deadline()
                if due is None:
                    self._dues.pop(node, None)
                else:
                    self._dues[node] = due
                if peer.contact.has_streams or peer.contact.has_mail:
                    self._needing[node] = peer
                else:
                    self._needing.pop(node, None)
                if peer.has_work():
                    busy[node] = peer
            table.touched = busy
            self._soonest = min(self._dues.values(), default=None)
        times = [self._soonest, self.members.gossip.next_deadline(), self._sizing.next_deadline()]
        times += (self.reach.next_deadline(), self.claims.next_deadline())
        if table.unproven:
            times.append(next(iter(table.unproven.values())))
        return min((time for time in times if time is not None), default=None)

    # --- takes -----------------------------------------------------------------------------------

    def take_events(self, now: float) -> list[NodeEvent]:
        """What happened, in order per tunnel."""
        table = self.table
        events = table.events
        table.events = []
        table.is_taking = True
        for peer in table.touched.values():
            self._follow(peer, now)
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

    def take_transmits(self, room: Room, now: float) -> Batches:
        """Per link, sealed headers and payloads in the order to send them."""
        return self._sender.take(room, now)

    # --- questions -------------------------------------------------------------------------------

    def forgotten(self) -> list[int]:
        """Peers with work, or another deadline, that no take would look at: none, or it is a bug."""
        return [
            node
            for node, peer in self.peers.items()
            if (peer.has_work() and node not in self.table.touched)
            or peer.next_deadline() != self._dues.get(node)
        ]

    # --- inside ----------------------------------------------------------------------------------

    def _arrange(self, now: float) -> None:
        """Whom to keep a link to may have changed; who waited for a way may have one now."""
        self.members.arrange(now)
        self._seek_ways(now)

    def _seek_ways(self, now: float) -> None:
        for peer in list(self._needing.values()):
            if peer.is_needed() and not peer.contact.links:
                self.relaying.seek(peer, now)

    def _seek_soon(self, peer: Peer, now: float) -> None:
        """A relayed way, unless there is a direct link by then."""
        if peer.contact.direct() is None and peer.route_at is None:
            peer.route_at = now + ROUTE_AFTER_S if peer.contact.dials.has_fixed else now

    def _drop_ways(self, losses: list[Loss], now: float) -> None:
        for link, reason in losses:
            self.link_down(link, reason, now)

    def _follow(self, peer: Peer, now: float) -> None:
        """Carries out what the contact planned."""
        table = self.table
        for plan in peer.contact.take_plans():
            match plan:
                case Dial(endpoint) if table.is_back:
                    peer.contact.dial_failed(endpoint, False, "this node stands back", now)
                case Dial(endpoint):
                    table.events.append(DialWanted(peer.id, endpoint))
                case Probe(link, True):
                    peer.outbox.append((link, Kind.KEEPALIVE, table.padding(), 0))
                case Probe(link, False):
                    table.probe(peer, link, now)
                    self.relaying.doubt(link, now)
                    self._note_silence(peer, link, now)
                    if peer.is_needed() and peer.contact.is_silent():
                        self.relaying.seek(peer, now)
                case GiveUp(link) if link < 0:
                    self.link_down(link, "no answer over relays", now)
                case GiveUp(link):
                    table.events.append(CloseWanted(link))
                case Dead(reason):
                    text = f"node {peer.id} is dead ({reason}); {peer.contact.last_failure}"
                    self._end_streams(peer, text)

    def _note_silence(self, peer: Peer, link: LinkId, now: float) -> None:
        """A link is probed: if it is silent and another one carries, what is on it is asked for there."""
        entry = self.links.get(link)
        if entry is None or entry.state is None or entry.path is None:
            return
        if entry.state.probed and not peer.contact.is_silent():
            peer.tunnel.path_left(entry.path, now)

    def _end_streams(self, peer: Peer, text: str) -> None:
        """Every stream to the peer ends; a fresh tunnel takes over, under the same boots.

        The sequence starts anew at both ends only with a new boot, so an abort between living
        boots resets each stream instead.
        """
        self.table.tell(peer.id, text, "warning")
        peer.tunnel.fail_all(Fault.EXIT_DEAD)

    # --- one number, two nodes -------------------------------------------------------------------

    def retry_number(self, now: float) -> None:
        """Does the number belong to us now? Only asked when this node stands back."""
        self.claims.retry(now)
        self._follow_claims(now)

    def _yield_number(self, peer: Peer, now: float) -> None:
        """The known node is gone: its links end, and what the other one said is heard."""
        if not self.numbers.is_gone(peer, now):
            return
        rival = peer.rival
        assert rival is not None
        peer.rival = None
        for state in [*peer.contact.links, *peer.contact.unproved]:
            if state.link != rival.link:
                self.table.events.append(CloseWanted(state.link))
                self.link_down(state.link, "silent while its number came from elsewhere", now)
        for link, header, body in rival.held:
            self.receive(link, header, body, now)

    def _follow_claims(self, now: float) -> None:
        """Carries out what follows from claims to our number."""
        for plan in self.numbers.follow(now):
            if isinstance(plan, StandBack):
                self._stand_back(plan.address, now)
            else:
                self.table.is_back = False
                self.table.tell(self.table.me, f"trying again as node {self.table.me}")
                self.start(now)

    def _stand_back(self, address: str, now: float) -> None:
        """Leaves the mesh: streams end, peers hear it, links close, none is dialled."""
        table = self.table
        text = (
            f"duplicate: node {table.me} stands back, its number belongs to {address or 'another'}"
        )
        table.tell(table.me, text, "warning")
        self.goodbye()
        table.is_back = True
        for peer in self.peers.values():
            peer.tunnel.fail_all(Fault.EXIT_DEAD)
            for state in [*peer.contact.links, *peer.contact.unproved]:
                if state.link < 0:
                    self.link_down(state.link, "standing back", now)
        table.events += [CloseWanted(link) for link in self.links]
        self._arrange(now)

    def _outdated(self, peer: Peer, payload: bytes, now: float) -> None:
        """To this peer our boot is an old one: it gets a higher one. To it, we restarted."""
        if self.numbers.renew(peer, int.from_bytes(payload[:8], "big"), now):
            peer.tunnel.abort(Fault.EXIT_DEAD)
            self.table.events += peer.tunnel.take_events()
            self._new_tunnel(peer)
            for state in [*peer.contact.links, *peer.contact.unproved]:
                self.table.probe(peer, state.link, now)

    def _new_boot(self, peer: Peer, old: int) -> None:
        """The peer was started anew (or is heard for the first time)."""
        peer.held = [held for held in peer.held if held[0].boot == peer.session.peer_boot]
        if old:
            text = f"node {peer.id} has restarted; its connections end"
            self.table.tell(peer.id, text, "warning")
            peer.tunnel.abort(Fault.EXIT_DEAD)
            self.table.events += peer.tunnel.take_events()
            self._new_tunnel(peer)
            peer.mail.peer_restarted()
            self.flights.restarted(peer)

    def _new_tunnel(self, peer: Peer) -> None:
        """A tunnel that has carried nothing, over the links that stand."""
        rtt_s = peer.tunnel.rtt_s
        peer.tunnel = self.table.new_tunnel(peer.id)
        for state in peer.contact.links:
            peer.tunnel.path_up(self.links[state.link].new_path(state.link), False)
        for state in peer.contact.unproved:
            self.links[state.link].new_path(state.link)
        peer.tunnel.rtt_s = rtt_s

    def _act(self, peer: Peer, link: LinkId, header: Header, payload: bytes, now: float) -> None:
        """A message that is genuine, fresh and for us."""
        if header.kind not in CLAIMED_KINDS:
            peer.is_greeted = True
        entry = self.links.get(link)
        if entry is None:
            return
        if entry.peer is not peer:
            if entry.peer is not None:
                self.counters.misdirected += 1
                if entry.mtu is not None and not (entry.state and entry.state.dialled):
                    # whoever had this address before is gone, and said nothing: begin anew
                    self.table.events.append(CloseWanted(link))
                return
            self.table.bind(link, entry, peer, False, entry.remote, now)
        assert entry.state is not None
        peer.contact.heard(entry.state, now)
        if entry.hops:
            if self.reach.may_meet(peer, now):
                self.reach.meet(peer, link, now)
        elif not peer.is_neighbour:
            self._neighbour_up(peer, now)
        if now >= peer.sample_at:
            self.flights.heard(peer, link, entry, header, now)
        if header.kind not in (Kind.DATA, Kind.SINK):
            self._act_single(peer, link, entry, header, payload, now)
            return
        if header.kind == Kind.DATA:
            if entry.hops:
                peer.schedule.relayed_at = now
            else:
                peer.schedule.heard_on = link
        self._act_tunnel(peer, link, header.kind, payload, entry.is_lossy, now)

    def _act_tunnel(
        self, peer: Peer, link: LinkId, kind: int, payload: bytes, is_lossy: bool, now: float
    ) -> None:
        """A tunnel's message; whoever breaks its protocol loses streams and link."""
        try:
            peer.tunnel.receive(kind, payload, now, is_lossy)
        except PeerFault as fault:
            self._broke(peer, link, fault)

    def _act_run(
        self, peer: Peer, link: LinkId, payloads: list[bytes], is_lossy: bool, now: float
    ) -> None:
        """As `_act_tunnel` for DATA messages that came together."""
        peer.schedule.heard_on = link
        try:
            peer.tunnel.receive_run(payloads, now, is_lossy)
        except PeerFault as fault:
            self._broke(peer, link, fault)

    def _broke(self, peer: Peer, link: LinkId, fault: PeerFault) -> None:
        self.counters.peer_faults += 1
        self._end_streams(peer, f"node {peer.id} broke the protocol: {fault}")
        self.table.events.append(CloseWanted(link))

    def _neighbour_up(self, peer: Peer, now: float) -> None:
        """It was heard; is it over a link of ours, and proved?"""
        if peer.contact.direct() is not None:
            self.members.neighbour_up(peer, now)
            self._seek_ways(now)

    def _prove(self, peer: Peer, state: LinkState, now: float) -> None:
        """The peer has got what was sent over this link, so it is where the link leads."""
        if not state.is_unproved and not state.is_tentative:
            return
        was_linked = bool(peer.contact.links)
        was_unproved = state.is_unproved
        has_moved = was_unproved and peer.is_needed() and peer.contact.replaces(state)
        peer.contact.proved(state, now)
        if was_unproved:
            path = self.links[state.link].path
            assert path is not None
            peer.tunnel.path_up(path, has_moved or not was_linked)
        if state.is_lossy:
            self.reach.link_proved(peer, state, now)
        peer.meet_failures = 0
        if not peer.is_neighbour:
            self._neighbour_up(peer, now)

    def _act_single(
        self, peer: Peer, link: LinkId, entry: LinkEntry, header: Header, payload: bytes, now: float
    ) -> None:
        """Everything that is not the tunnel's."""
        kind, outbox = header.kind, peer.outbox
        if kind == Kind.KEEPALIVE:
            self.directory.heard(peer.id, now)
        elif kind == Kind.GOSSIP:
            if self.members.hear(peer, link, payload, now):
                self._seek_ways(now)
            contested_boot = self.members.gossip.contested_boot()
            if contested_boot:
                self.claims.contradicted(contested_boot, now)
                self._follow_claims(now)
        elif kind == Kind.PROBE:
            answer = self.flights.answer(header, payload, now) + self.table.padding()
            outbox.append((link, Kind.ANSWER, answer, 0))
            self.reach.probed(link, now)
        elif kind == Kind.ANSWER:
            self._act_answer(peer, link, entry, header, payload, now)
        elif kind in (Kind.MESSAGE, Kind.CONFIRM):
            self._act_mail(peer, link, kind, payload)
        elif kind == Kind.REACH:
            self._act_reach(peer, link, entry, payload, now)
        elif kind == Kind.UNREACHABLE:
            if payload[2:3] == bytes((Reason.OLD_BOOT,)):
                for other in self.relaying.reached_over(peer, payload[0]):
                    self._outdated(other, payload[7:15], now)
            self._drop_ways(self.relaying.hear_unreachable(peer, payload, now), now)
        elif kind == Kind.CHALLENGE:
            if peer.session.first_boot == peer.session.peer_boot:
                outbox.append((link, Kind.ECHO, self.numbers.echo(payload, now), 0))
                peer.probes.clear()  # held over there: their answers would tell too long a flight
                self.table.probe(peer, link, now)
        elif kind == Kind.ECHO:
            for held in self._admission.release(peer, payload):
                self._act(peer, held.link, held.header, held.payload, now)
        elif kind in (Kind.DUPLICATE, Kind.CLAIM):
            self.numbers.hear(peer, link, kind, payload, now)
            self._follow_claims(now)
        elif kind == Kind.OUTDATED:
            self._outdated(peer, payload, now)
        elif kind == Kind.GOODBYE:
            self._end_streams(peer, f"node {peer.id} stops")
            self.table.events.append(CloseWanted(link))

    def _act_mail(self, peer: Peer, link: LinkId, kind: int, payload: bytes) -> None:
        """An out-of-band message, or the confirmation of one."""
        try:
            if kind == Kind.MESSAGE:
                self._mailing.receive(peer, link, payload)
            else:
                peer.mail.confirmed(payload)
        except PeerFault as fault:
            self.counters.peer_faults += 1
            text = f"node {peer.id} sent a message that makes no sense: {fault}"
            self.table.tell(peer.id, text, "warning")
            self.table.events.append(CloseWanted(link))

    def _act_strayed(self, peer: Peer, link: LinkId, now: float) -> None:
        """A probe of `link` was answered over another one: only who got it could know its token.

        So somebody who races every message of the peer to us cannot make its real link look dead.
        """
        entry = self.links.get(link)
        if entry is not None and entry.peer is peer and entry.state is not None:
            self._prove(peer, entry.state, now)
            peer.contact.heard(entry.state, now)

    def _act_reach(
        self, peer: Peer, link: LinkId, entry: LinkEntry, payload: bytes, now: float
    ) -> None:
        """How this node, or the peer, can be reached."""
        try:
            if self.reach.hear(peer, link, entry, payload, now):
                self._reach_changed(now)
        except PeerFault as fault:
            self.counters.peer_faults += 1
            text = f"node {peer.id} told addresses that make no sense: {fault}"
            self.table.tell(peer.id, text, "warning")
            self.table.events.append(CloseWanted(link))

    def _reach_changed(self, now: float) -> None:
        """This node's endpoints may be others, and so may be what is worth dialling."""
        self.members.describe(now, endpoints=self.reach.endpoints())
        for peer in self.peers.values():
            self.members.offer(peer)

    def _act_answer(
        self, peer: Peer, link: LinkId, entry: LinkEntry, header: Header, payload: bytes, now: float
    ) -> None:
        """How long one round trip over this link took, or how large a message may be."""
        if peer.rival is not None:
            self.numbers.answered(peer, payload[:8], now)
        probe = peer.probes.pop(payload[:8], None)
        if probe is not None and probe[0] != link:
            self._act_strayed(peer, probe[0], now)
        elif probe is not None and entry.state is not None:
            is_first = entry.state.rtt_s is None
            entry.state.measured(now - probe[1])
            self._prove(peer, entry.state, now)
            peer.tunnel.rtt_s = entry.state.rtt_s or peer.tunnel.rtt_s
            self.flights.answered(peer, link, probe[1], header, payload, now)
            if is_first and not entry.hops:
                self._arrange(now)  # a nearer server than one that is kept?
            else:
                self.members.advertise(now)
        if entry.state is not None and not entry.state.is_unproved:
            self._sizing.answered(link, entry, payload[:8], now)
