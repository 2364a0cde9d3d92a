"""The peers and links of one node: what its parts share.

A `Table` holds one `Peer` for each node that is known (the wire session, the contact, the tunnel) and one
`LinkEntry` for each open link, relayed ones too. It makes peers, says whose a link is, and remembers
who was *touched*: the only peers that takes and deadlines look at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from uservpn.errors import Fault
from uservpn.mesh.claims import Claim
from uservpn.mesh.contact import Contact
from uservpn.mesh.flight import Leg, unwrap
from uservpn.mesh.liveness import LinkState
from uservpn.mesh.mailbox import Mailbox
from uservpn.mesh.pathmtu import PathMtu
from uservpn.mesh.routes import Route
from uservpn.node.options import CloseWanted, NodeEvent, NodeOptions, PeerNews
from uservpn.node.scheduling import Schedule
from uservpn.node.sharing import RelayedShare
from uservpn.tunnel.bbr import Bbr
from uservpn.tunnel.path import Path
from uservpn.tunnel.tunnel import Tunnel
from uservpn.types import LinkId, NodeId
from uservpn.wire.constants import TAG_SIZE, Kind
from uservpn.wire.header import Header, HeaderCodec
from uservpn.wire.keys import Ring
from uservpn.wire.session import TIME_SIZE, Session

UNPROVEN_S: Final = 20.0
"""How long an accepted link may stay without one message that was acted on."""
PROBES_MAX: Final = 16
"""Probes of one peer whose answers are waited for; more forget the older ones."""
RECENT_S: Final = 4200.0
"""A message of an older boot, or a newcomer's, draws an answer only if it was sent so lately: clocks may be
an hour apart, recordings are older."""
OVERHEAD: Final = TAG_SIZE + TIME_SIZE
"""What a sealed payload may hold beside the tunnel's message, at most."""


@dataclass(slots=True)
class LinkEntry:
    """A link as the node sees it."""

    size_max: int
    protocol: str
    remote: str
    peer: Peer | None = None
    state: LinkState | None = None
    legs: tuple[Leg, ...] = ()
    """What the last answered probe told of its hops."""
    hops: Route = ()
    """The relays it goes over; none: a link of the driver."""
    mtu: PathMtu | None = None
    """Of a link where too large a message is lost without a word: it says what `size_max` may be."""
    path: Path | None = None
    """What its peer's tunnel knows of it."""
    is_self_bounding: bool = False
    """Its room keeps the path's queue short; else the tunnel does, where the path is long."""
    is_costly: bool = False
    """Reliable by work in this process: on short paths others are preferred."""
    is_lossy: bool = False
    """Messages may get lost on it: the tunnel has to control congestion. True with `hops` or an `mtu`."""

    def new_path(self, link: LinkId) -> Path:
        """A path on which nothing was sent yet, with what is known of its round trip."""
        rtt_s = self.state.rtt_s if self.state is not None else None
        self.is_lossy = self.mtu is not None or bool(self.hops)
        controller = (
            None if self.is_self_bounding and not self.is_lossy else Bbr(rtt_s, self.is_lossy)
        )
        self.path = Path(link, controller, rtt_s, self.is_lossy)
        self.path.is_costly = self.is_costly
        if self.mtu is not None:
            self.path.base_size = self.mtu.base - OVERHEAD
        return self.path

    @property
    def hops_code(self) -> int:
        """The hops as the wire has them."""
        if not self.hops:
            return 0
        return self.hops[0] << 8 | (self.hops[1] if len(self.hops) > 1 else 0)


HeldMessage = tuple[LinkId, Header, bytes]
"""What a rival sent, still sealed, and over which link."""


@dataclass(slots=True)
class Rival:
    """Another boot of a node that is linked (node/numbers.py)."""

    boot: int
    link: LinkId
    value: bytes
    since: float
    again_at: float
    claim: Claim | None = None
    """What it echoed: it lives."""
    tokens: set[bytes] = field(default_factory=set)
    is_known_alive: bool = False
    """The known node answered a probe that was sent after the rival had come."""
    held: list[HeldMessage] = field(default_factory=list)
    held_size: int = 0


class Peer:
    """All that is known of one other node."""

    def __init__(self, session: Session, contact: Contact, tunnel: Tunnel) -> None:
        self.id = NodeId(session.peer)
        self.session = session
        self.contact = contact
        self.tunnel = tunnel
        self.mail = Mailbox()
        self.rival: Rival | None = None
        """Another boot of it, while it is not known whether that is a restart or another node."""
        self.instance = b""
        """What it said of itself; empty: not heard yet."""
        self.started = 0, 0.0
        """Another boot that was heard, and when that process was started at the latest, by our clock."""
        self.rival_told_at = -1e9
        """When the log told of two nodes with this number."""
        self.renewed_at = 0.0
        self.held: list[tuple[Header, bytes, LinkId]] = []
        self.challenge = b""
        self.notice_at = 0.0
        self.probes: dict[bytes, tuple[LinkId, float]] = {}
        self.outbox: deque[tuple[LinkId, int, bytes, int]] = deque()
        self.is_greeted = False
        self.is_neighbour = False
        """It is linked, and gossip knows."""
        self.is_untold = False
        """There were news for it while its link was held (mesh/liveness.py)."""
        self.doubted_boot = 0
        """The boot of its record for which its links were asked last: once is enough."""
        self.skew_told = False
        self.sample_at = 0.0
        """When the stamp of a message is looked at again."""
        self.route_at: float | None = None
        """When a relayed way is sought, if there is no direct link by then."""
        self.meet_at = 0.0
        """Not before then is a relayed way tried to be replaced by one through NATs (node/reach.py)."""
        self.meet_failures = 0
        self.met_at = -60.0
        self.sent_over = LinkId(0)
        """The link that carried the last messages of the tunnel."""
        self.is_onward = False
        """Messages of others wait to be passed on to it, or were without waiting."""
        self.passed_at = 0.0
        """When it was last noted that some passed without waiting."""
        self.relayed_bytes = 0
        """Wire bytes of the tunnel that left over relays."""
        self.schedule = Schedule()
        self.share = RelayedShare()
        self.fault = ""

    def has_work(self) -> bool:
        """Would a take return something, now or when a link has room again?"""
        if self.outbox or self.is_onward or self.contact.has_plans() or self.tunnel.has_events():
            return True
        if self.mail.results:
            return True
        if not self.contact.links:
            return False
        return bool(self.mail.outgoing) or self.tunnel.has_outgoing()

    def is_needed(self) -> bool:
        """Do streams or messages wait for a way to it?"""
        return bool(self.tunnel.streams) or self.mail.is_busy()

    def note_needs(self) -> None:
        """Its contact learns whether streams or messages wait."""
        self.contact.has_streams = bool(self.tunnel.streams)
        self.contact.has_mail = self.mail.is_busy()

    def spare_way(self) -> LinkState | None:
        """A relayed way that stands beside a direct link."""
        links = self.contact.links
        if len(links) < 2 or self.contact.direct() is None:
            return None
        return next((state for state in links if state.relayed), None)

    def next_deadline(self) -> float | None:
        """When this peer wants to be looked at without being touched."""
        contact = self.contact
        self.note_needs()
        due = contact.next_deadline()
        if self.route_at is not None and (due is None or self.route_at < due):
            due = self.route_at
        if self.rival is not None and (due is None or self.rival.again_at < due):
            due = self.rival.again_at
        if contact.has_mail:
            other = self.mail.next_deadline()
            if other is not None and (due is None or other < due):
                due = other
        way = self.spare_way()
        if way is not None:
            other = self.share.unused_at(way)
            if due is None or other < due:
                due = other
        other = self.tunnel.next_deadline() if contact.links else None
        if due is None or (other is not None and other < due):
            return other
        return due


@dataclass(slots=True)
class Counters:
    """Weather and faults, for status."""

    stale: int = 0
    forged: int = 0
    misdirected: int = 0
    peer_faults: int = 0


class Table:
    """Peers by number, links by id. Shared by the parts of one `Node`, which alone makes it."""

    def __init__(
        self,
        options: NodeOptions,
        ring: Ring,
        codec: HeaderCodec,
        random: Callable[[int], bytes],
        wall_s: float,
    ) -> None:
        self.options = options
        self.relay_share = options.relay_share
        """This share of the bulk goes over relays wherever there is a way; a reload may change it."""
        self.me = options.node
        self.codec = codec
        self.random = random
        self.wall_s = wall_s
        """Added to `now`: the wall clock, seconds since 1970."""
        self.servers: Mapping[NodeId, tuple[str, ...]] = options.servers
        """The configured ones, and their endpoints."""
        self.peers: dict[int, Peer] = {}
        self.links: dict[LinkId, LinkEntry] = {}
        self.counters = Counters()
        self.events: list[NodeEvent] = []
        self.touched: dict[int, Peer] = {}
        self.is_back = False
        """This node stands back: another one has its number (node/numbers.py)."""
        self.needing: dict[int, Peer] = {}
        """Peers with streams or messages, by the last flush."""
        self.late: dict[int, Peer] = {}
        """Those that what is done for another one touched, while the touched ones are gone through."""
        self.is_taking = False
        self.strays: list[tuple[LinkId, list[bytes]]] = []
        """Sealed messages to whoever is at the other end of a link, and is no peer (node/door.py)."""
        self.unproven: dict[LinkId, float] = {}
        """Links that nobody has proved to be his, and until when they may stay; soonest first."""
        self._ring = ring

    # --- chance ----------------------------------------------------------------------------------

    def random_below(self, limit: int) -> int:
        """A whole number from [0, limit)."""
        return int.from_bytes(self.random(4), "big") % limit

    def jitter(self, span: float) -> float:
        """A draw from [0, span)."""
        return self.random_below(1 << 20) / (1 << 20) * span

    def padding(self) -> bytes:
        """0 to 63 bytes: small messages have no telling size."""
        return bytes(self.random_below(64))

    def is_recent(self, sent_s: float, now: float) -> bool:
        """Was this sent lately? `sent_s` is the sender's wall clock."""
        return abs(sent_s - now - self.wall_s) <= RECENT_S

    def is_stamp_recent(self, header: Header, now: float) -> bool:
        """As `is_recent`, by the origin's stamp, which tells the time modulo 4.66 hours."""
        return self.is_recent(unwrap(header.stamp, now + self.wall_s), now)

    # --- peers -----------------------------------------------------------------------------------

    def touch(self, peer: Peer) -> None:
        """Something happens to this peer: the next takes look at it, and its deadline is anew."""
        if self.is_taking and peer.id not in self.touched:
            self.late[peer.id] = peer
        else:
            self.touched[peer.id] = peer

    def peer(self, node: NodeId) -> Peer:
        """The peer with this number, made if need be."""
        peer = self.peers.get(node)
        if peer is None:
            options = self.options
            session = self.session(node)
            contact = Contact(
                self.servers.get(node, ()),
                keepalive_s=options.keepalive_s,
                grace_s=options.grace_s,
                jitter=self.jitter,
            )
            contact.is_kept = node in self.servers
            peer = self.peers[node] = Peer(session, contact, self.new_tunnel(node))
        return peer

    def session(self, node: NodeId) -> Session:
        """A wire session that has sealed nothing; one alone for each node, or nonces would repeat."""
        options = self.options
        return Session(self._ring, self.codec, options.node, options.boot, node, options.chacha)

    def new_tunnel(self, node: NodeId) -> Tunnel:
        """A tunnel that has carried nothing yet."""
        return Tunnel(self.options.node, node, self.random_below)

    def tell(self, node: NodeId, text: str, level: Literal["info", "warning"] = "info") -> None:
        """One line of the log."""
        self.events.append(PeerNews(node, text, level))

    def end_streams(self, peer: Peer, text: str) -> None:
        """Every stream to the peer ends, and the log says why; the tunnel goes on, under the same boots.

        The sequence starts anew at both ends only with a new boot, so an end between living boots
        resets each stream instead.
        """
        self.tell(peer.id, text, "warning")
        peer.tunnel.fail_all(Fault.EXIT_DEAD)

    def blame(self, peer: Peer, link: LinkId, text: str) -> None:
        """A genuine peer sent nonsense: it loses the link that brought it."""
        self.counters.peer_faults += 1
        self.tell(peer.id, f"node {peer.id} {text}", "warning")
        self.events.append(CloseWanted(link))

    # --- links -----------------------------------------------------------------------------------

    def bind(
        self, link: LinkId, entry: LinkEntry, peer: Peer, dialled: bool, endpoint: str, now: float
    ) -> None:
        """From now on this link is one of `peer`'s."""
        self.touch(peer)
        self.unproven.pop(link, None)
        entry.peer = peer
        entry.state = peer.contact.link_up(
            link, entry.protocol, endpoint, dialled, now, bool(entry.hops), entry.mtu is not None
        )
        path = entry.new_path(link)
        if not entry.state.is_unproved:
            others = [state for state in peer.contact.links if state is not entry.state]
            is_first = all(state.probed for state in others)
            peer.tunnel.path_up(path, is_first or not dialled)
        self.probe(peer, link, now)

    def probe(self, peer: Peer, link: LinkId, now: float) -> bytes:
        """Asks for an answer over this link, which tells its flight times; the token."""
        self.touch(peer)
        token = self.random(8)
        if len(peer.probes) > PROBES_MAX:
            peer.probes.clear()
        peer.probes[token] = (link, now)
        peer.outbox.append((link, Kind.PROBE, token + self.padding(), 0))
        return token
