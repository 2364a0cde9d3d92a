"""What a new boot ends, the peer's or our own, and what follows when two nodes have one number.

A boot is one life of a process: what was open to an earlier one is over. `Numbers` finds out who has a number
and whose it is; here is what that does to tunnels and links.
"""

from __future__ import annotations

from typing import Final

from uservpn.errors import Fault
from uservpn.mesh.claims import StandBack
from uservpn.mesh.flight import unwrap
from uservpn.node.flights import Flights
from uservpn.node.linking import Linking
from uservpn.node.numbers import Numbers
from uservpn.node.options import CloseWanted
from uservpn.node.table import HeldMessage, Peer, Table
from uservpn.tunnel.stream import Stream
from uservpn.wire.constants import BOOT_CHANCE
from uservpn.wire.header import Header

STARTED_MARGIN_S: Final = 0.01
"""Both the boot and the stamp are cut to a millisecond."""


class Boots:
    """Restarts, outdated boots, rivals that are heard at last, standing back."""

    def __init__(self, table: Table, linking: Linking, numbers: Numbers, flights: Flights) -> None:
        self._table = table
        self._linking = linking
        self._numbers = numbers
        self._flights = flights

    def seen(self, peer: Peer, header: Header, now: float) -> None:
        """A message of another boot than the known one; nobody knows yet whether that is the peer's now.

        Its boot tells when it was started by its own clock, and its stamp what that clock said when it left.
        That clock may be wrong, but not by more than 2.3 hours (`unwrap`). A message that was long under
        way, and a boot that is ahead of its clock, tell of a later start; a clock that was set forward
        since, of an earlier one.
        """
        clock = unwrap(header.stamp, now + self._table.wall_s)
        at = now - (clock - (header.boot >> BOOT_CHANCE) / 1000) + STARTED_MARGIN_S
        boot, before = peer.started
        peer.started = header.boot, min(at, before) if boot == header.boot else at

    def new_boot(self, peer: Peer, old: int) -> None:
        """The peer was started anew (or is heard for the first time).

        Streams that were opened after that start, and so never reached the peer, are opened again.
        """
        peer.held = [held for held in peer.held if held[0].boot == peer.session.peer_boot]
        if old:
            text = f"node {peer.id} has restarted; its connections end"
            self._table.tell(peer.id, text, "warning")
            before = peer.tunnel
            boot, started_at = peer.started
            # its clock may have been set since, but who was heard was alive: that was the old one
            started_at = max(started_at, peer.contact.heard_at or 0.0)
            unseen = [
                stream
                for stream in before.streams.values()
                if boot == peer.session.peer_boot and _is_unseen(stream, started_at)
            ]
            self._new_tunnel(peer)
            peer.tunnel.take_over(before, unseen)
            before.abort(Fault.EXIT_DEAD)
            self._table.events += before.take_events()
            peer.mail.peer_restarted()
            self._flights.restarted(peer)

    def outdated(self, peer: Peer, payload: bytes, now: float) -> None:
        """To this peer our boot is an old one: it gets a higher one. To it, we restarted."""
        if self._numbers.renew(peer, int.from_bytes(payload[:8], "big"), now):
            peer.tunnel.abort(Fault.EXIT_DEAD)
            self._table.events += peer.tunnel.take_events()
            self._new_tunnel(peer)
            for state in [*peer.contact.links, *peer.contact.unproved]:
                self._table.probe(peer, state.link, now)

    def take_rival(self, peer: Peer, now: float) -> list[HeldMessage]:
        """If the known node is gone, its links end; what the other one said is to be heard now."""
        if not self._numbers.is_gone(peer, now):
            return []
        rival = peer.rival
        assert rival is not None
        peer.rival = None
        for state in [*peer.contact.links, *peer.contact.unproved]:
            if state.link != rival.link:
                self._table.events.append(CloseWanted(state.link))
                reason = "silent while its number came from elsewhere"
                self._linking.link_down(state.link, reason, now)
        return rival.held

    def retry_number(self, now: float) -> None:
        """Does the number belong to us now? Only asked when this node stands back."""
        self._numbers.claims.retry(now)
        self.follow_claims(now)

    def follow_claims(self, now: float) -> None:
        """Carries out what follows from claims to our number."""
        for plan in self._numbers.follow(now):
            if isinstance(plan, StandBack):
                self._stand_back(plan.address, now)
            else:
                self._table.is_back = False
                self._table.tell(self._table.me, f"trying again as node {self._table.me}")
                self._linking.start(now)

    def _stand_back(self, address: str, now: float) -> None:
        """Leaves the mesh: streams end, peers hear it, links close, none is dialled."""
        table = self._table
        text = (
            f"duplicate: node {table.me} stands back, its number belongs to {address or 'another'}"
        )
        table.tell(table.me, text, "warning")
        self._linking.goodbye()
        table.is_back = True
        for peer in table.peers.values():
            peer.tunnel.fail_all(Fault.EXIT_DEAD)
            for state in [*peer.contact.links, *peer.contact.unproved]:
                if state.link < 0:
                    self._linking.link_down(state.link, "standing back", now)
        table.events += [CloseWanted(link) for link in table.links]
        self._linking.arrange(now)

    def _new_tunnel(self, peer: Peer) -> None:
        """A tunnel that has carried nothing, over the links that stand."""
        rtt_s = peer.tunnel.rtt_s
        peer.tunnel = self._table.new_tunnel(peer.id)
        for state in peer.contact.links:
            peer.tunnel.path_up(self._table.links[state.link].new_path(state.link), False)
        for state in peer.contact.unproved:
            self._table.links[state.link].new_path(state.link)
        peer.tunnel.rtt_s = rtt_s


def _is_unseen(stream: Stream, started_at: float) -> bool:
    """Was it opened by us when the peer's process that had the old boot was gone already?"""
    return stream.is_mine and not stream.is_answered and stream.opened_at > started_at
