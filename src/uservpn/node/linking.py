"""Links that come up and go: whose they are, what their loss means, and who needs another way.

The contacts (mesh/contact.py) plan; here their plans are carried out: dials, probes, links given up, streams
of the dead ended. A first direct link makes a neighbour, the loss of the last one ends it and every way
over it; peers that streams or messages wait for get a way over relays while no direct link is there.
"""

from __future__ import annotations

from typing import Final

from uservpn.mesh.contact import Dead, Dial, GiveUp, Probe
from uservpn.mesh.liveness import LinkState
from uservpn.node.members import Members
from uservpn.node.options import CloseWanted, DialWanted
from uservpn.node.reach import Reach
from uservpn.node.relaying import Loss, Relaying
from uservpn.node.sizing import Sizing
from uservpn.node.table import OVERHEAD, UNPROVEN_S, LinkEntry, Peer, Table
from uservpn.node.vigil import Vigil
from uservpn.types import LinkId, NodeId
from uservpn.wire.constants import Kind

ROUTE_AFTER_S: Final = 1.0
"""Streams that wait so long for a direct link take a relayed one, until there is a direct one."""


class Linking:
    """The links of one node, direct and relayed, as far as they concern more than one part."""

    def __init__(
        self,
        table: Table,
        members: Members,
        relaying: Relaying,
        sizing: Sizing,
        reach: Reach,
        vigil: Vigil,
    ) -> None:
        self._table = table
        self._members = members
        self._relaying = relaying
        self._sizing = sizing
        self._reach = reach
        self._vigil = vigil

    # --- outside events --------------------------------------------------------------------------

    def link_up(
        self, link: LinkId, protocol: str, size_max: int, remote: str, now: float,
        peer: NodeId | None = None, endpoint: str = "", size_base: int = 0,
        is_self_bounding: bool = False, is_costly: bool = False,
    ) -> None:  # fmt: skip
        """A link is open; `peer` and `endpoint` are given for one that was dialled.

        Sealed payloads up to `size_max` fit. A link that loses what is too large for its path, without
        a word, also has a `size_base` that no path is too small for. One that `is_self_bounding` keeps
        its path's queue short by its room; one that `is_costly` is reliable by our own work.
        """
        if self._table.is_back:
            self._table.events.append(CloseWanted(link))
            return
        entry = self._table.links[link] = LinkEntry(size_max - OVERHEAD, protocol, remote)
        entry.is_self_bounding, entry.is_costly = is_self_bounding, is_costly
        if size_base:
            self._sizing.link_up(entry, size_base, size_max)
        if peer is not None:
            known = self._table.peer(peer)
            if known.contact.takes(protocol, endpoint):
                self._table.bind(link, entry, known, True, endpoint, now)
            else:
                self._table.touch(known)
                self._table.events.append(CloseWanted(link))
        else:
            self._table.unproven[link] = now + UNPROVEN_S

    def link_resized(self, link: LinkId, size_max: int, now: float) -> None:
        """Another size of sealed payloads fits from now on."""
        entry = self._table.links.get(link)
        if entry is not None:
            self._sizing.link_resized(link, entry, size_max, now)

    def link_down(self, link: LinkId, reason: str, now: float, refused: bool = False) -> None:
        """A link is gone; `refused`: the other machine said that nobody is there."""
        entry = self._table.links.pop(link, None)
        self._sizing.link_down(link)
        self._table.unproven.pop(link, None)
        if entry is None:
            return
        if entry.hops:
            self._relaying.link_down(link)
        self._reach.link_down(link, now)
        peer = entry.peer
        if peer is None:
            return
        self._table.touch(peer)
        peer.note_needs()
        peer.contact.link_down(link, now, refused)
        if entry.state is not None and entry.state.is_unproved:
            return  # it carried nothing
        if entry.path is not None:
            peer.tunnel.path_down(entry.path)
        if peer.is_neighbour and peer.contact.direct() is None:
            self._members.neighbour_down(peer)
            self.drop_ways(self._relaying.neighbour_lost(peer, now), now)
            self.arrange(now)
        elif not entry.hops:
            self._members.link_lost(peer)
        peer.mail.link_lost()
        if peer.is_needed() and peer.contact.direct() is None:
            self._relaying.seek(peer, now)
        was_tried = (
            entry.state is not None and entry.state.is_tentative
        )  # a dial, to who reads the log
        if not peer.contact.links and not was_tried:
            self._table.tell(peer.id, f"lost the link to node {peer.id} ({entry.remote}): {reason}")
        if peer.rival is not None:
            peer.rival.again_at = now  # is the known node gone with it?

    def link_refused(self, link: LinkId, now: float) -> bool:
        """The other machine says that nobody is there; True: it is believed, and the link is gone.

        Only of a place that is the peer's for good: in front of another one a router may have said it.
        """
        entry = self._table.links.get(link)
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
        known = self._table.peers[peer]
        self._table.touch(known)
        known.note_needs()
        if known.is_needed():
            self._relaying.seek(known, now)  # before it is judged that nothing is left
        known.contact.dial_failed(endpoint, refused, detail, now, offline)
        self.arrange(now)

    def link_progress(self, link: LinkId, now: float) -> None:
        """Bytes of a large message moved on this link."""
        entry = self._table.links.get(link)
        if entry is None or entry.peer is None or entry.state is None:
            return
        if entry.state.owed_since is not None:  # else it changes nothing
            self._table.touch(entry.peer)
            entry.peer.contact.progress(entry.state, now)

    def link_stalled(self, link: LinkId, silent_s: float, now: float) -> None:
        """For so long the other machine has confirmed nothing of what was sent over this link."""
        entry = self._table.links.get(link)
        if entry is None or entry.peer is None or entry.state is None:
            return
        self._table.touch(entry.peer)
        entry.peer.note_needs()
        entry.peer.contact.stalled(entry.state, silent_s, now)

    def proved(self, peer: Peer, state: LinkState, now: float) -> None:
        """The peer has got what was sent over this link, so it is where the link leads."""
        if not state.is_unproved and not state.is_tentative:
            return
        was_linked = bool(peer.contact.links)
        was_unproved = state.is_unproved
        has_moved = was_unproved and peer.is_needed() and peer.contact.replaces(state)
        peer.contact.proved(state, now)
        if was_unproved:
            path = self._table.links[state.link].path
            assert path is not None
            peer.tunnel.path_up(path, has_moved or not was_linked)
        if state.is_lossy:
            self._reach.link_proved(peer, state, now)
        peer.meet_failures = 0
        if not peer.is_neighbour:
            self.neighbour_up(peer, now)

    def neighbour_up(self, peer: Peer, now: float) -> None:
        """It was heard; is it over a link of ours, and proved?"""
        if peer.contact.direct() is not None:
            self._members.neighbour_up(peer, now)
            self._vigil.begin(now)
            self.seek_ways(now)

    def catch_up(self, peer: Peer) -> None:
        """A neighbour that was silent for long is heard again."""
        if peer.contact.is_reached:
            self._members.catch_up(peer)

    # --- commands --------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Dials the configured servers, and whom the node list says to keep in touch with."""
        self._members.start(now)
        self.seek_ways(now)
        for peer in self._table.peers.values():
            if peer.contact.is_kept:
                self._table.touch(peer)
                peer.contact.want(now)

    def goodbye(self) -> None:
        """Tells every linked peer that this node stops."""
        for peer in self._table.peers.values():
            self._table.touch(peer)
            for state in peer.contact.links:
                if not state.relayed or peer.tunnel.streams:
                    peer.outbox.append((state.link, Kind.GOODBYE, b"", 0))

    def follow(self, peer: Peer, now: float) -> None:
        """Carries out what the contact planned."""
        table = self._table
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
                    self._relaying.doubt(link, now)
                    self._note_silence(peer, link, now)
                    if link > 0 and peer.contact.is_neighbour_silent():
                        self._doubt_ways(peer, now)
                    if peer.is_needed() and peer.contact.is_silent():
                        self._relaying.seek(peer, now)
                case GiveUp(link) if link < 0:
                    self.link_down(link, "no answer over relays", now)
                case GiveUp(link):
                    table.events.append(CloseWanted(link))
                case Dead(reason):
                    text = f"node {peer.id} is dead ({reason}); {peer.contact.last_failure}"
                    self._table.end_streams(peer, text)

    def arrange(self, now: float) -> None:
        """Whom to keep a link to may have changed; who waited for a way may have one now."""
        self._members.arrange(now)
        self.seek_ways(now)

    def seek_ways(self, now: float) -> None:
        """Peers that are needed and have no link get a way over relays, if there is one."""
        for peer in list(self._table.needing.values()):
            if peer.is_needed() and not peer.contact.links:
                self._relaying.seek(peer, now)

    def seek_soon(self, peer: Peer, now: float) -> None:
        """A relayed way, unless there is a direct link by then."""
        if peer.contact.direct() is None and peer.route_at is None:
            peer.route_at = now + ROUTE_AFTER_S if peer.contact.dials.has_fixed else now

    def drop_ways(self, losses: list[Loss], now: float) -> None:
        """These ways over relays are gone."""
        for link, reason in losses:
            self.link_down(link, reason, now)

    # --- inside ----------------------------------------------------------------------------------

    def _doubt_ways(self, relay: Peer, now: float) -> None:
        """No link of ours to this relay is heard: others are taken, if there are any, until one is again."""
        for peer, state in self._relaying.ways_over(relay):
            if not state.probed:
                self._table.touch(peer)
                peer.contact.ask(state, now)

    def _note_silence(self, peer: Peer, link: LinkId, now: float) -> None:
        """A link is probed. If it is silent, others may be; if one carries, what is on it goes there."""
        entry = self._table.links.get(link)
        if entry is None or entry.state is None or entry.path is None:
            return
        if not entry.state.probed:
            return
        if not peer.contact.is_silent():
            peer.tunnel.path_left(entry.path, now)
        if not entry.hops:
            self._vigil.doubt(entry.state, now)
