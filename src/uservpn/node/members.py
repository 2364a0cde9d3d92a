"""The node's part in the mesh's list: records that come and go, and whom to keep a link to.

Joins directory, gossip, routes and topology (mesh/) with the peers: what a record says becomes
endpoints to dial, what links are measured becomes part of our own record.
"""

from __future__ import annotations

from uservpn.errors import PeerFault
from uservpn.mesh import topology
from uservpn.mesh.directory import Directory
from uservpn.mesh.gossip import DIGEST, Gossip
from uservpn.mesh.records import Edge, EndpointKind, Known, Record, Role, coarse
from uservpn.mesh.routes import Routes
from uservpn.node.reach import Reach
from uservpn.node.table import Peer, Table
from uservpn.types import LinkId, NodeId
from uservpn.wire.constants import Kind


class Members:
    """The node list, and what follows from it for the links."""

    def __init__(self, table: Table, reach: Reach, now: float) -> None:
        options = table.options
        self._table = table
        self._reach = reach
        self.directory = Directory(options.record or Record(options.node, options.boot), now)
        self.gossip = Gossip(self.directory, table.jitter, now)
        self.routes = Routes(table.me, self.directory)
        self._alone_since: float | None = now
        """Since when there has been no neighbour."""
        self._arranged_for: frozenset[NodeId] = frozenset()
        """The servers that there were when the links were arranged."""

    # --- outside events --------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """What the list from the disk says."""
        for record in self.directory:
            self.learn(record)
        self.arrange(now)

    def neighbour_up(self, peer: Peer, now: float) -> None:
        """The first direct link to it is proved."""
        peer.is_neighbour = True
        self.gossip.link_up(peer.id)
        self.pass_on()
        self.arrange(now)

    def neighbour_down(self, peer: Peer) -> None:
        """The last direct link to it is gone."""
        peer.is_neighbour = False
        peer.is_untold = False
        self.gossip.link_down(peer.id)

    def catch_up(self, peer: Peer) -> None:
        """It is heard again: what it was not told meanwhile is found by comparing."""
        peer.is_untold = False
        self.link_lost(peer)

    def link_lost(self, peer: Peer) -> None:
        """One of its links is gone, another one stands."""
        if peer.is_neighbour:
            self.gossip.link_lost(peer.id)
            self.pass_on()

    def hear(self, peer: Peer, link: LinkId, payload: bytes, now: float) -> bool:
        """A gossip message; True: it had news."""
        try:
            self.gossip.receive(peer.id, payload, now)
        except PeerFault as fault:
            self._table.blame(peer, link, f"sent gossip that makes no sense: {fault}")
        self.pass_on()
        news = self.gossip.take_news()
        for node in news:
            record = self.directory.get(node)
            if record is not None:
                self.learn(record)
                self._doubt_older(record, now)
                self._heard_of(record, now)
        if (
            self.directory.servers != self._arranged_for
        ):  # what else is in records makes nobody's links others
            self.arrange(now)
        return bool(news)

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        self.gossip.on_deadline(now)
        self.pass_on()
        for gone in self.directory.on_deadline(now):
            self._forget(gone)

    # --- commands --------------------------------------------------------------------------------

    def describe(self, now: float, **changes: object) -> None:
        """Changes fields of this node's own record; the mesh is told."""
        if self.directory.update_own(**changes):
            self.gossip.own_changed(now)

    def reach_changed(self, now: float) -> None:
        """This node's endpoints may be others, and so may be what is worth dialling."""
        self.describe(now, endpoints=self._reach.endpoints())
        for peer in self._table.peers.values():
            self.offer(peer)

    def supersede(self, boot: int, now: float) -> None:
        """Publishes this node's record above a contested one."""
        self.directory.supersede(boot)
        self.gossip.own_changed(now)

    def learn(self, record: Record) -> None:
        """A record came, or changed: where its node can be dialled. `arrange` after the last."""
        table = self._table
        self.routes.forgive(record.node)
        if record.node != table.me:
            peer = table.peer(record.node)
            self.offer(peer)
            is_kept_there = any(edge.neighbour == table.me for edge in record.links)
            if peer.contact.is_kept_there != is_kept_there:
                peer.contact.is_kept_there = is_kept_there
                table.touch(peer)

    def offer(self, peer: Peer) -> None:
        """Tells the contact where its peer can be dialled: by the configuration, and by its record."""
        configured = self._table.servers.get(peer.id, ())
        record = self.directory.get(peer.id)
        told = record.endpoints if record is not None else ()
        given = [Known(EndpointKind.FIXED, endpoint) for endpoint in configured]
        peer.contact.offer(self._reach.order(peer, told, given))

    def arrange(self, now: float) -> None:
        """Decides anew whom to keep a link to, and dials who is missing."""
        table = self._table
        self._arranged_for = frozenset(self.directory.servers)
        kept = self._kept()
        if self.gossip.neighbours():
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        for peer in table.peers.values():
            was_kept = peer.contact.is_kept
            if peer.contact.redial.alone_since != self._alone_since:
                peer.contact.redial.alone_since = self._alone_since
                table.touch(peer)
            peer.contact.is_kept = peer.id in kept
            if peer.contact.is_kept != was_kept:
                table.touch(peer)
                if not was_kept:
                    peer.contact.want(now)
        self.advertise(now)

    def advertise(self, now: float) -> None:
        """This node's record tells the links it keeps, with coarse round trips."""
        old = {edge.neighbour: edge.rtt_s for edge in self.directory.own.links}
        links = []
        for node in self.gossip.neighbours():
            contact = self._table.peers[node].contact
            state = contact.direct()
            if state is None or not contact.is_kept or state.rtt_s is None:
                continue  # whichever end dialled it: the one that keeps it tells
            known = old.get(node, 0.0)
            is_near = known / 1.5 <= state.rtt_s <= known * 1.5 or abs(state.rtt_s - known) < 0.005
            links.append(Edge(node, known if known and is_near else coarse(state.rtt_s)))
        self.describe(now, links=tuple(links))

    def pass_on(self) -> None:
        """Gossip messages go to their neighbours' first links; what is held would only fill up with them."""
        table = self._table
        for node, payload in self.gossip.take_messages():
            peer = table.peers.get(node)
            state = peer.contact.carrier() if peer is not None else None
            if peer is None or state is None:
                continue
            if state.is_held:
                peer.is_untold = True
            else:
                table.touch(peer)
                (self.gossip.reliable.discard if state.is_lossy else self.gossip.reliable.add)(node)
                pad = table.padding() if payload[0] == DIGEST else b""
                peer.outbox.append((state.link, Kind.GOSSIP, payload + pad, 0))

    # --- inside ----------------------------------------------------------------------------------

    def _doubt_older(self, record: Record, now: float) -> None:
        """Links to an earlier start of this node lead nowhere, and nobody may have said so.

        It need not have been started: a contested record takes a higher boot (`supersede`), and keeps it.
        """
        peer = self._table.peers.get(record.node)
        if peer is None or record.boot <= peer.doubted_boot:
            return
        peer.doubted_boot = record.boot
        if 0 < peer.session.peer_boot < record.boot:
            self._table.touch(peer)
            peer.contact.ask_all(now)

    def _heard_of(self, record: Record, now: float) -> None:
        """Fresh news: its owner is there, and so is whom it has links to. Who is missing is dialled."""
        table = self._table
        for node in (record.node, *(edge.neighbour for edge in record.links)):
            peer = table.peers.get(node)
            if peer is not None and peer.contact.is_kept and not peer.contact.is_reached:
                table.touch(peer)
                peer.contact.heard_of(now)

    def _kept(self) -> set[NodeId]:
        """Whom to keep a link to while nobody needs it."""
        table = self._table
        if table.is_back:
            return set()
        servers = self.directory.servers
        if self.directory.own.roles & Role.SERVER:
            if not self.gossip.neighbours():
                # those who would dial us may not know that we are back
                return topology.linked_with_server(table.me, servers) | set(table.servers)
            failing = {server for server in servers if self._is_failing(server)}
            return topology.kept_by_server(table.me, servers, failing) | set(table.servers)
        linked: dict[NodeId, float | None] = {}
        for node in self.gossip.neighbours():
            peer = table.peers[node]
            state = peer.contact.direct()
            if state is not None:
                linked[node] = state.rtt_s
        kept = {node for node in servers if self._is_kept(node)}
        failing = {node for node in servers if node not in linked and self._is_failing(node)}
        return topology.kept_by_other(table.me, set(table.servers), servers, linked, kept, failing)

    def _is_kept(self, node: NodeId) -> bool:
        peer = self._table.peers.get(node)
        return peer is not None and peer.contact.is_kept

    def _is_failing(self, node: NodeId) -> bool:
        peer = self._table.peers.get(node)
        return peer is not None and peer.contact.is_failing

    def _forget(self, node: NodeId) -> None:
        """A node was dropped from the list: it is dialled no more."""
        peer = self._table.peers.get(node)
        if peer is not None and node not in self._table.servers:
            peer.contact.endpoints = ()
            peer.contact.is_kept = False
