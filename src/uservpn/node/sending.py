"""What leaves, and over which link: single messages first, then what the tunnels have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uservpn.errors import Fault
from uservpn.mesh.contact import LinkState
from uservpn.node.relaying import Relaying
from uservpn.node.sizing import Sizing
from uservpn.node.table import Peer, Table
from uservpn.types import LinkId
from uservpn.wire.constants import STAMP_MASK, Kind

OVERRUN_MAX: Final = 1 << 20
"""Bytes queued on a full link beyond which even answers and reports wait: its peer does not read."""
CUT_BELOW: Final = 1 << 16
CUT_MIN: Final = 1 << 12
"""Messages are cut to the room of a link that has less than CUT_BELOW, never below CUT_MIN."""
RELAYED_SIZE_MAX: Final = 1 << 16
"""Messages over relays are no longer: relays take turns by messages."""

Room = Callable[[LinkId], int]
Batches = list[tuple[LinkId, list[bytes]]]
"""Per link of the driver: headers and sealed payloads in the order to send them."""


class Sender:
    """Seals what the peers' outboxes and tunnels hold, as far as links have room."""

    def __init__(self, table: Table, relaying: Relaying, sizing: Sizing) -> None:
        self._table = table
        self._relaying = relaying
        self._sizing = sizing

    def take(self, room: Room, now: float) -> Batches:
        """Of every touched peer, what may leave now."""
        out: Batches = []
        if self._table.strays:
            out, self._table.strays = self._table.strays, []
        if not self._table.touched:
            return out
        wall_ms = int((now + self._table.wall_s) * 1000)
        stamp = (wall_ms & STAMP_MASK).to_bytes(3, "big")
        for peer in self._table.touched.values():
            if peer.is_onward:
                self._relaying.take(peer, room, out, now)
                self._sizing.relayed(peer, now)
            mail = peer.mail.outgoing
            if not peer.outbox and not mail and not peer.tunnel.has_outgoing():
                continue
            if peer.session.is_spent:
                self._spent(peer)
                continue
            if peer.outbox:
                self._take_outbox(peer, room, out, stamp, wall_ms, now)
            if mail and peer.contact.links:
                self._take_mail(peer, room, out, stamp, wall_ms, now)
            if peer.contact.links:
                self._take_tunnel(peer, room, out, stamp, wall_ms, now)
        return out

    def _take_outbox(
        self, peer: Peer, room: Room, out: Batches, stamp: bytes, wall_ms: int, now: float
    ) -> None:
        """Single messages, each over the link it names; those of links that are gone are dropped."""
        while peer.outbox:
            link, kind, payload, boot = peer.outbox.popleft()
            carrier = self._relaying.carrier(link)
            if carrier is not None and room(carrier) > -OVERRUN_MAX:
                entry = self._table.links[link]
                sealed = peer.session.seal(kind, payload, stamp, wall_ms, boot, entry.hops_code)
                out.append((carrier, list(sealed)))
                if (
                    entry.state is not None and entry.peer is peer
                ):  # else an unproved claim's answer
                    peer.contact.sent(entry.state, kind == Kind.PROBE, now)

    def _take_mail(
        self, peer: Peer, room: Room, out: Batches, stamp: bytes, wall_ms: int, now: float
    ) -> None:
        """Out-of-band messages over the best link, while it has room."""
        state = peer.contact.best()
        carrier = self._relaying.carrier(state.link)
        free = 0 if carrier is None else room(carrier)
        if carrier is None or free <= 0:
            return
        hops = self._table.links[state.link].hops_code
        batch: list[bytes] = []
        while peer.mail.outgoing and free > 0:
            payload = peer.mail.take(state.rtt_s, now) + self._table.padding()
            batch += peer.session.seal(Kind.MESSAGE, payload, stamp, wall_ms, 0, hops)
            free -= len(payload)
        out.append((carrier, batch))
        peer.contact.used(state, now)
        peer.contact.sent(state, False, now)

    def _take_tunnel(
        self, peer: Peer, room: Room, out: Batches, stamp: bytes, wall_ms: int, now: float
    ) -> None:
        """The tunnel's messages, over the best link; others are only probed."""
        best: LinkState = peer.contact.links[0]
        if best.probed:
            best = peer.contact.best()
        if best.link != peer.sent_over:
            self._leave(peer, now)
            peer.sent_over = best.link
        peer.tunnel.paced = None
        self._take_path(peer, best, room, out, stamp, wall_ms, now)
        for state in peer.contact.links:
            path = self._table.links[state.link].path
            if path is not None and path.is_probe_due and state is not best:
                self._take_path(peer, state, lambda link: 0, out, stamp, wall_ms, now)

    def _leave(self, peer: Peer, now: float) -> None:
        """Messages take another link: if the one before is silent, what is on it has to be asked for."""
        before = self._table.links.get(peer.sent_over)
        if before is None or before.peer is not peer or before.state is None:
            return
        if before.path is not None and (before.state.probed or before.state.is_tentative):
            peer.tunnel.path_left(before.path, now)

    def _take_path(
        self,
        peer: Peer,
        state: LinkState,
        room: Room,
        out: Batches,
        stamp: bytes,
        wall_ms: int,
        now: float,
    ) -> None:
        """What may leave over one link, direct or relayed."""
        entry = self._table.links[state.link]
        path = entry.path
        carrier = self._relaying.carrier(state.link) if entry.hops else state.link
        free = -OVERRUN_MAX if carrier is None else room(carrier)
        if carrier is None or path is None or free <= -OVERRUN_MAX:
            return
        size_max = entry.size_max
        if free < CUT_BELOW and not entry.is_lossy:
            # a slow link: no message is longer than what it takes now
            size_max = min(size_max, max(CUT_MIN, free))
        hops = entry.hops_code if entry.hops else 0
        tunnel = peer.tunnel
        if hops:
            size_max = min(size_max, self._table.links[carrier].size_max, RELAYED_SIZE_MAX)
        if path.controller is not None and free > 0:
            free = min(free, path.budget(now))
            tunnel.paced = path
        messages = tunnel.take_messages(free, size_max, path, now)
        if not messages:
            return
        batch = peer.session.seal_batch(messages, stamp, wall_ms, hops)
        out.append((carrier, batch))
        if hops:
            peer.relayed_bytes += sum(map(len, batch))
        peer.contact.used(state, now)
        peer.contact.sent(state, tunnel.cache_size > 0, now)
        if entry.mtu is not None:
            self._sizing.used(state.link, entry, tunnel.resent_count, now)

    def _spent(self, peer: Peer) -> None:
        """No number is left for messages to this peer, and none may repeat: silence."""
        if peer.tunnel.streams:
            text = f"numbers to node {peer.id} have run out: restart this node"
            self._table.tell(peer.id, text, "warning")
        peer.outbox.clear()
        peer.tunnel.abort(Fault.EXIT_DEAD)
