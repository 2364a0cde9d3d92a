"""One node of the simulated world: the shipped `Node`, driven by the rules of the driver's contract.

A `Seat` is what stays over restarts: the number, the host, the configuration, the state on disk. A `Member`
is one start of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from uservpn.errors import Fault, StreamFault
from uservpn.kit.endpoint import Address, Endpoint
from uservpn.mesh.addresses import DIAL_LIMIT_S
from uservpn.mesh.claims import INSTANCE_SIZE
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.node.arrivals import Arrivals
from uservpn.node.node import Node
from uservpn.node.options import (
    CloseWanted,
    DialWanted,
    Message,
    MessageResult,
    NodeEvent,
    NodeOptions,
    PeerNews,
)
from uservpn.node.table import LinkEntry, Peer
from uservpn.sim.flow import Flow, FlowEnd
from uservpn.sim.link import (
    TCP_SIZE_MAX,
    UDP_SIZE_BASE,
    UDP_SIZE_MAX,
    Link,
    TcpLink,
    UdpLink,
    remote_text,
)
from uservpn.sim.network import Batch, End, Host
from uservpn.tunnel.events import Data, Finished, Offered, Opened, Reset, Room
from uservpn.types import LinkId, NodeId
from uservpn.wire.constants import BOOT_CHANCE
from uservpn.wire.header import Header, HeaderCodec, Run

if TYPE_CHECKING:
    from uservpn.sim.world import World

PORT: Final = 7000
UDP_LINKS_MAX: Final = 512
"""Datagram links of one node; the oldest that nobody has proved goes."""
ACTED_MAX: Final = 20_000
ROUNDS_MAX: Final = 50
NEWS_MAX: Final = 40


@dataclass(slots=True)
class Seat:
    """A node as its owner configured it, and what its disk holds."""

    node: NodeId
    host: Host
    keys: tuple[bytes, ...]
    roles: Role = Role.RELAY
    listens: tuple[str, ...] = ()
    """Protocols of its fixed endpoints; none: it only dials out."""
    local: tuple[str, ...] = ()
    """Protocols it listens with on its interface's address."""
    servers: Mapping[NodeId, tuple[str, ...]] = field(default_factory=dict)
    skew_s: float = 0.0
    """By how much its clock is wrong."""
    keepalive_s: float = 600.0
    grace_s: float = 60.0
    last_boot: int = 0
    nodes: bytes = b""
    start_count: int = 0
    acted: OrderedDict[tuple[int, int, int], None] = field(default_factory=OrderedDict)
    """The messages (origin, boot, number) that its node acted on, over all its starts."""

    def endpoints(self) -> tuple[str, ...]:
        """Where it can be dialled."""
        return tuple(str(Endpoint(p, self.host.ip, PORT)) for p in self.listens)

    def record(self, boot: int) -> Record:
        """What it says of itself."""
        known = tuple(Known(EndpointKind.FIXED, endpoint) for endpoint in self.endpoints())
        site = self.host.site
        name = f"{site.name}-{self.node}"
        return Record(self.node, boot, 0, self.roles, name, site.country, "0.1.0", known)


class WatchedArrivals(Arrivals):
    """What a node acts on: nothing twice."""

    world: World
    acted: OrderedDict[tuple[int, int, int], None]

    def act(self, peer: Peer, link: LinkId, header: Header, payload: bytes, now: float) -> None:
        """As the shipped one."""
        key = header.origin, header.boot, header.number
        if key in self.acted:
            self.world.broken(f"node {self._table.me} acted twice on {key}")
        self.acted[key] = None
        if len(self.acted) > ACTED_MAX:
            self.acted.popitem(last=False)
        super().act(peer, link, header, payload, now)


class WatchedNode(Node):
    """The shipped node, watched."""

    ARRIVALS = WatchedArrivals

    def watch(self, world: World, acted: OrderedDict[tuple[int, int, int], None]) -> None:
        """Says where a breach is told, and what earlier starts have acted on."""
        assert isinstance(self._arrivals, WatchedArrivals)
        self._arrivals.world = world
        self._arrivals.acted = acted


class Member:
    """One start of a node."""

    def __init__(self, world: World, seat: Seat) -> None:
        self.world = world
        self.seat = seat
        self.is_up = True
        seat.start_count += 1
        now = world.agenda.now
        wall_s = world.wall_s + seat.skew_s
        self.rng = Random(f"{world.seed}/{seat.node}/{seat.start_count}")
        boot = int((now + wall_s) * 1000) << BOOT_CHANCE | self.rng.getrandbits(BOOT_CHANCE)
        self.boot = seat.last_boot = max(boot, seat.last_boot + 1)
        ring = world.ring(seat.keys)
        options = NodeOptions(
            seat.node,
            self.boot,
            seat.servers,
            seat.record(self.boot),
            keepalive_s=seat.keepalive_s,
            grace_s=seat.grace_s,
            instance=seat.host.name.encode()[:INSTANCE_SIZE].ljust(INSTANCE_SIZE),
        )
        self.codec = HeaderCodec(ring)
        self.node = WatchedNode(
            options, ring, self.codec, self.rng.randbytes, now=now, wall_s=wall_s
        )
        self.node.watch(world, seat.acted)
        self.links: dict[LinkId, Link] = {}
        self.sent_count = 0
        self.sent_size = 0
        self.overhead_size = 0
        self.dial_count = 0
        self.opened_count = 0
        """Links that came up."""
        self._by_remote: dict[Address, UdpLink] = {}
        self._armed_at: float | None = None
        self.news: list[str] = []
        """The newest lines that it would have logged."""
        self.told: Record | None = None
        """The newest version of its record that the world has seen."""
        self._sivs = ring.sivs

    def start(self) -> None:
        """Listens, reads the list, dials."""
        seat = self.seat
        if seat.nodes:
            self.node.directory.load(seat.nodes, self.world.agenda.now)
        host = seat.host
        host.sockets[PORT] = self
        if "tcp" in seat.listens:
            host.listeners[PORT] = self
        self._find_addresses()
        self.node.start(self.world.agenda.now)
        self.settle()

    def _find_addresses(self) -> None:
        """What the system says of its interfaces."""
        seat = self.seat
        local = [str(Endpoint(protocol, seat.host.ip, PORT)) for protocol in seat.local]
        self.node.moved(local, [f"{seat.host.ip}/24"], self.world.agenda.now)

    def fields(self, head: bytes) -> bytes:
        """The header fields of a message that this node has sealed."""
        for siv in self._sivs:
            try:
                return siv.decrypt(head, None)
            except InvalidTag:
                continue
        raise AssertionError("a node sent what it cannot read")

    # --- faults ----------------------------------------------------------------------------------

    def kill(self, power: bool = False) -> None:
        """kill -9, or the plug is pulled."""
        self.is_up = False
        self.seat.host.lose_power() if power else self.seat.host.stop_process()
        self.links.clear()
        for peer in self.node.peers.values():
            for stream in peer.tunnel.streams.values():
                if isinstance(stream.owner, FlowEnd) and stream.owner.is_client:
                    stream.owner.flow.fault = Fault.CANCELLED  # its program is gone too

    def save(self) -> None:
        """The list goes to the disk, as the driver does it after changes."""
        self.seat.nodes = self.node.directory.dump(self.world.agenda.now)

    def stop(self) -> None:
        """SIGTERM: says goodbye."""
        self.save()
        self.node.goodbye()
        self.settle()
        self.kill()

    def wake(self) -> None:
        """The machine slept, or found itself in another network."""
        self._find_addresses()
        self.node.wake(self.world.agenda.now)
        self.settle()

    # --- flows -----------------------------------------------------------------------------------

    def open(self, flow: Flow) -> None:
        """A program connects."""
        try:
            stream = self.node.open(
                NodeId(flow.exit), f"f{flow.number}.test", 80, None, self.world.agenda.now
            )
        except StreamFault as fault:
            flow.fault = fault.fault
            return
        end = stream.owner = flow.near = FlowEnd(self, flow, stream, True)
        end.write()
        self.settle()

    def _offered(self, event: Offered) -> None:
        flow = self.world.flows[int(event.host[1:-5])]
        if flow.far is not None:
            self.world.broken(f"flow {flow.number} was offered twice")
        event.stream.owner = flow.far = FlowEnd(self, flow, event.stream, False)
        self.world.agenda.after(flow.dial_s, self._connected, flow)

    def _connected(self, flow: Flow) -> None:
        end = flow.far
        if not self.is_up or end is None or end.stream.is_over:
            return
        tunnel = self.node.tunnel(end.stream)
        if flow.is_refused:
            tunnel.refuse(end.stream, Fault.REFUSED)
        else:
            tunnel.accept(end.stream)
            end.write()
        self.settle()

    # --- links -----------------------------------------------------------------------------------

    def accepted(self, end: End) -> TcpLink:
        """Somebody connected."""
        link = TcpLink(self, self.world.new_link_id())
        link.end = end
        self.links[link.id] = link
        self.opened_count += 1
        now = self.world.agenda.now
        remote = remote_text("tcp", end.remote)
        self.node.link_up(link.id, "tcp", TCP_SIZE_MAX, remote, now)
        self.settle()
        return link

    def datagram(self, port: int, remote: Address, head: bytes, body: bytes) -> None:
        """One came from this address."""
        link = self._by_remote.get(remote)
        if link is None:
            if self.codec.open(head) is None:
                return
            link = self._add_udp(remote)
            now = self.world.agenda.now
            self.node.link_up(
                link.id,
                "udp",
                UDP_SIZE_MAX,
                remote_text("udp", remote),
                now,
                size_base=UDP_SIZE_BASE,
            )
        self.messages(link, [(head, body)])

    def messages(self, link: Link, batch: Batch) -> None:
        """Messages of one read."""
        if not self.is_up:
            return
        world = self.world
        for head, body in batch:
            header = self.codec.open(head)
            if header is not None:
                world.note(self.seat.node, "got", link.id, header[0:7])
                message = (Run(header, (body,)),)
                now = world.agenda.now
                for to, flat in self.node.receive_batch(link.id, message, self._room, now):
                    self._send(to, [bytes(part) for part in flat])
        self.settle()

    def link_writable(self, link: Link) -> None:
        """It has room again."""
        if self.is_up:
            if isinstance(link, TcpLink):
                self.node.link_progress(link.id, self.world.agenda.now)
            self.settle()

    def link_stalled(self, link: Link, silent_s: float) -> None:
        """The other end's kernel is silent."""
        if self.is_up:
            self.node.link_stalled(link.id, silent_s, self.world.agenda.now)
            self.settle()

    def link_closed(self, link: Link, reason: str) -> None:
        """It is gone."""
        if not self.is_up or self.links.pop(link.id, None) is None:
            return
        if isinstance(link, UdpLink) and self._by_remote.get(link.remote) is link:
            del self._by_remote[link.remote]
        self.world.note(self.seat.node, "link down", link.id, reason)
        self.node.link_down(link.id, reason, self.world.agenda.now)
        self.world.agenda.after(0, self.settle)

    def _add_udp(self, remote: Address) -> UdpLink:
        if len(self._by_remote) >= UDP_LINKS_MAX:
            unproved = [k for k in self._by_remote.values() if self._is_unproved(k.id)]
            if unproved:
                unproved[0].close()
        self.opened_count += 1
        link = UdpLink(self, self.world.new_link_id(), PORT, remote)
        self.links[link.id] = link
        self._by_remote[remote] = link
        return link

    def _is_unproved(self, link: LinkId) -> bool:
        entry: LinkEntry | None = self.node.links.get(link)
        return entry is None or entry.peer is None

    def _dial(self, event: DialWanted) -> None:
        self.dial_count += 1
        endpoint = Endpoint.parse(event.endpoint)
        self.world.note(self.seat.node, "dials", event.peer, event.endpoint)
        if endpoint.protocol == "udp":
            self.world.agenda.after(0, self._dialled_udp, event, endpoint.address)
            return
        _TcpDial(self, event, endpoint.address)

    def _dialled_udp(self, event: DialWanted, remote: Address) -> None:
        if not self.is_up:
            return
        old = self._by_remote.get(remote)
        if old is not None:
            self.link_closed(old, "dialled anew")
        link = self._add_udp(remote)
        self.node.link_up(
            link.id, "udp", UDP_SIZE_MAX, remote_text("udp", remote), self.world.agenda.now,
            event.peer, event.endpoint, UDP_SIZE_BASE,
        )  # fmt: skip
        self.settle()

    # --- the loop --------------------------------------------------------------------------------

    def settle(self) -> None:
        """What the driver does at the end of a turn."""
        if not self.is_up:
            return
        node, world = self.node, self.world
        now = world.agenda.now
        for _ in range(ROUNDS_MAX):
            batches = node.take_transmits(self._room, now)
            for link_id, flat in batches:
                self._send(link_id, [bytes(part) for part in flat])
            events = node.take_events(now)
            for event in events:
                self._handle(event)
            if not batches and not events:
                break
        else:
            world.broken(f"node {self.seat.node} does not come to rest")
        deadline = node.next_deadline()
        world.check_step(self)
        self._arm(deadline)

    def _arm(self, deadline: float | None) -> None:
        agenda = self.world.agenda
        if deadline is None:
            return
        deadline = max(deadline, agenda.now)
        if self._armed_at is None or deadline < self._armed_at:
            self._armed_at = deadline
            agenda.at(deadline, self._on_timer, deadline)

    def _on_timer(self, at: float) -> None:
        if at != self._armed_at or not self.is_up:
            return
        self._armed_at = None
        now = self.world.agenda.now
        deadline = self.node.next_deadline()
        if deadline is not None and deadline > now:
            self._arm(deadline)
            return
        self.world.wake_count += 1
        self.node.on_deadline(now)
        self.settle()

    def _room(self, link_id: LinkId) -> int:
        link = self.links.get(link_id)
        return link.room() if link is not None else 0

    def _send(self, link_id: LinkId, flat: list[bytes]) -> None:
        link = self.links.get(link_id)
        if link is None:
            return
        size = sum(map(len, flat))
        count = len(flat) // 2
        self.sent_count += count
        self.sent_size += size
        self.overhead_size += count * link.overhead
        batch = list(zip(flat[::2], flat[1::2], strict=True))
        self.world.sent(self, link, batch, size)
        link.send(batch)

    def _handle(self, event: NodeEvent) -> None:
        match event:
            case DialWanted():
                self._dial(event)
            case CloseWanted(link_id):
                link = self.links.get(link_id)
                if link is not None:
                    link.close()
                else:
                    self.node.link_down(link_id, "closed", self.world.agenda.now)
            case PeerNews(_, text, _):
                self.world.note(self.seat.node, "says", text)
                self.news = [*self.news[1 - NEWS_MAX :], text]
            case Message():
                self.world.letters.arrived(self, event)
            case MessageResult():
                self.world.letters.told(self, event)
            case Offered():
                self._offered(event)
            case Opened(stream, fault, detail):
                if stream.owner is not None:
                    stream.owner.stream_opened(fault, detail)
            case Data(stream, chunk):
                if stream.owner is not None:
                    stream.owner.stream_data(chunk)
            case Room(stream):
                if stream.owner is not None:
                    stream.owner.stream_room()
            case Finished(stream):
                if stream.owner is not None:
                    stream.owner.stream_finished()
            case Reset(stream, fault):
                if stream.owner is not None:
                    stream.owner.stream_reset(fault)


class _TcpDial:
    """A connection that a node asked for; given up as the driver does."""

    def __init__(self, member: Member, event: DialWanted, to: Address) -> None:
        self.member = member
        self.event = event
        self._is_over = False
        self._link = TcpLink(member, member.world.new_link_id())
        world = member.world
        world.agenda.after(DIAL_LIMIT_S, self._too_late)
        world.network.connect(member.seat.host, to, self._link, self._done)

    def _done(self, end: End | None, refused: bool, reason: str) -> None:
        member = self.member
        if self._is_over or not member.is_up:
            if end is not None:
                end.abort()
            return
        self._is_over = True
        if end is None:
            self._failed(refused, reason)
            return
        link = self._link
        link.end = end
        member.links[link.id] = link
        member.node.link_up(
            link.id, "tcp", TCP_SIZE_MAX, remote_text("tcp", end.remote), member.world.agenda.now,
            self.event.peer, self.event.endpoint,
        )  # fmt: skip
        member.settle()

    def _too_late(self) -> None:
        if not self._is_over and self.member.is_up:
            self._is_over = True
            self._failed(False, "no answer in time")

    def _failed(self, refused: bool, reason: str) -> None:
        member = self.member
        member.world.note(member.seat.node, "dial failed", self.event.peer, reason)
        now = member.world.agenda.now
        member.node.dial_failed(self.event.peer, self.event.endpoint, refused, reason, now)
        member.settle()
