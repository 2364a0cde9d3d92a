"""What leaves, and over which link: single messages first, then what the tunnels have."""

from __future__ import annotations

from itertools import repeat
from typing import Final

from uservpn.errors import Fault
from uservpn.mesh.liveness import LinkState
from uservpn.node.passing import Room
from uservpn.node.relaying import Batches, Relaying
from uservpn.node.scheduling import Choice
from uservpn.node.sharing import OWED_MAX, OWED_START
from uservpn.node.sizing import Sizing
from uservpn.node.table import Peer, Table
from uservpn.tunnel.path import Path
from uservpn.tunnel.tunnel import (
    ALL_LANES,
    ASK_ONLY,
    BULK_ONLY,
    FIRST_ONLY,
    PROBE_ONLY,
    REPORT_ONLY,
)
from uservpn.types import LinkId
from uservpn.wire.constants import HEADER_SIZE, STAMP_MASK, TAG_SIZE, Kind
from uservpn.wire.session import TIME_SIZE

OVERRUN_MAX: Final = 1 << 20
"""Bytes queued on a full link beyond which even answers and reports wait: its peer does not read."""
FAST: Final = 800_000
"""Bytes/s of a link on which urgent messages, some kilobytes, may be sent although it is full."""
AGAIN_MAX: Final = 2048
AGAIN_BESIDE: Final = 1 << 16
CUT_BELOW: Final = 1 << 16
CUT_MIN: Final = 1 << 12
"""Messages are cut to the room of a link that has less than CUT_BELOW, never below CUT_MIN; that is also what
they are cut to on a new connection, until something on it was confirmed."""
NO_LIMIT: Final = 1 << 30
RELAYED_SIZE_MAX: Final = 1 << 16
"""Messages over relays are no longer: relays take turns by messages."""

STUCK_S: Final = 0.25
"""A way over relays that two probes asked in vain, and that was not heard for so long (or 1.5 round trips),
gives way to another."""

MESSAGE_OVERHEAD: Final = HEADER_SIZE + TAG_SIZE

Sealing = tuple[bytes, int]
"""Stamp and wall clock of what is sealed now."""


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
            out += self._table.strays
            self._table.strays = []
        if not self._table.touched:
            return out
        wall_ms = int((now + self._table.wall_s) * 1000)
        stamp = (wall_ms & STAMP_MASK).to_bytes(3, "big")
        for peer in list(self._table.touched.values()):  # whoever seeks a way touches others
            if peer.is_onward:
                self._relaying.take(peer, room, out, now)
                self._sizing.relayed(peer, now)
            mail = peer.mail.outgoing
            if not peer.outbox and not mail and not peer.tunnel.has_outgoing():
                continue
            if peer.session.is_spent:
                self._spent(peer)
                continue
            choice = self._choose(peer, now) if peer.contact.links else None
            if peer.outbox:
                self._take_outbox(peer, room, out, stamp, wall_ms, now)
            if choice is not None:
                if mail:
                    self._take_mail(peer, choice.state, room, out, stamp, wall_ms, now)
                self._take_tunnel(peer, choice, room, out, (stamp, wall_ms), now)
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
        self,
        peer: Peer,
        state: LinkState,
        room: Room,
        out: Batches,
        stamp: bytes,
        wall_ms: int,
        now: float,
    ) -> None:
        """Out-of-band messages over the chosen link, while it has room."""
        carrier = self._relaying.carrier(state.link)
        free = 0 if carrier is None else room(carrier)
        if carrier is None or free <= 0:
            return
        hops = self._table.links[state.link].hops_code
        batch: list[bytes] = []
        is_doubted = False
        while peer.mail.outgoing and free > 0:
            is_doubted = is_doubted or peer.mail.is_again()
            payload = peer.mail.take(state.rtt_s, now) + self._table.padding()
            batch += peer.session.seal(Kind.MESSAGE, payload, stamp, wall_ms, 0, hops)
            free -= len(payload)
        out.append((carrier, batch))
        peer.contact.used(state, now)
        peer.contact.sent(state, False, now)
        if is_doubted and state.owed_since is None:  # a datagram link may be dead without a word
            self._table.probe(peer, state.link, now)

    def _take_tunnel(
        self, peer: Peer, choice: Choice, room: Room, out: Batches, sealing: Sealing, now: float
    ) -> None:
        """The tunnel's messages: the relayed way's share, then the chosen link's; others are only probed."""
        tunnel, schedule, owing = peer.tunnel, peer.schedule, peer.share
        share = self._table.relay_share
        if choice.state.link != peer.sent_over:
            self._leave(peer, now)
            peer.sent_over = choice.state.link
        held_by: Path | None = None
        is_direct = not choice.state.relayed
        way = self._way(peer) if share and is_direct else None
        lanes = ALL_LANES
        if way is not None and owing.owed > OWED_START and tunnel.has_bulk():
            owed = int(owing.owed / (1.0 - share)) if share < 1.0 else OWED_MAX
            held_by = self._take_path(peer, way, room, out, sealing, now, owed, BULK_ONLY)
            path = self._table.links[way.link].path
            if path is not None and share < 1.0:
                owing.note_way(path, choice.path, share, now)
                if owing.holds(path, choice.path, share):
                    lanes = FIRST_ONLY
        if tunnel.inbox.is_due and is_direct and schedule.heard_on != choice.state.link:
            for state in peer.contact.links:
                if state.link == schedule.heard_on and not state.probed:
                    self._take_path(peer, state, room, out, sealing, now, 0, REPORT_ONLY)
        is_held = lanes == FIRST_ONLY
        if len(tunnel.streams) > 1 and schedule.wants_beside(
            choice, tunnel.inbox.received + owing.direct_bytes, now
        ):
            peer.contact.want_beside(choice.state.link, now)
            if peer.contact.has_plans():
                self._table.touch(peer)
        # on a silent link only questions and reports: the rest would be lost, or come twice
        most = 0 if choice.state.probed and is_direct else NO_LIMIT
        if choice.express is not None:
            again = choice.again
            if again is None and choice.path.inflight < AGAIN_BESIDE:
                again = choice.state.link
            self._take_path(
                peer, choice.express[0], room, out, sealing, now, lanes=FIRST_ONLY, again=again
            )
            paced = None
            if not is_held:
                paced = self._take_path(
                    peer, choice.state, room, out, sealing, now, lanes=BULK_ONLY
                )
        else:
            paced = self._take_path(peer, choice.state, room, out, sealing, now, most, lanes)
        if choice.ask is not None:
            self._take_path(peer, choice.ask, room, out, sealing, now, 0, ASK_ONLY)
        tunnel.paced = held_by if is_held else paced
        if lanes == ALL_LANES and choice.beside is not None and tunnel.has_bulk():
            self._take_path(peer, choice.beside[0], room, out, sealing, now, lanes=BULK_ONLY)
        for state in peer.contact.links:
            path = self._table.links[state.link].path
            if path is not None and path.is_probe_due and state is not choice.state:
                self._take_path(peer, state, room, out, sealing, now, 0, PROBE_ONLY)
        if way is None and share and is_direct and owing.wants_way(now):
            self._relaying.seek(peer, now)

    def _way(self, peer: Peer) -> LinkState | None:
        """The relayed way that stands."""
        for state in peer.contact.links:
            if state.relayed and not state.probed and state.heard_at > state.up_at:
                return state
        return None

    def _choose(self, peer: Peer, now: float) -> Choice:
        """Over which link the tunnel goes now."""
        links = self._table.links
        state = peer.contact.links[0]
        path = links[state.link].path
        if state is peer.contact.links[-1] and path is not None:
            only = peer.schedule.only
            if only is None or only.path is not path:
                only = peer.schedule.only = Choice(state, path)
                peer.schedule.current = state.link  # a second one comes beside it, not in its place
            self._doubt_stuck(peer, only, now)
            return only
        known = [
            (state, path)
            for state in peer.contact.links
            if not state.is_tentative and (path := links[state.link].path)
        ]
        direct = [pair for pair in known if not pair[0].relayed]
        if direct and any(not state.probed for state, _ in direct):
            ways = [pair for pair in known if pair[0].relayed and not pair[0].probed]
            choice = peer.schedule.choose(direct, peer.tunnel.has_bulk(), now, ways)
            if choice.left is not None:
                peer.tunnel.path_left(choice.left, now)
            if choice.ask is not None:
                self._table.probe(peer, choice.ask.link, now)
        else:
            state = peer.contact.best()
            path = links[state.link].path
            assert path is not None
            choice = Choice(state, path)
            self._doubt_stuck(peer, choice, now)
        for state, path in known:
            # a share's, a trial's or an older way's path may end unnoticed: its bytes would be missing
            is_behind = path.heard_at < choice.path.heard_at
            if state is not choice.state and is_behind and path.is_stuck:
                peer.schedule.put_away(state.link, now)
                peer.tunnel.path_left(path, now)
        return choice

    def _doubt_stuck(self, peer: Peer, choice: Choice, now: float) -> None:
        """Nothing on the way over relays in use is confirmed any more: others are taken, if there are any."""
        state, path = choice.state, choice.path
        if not state.relayed or state.probed or state.rtt_s is None or not path.is_stuck:
            return
        if now >= max(path.heard_at, state.heard_at) + max(STUCK_S, 1.5 * state.rtt_s):
            peer.contact.ask(state, now)

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
        sealing: Sealing,
        now: float,
        most: int = NO_LIMIT,
        lanes: int = ALL_LANES,
        again: LinkId | None = None,
    ) -> Path | None:
        """What may leave over one link, direct or relayed; at most about `most` bytes.

        Little also leaves over the link `again`. Returns the path if more would leave but for its
        congestion control.
        """
        entry = self._table.links[state.link]
        path = entry.path
        carrier = self._relaying.carrier(state.link) if entry.hops else state.link
        free = -OVERRUN_MAX if carrier is None else room(carrier)
        if carrier is None or path is None or free <= -OVERRUN_MAX:
            return None
        if path.is_swallowing:
            self._sizing.swallowed(state.link, entry, path, now)
        size_max = entry.size_max
        if peer.session.peer_boot:  # bound to it: no time in front of the payload
            size_max += TIME_SIZE
        if not entry.is_lossy and (free < CUT_BELOW or not path.heard_at):
            # a slow link: no message is longer than what it takes now; a new one: its first flight
            # (ten packets) brings whole messages
            size_max = min(size_max, max(CUT_MIN, free) if path.heard_at else CUT_MIN)
        hops = entry.hops_code if entry.hops else 0
        tunnel = peer.tunnel
        if hops:
            size_max = min(size_max, self._table.links[carrier].size_max, RELAYED_SIZE_MAX)
        if free > most:
            free = most
        paced: Path | None = None
        if path.is_bounded and free > 0 and (budget := path.budget(now)) < free:
            free, paced = budget, path
            if not path.is_lossy:  # and is confirmed before the window is used up
                size_max = min(size_max, max(CUT_MIN, path.piece()))
        # a full link takes urgent bytes if it is a fast one: they wait behind few others there
        path.is_held = paced is not None or (free <= 0 and path.rate >= FAST)
        sent, count = path.sent, path.sent_count
        messages = tunnel.take_messages(free, size_max, path, now, lanes)
        if lanes == BULK_ONLY:  # a share, not the stream, is what ends here
            path.note_end(paced is not None, now)
        if not messages:
            return paced
        out += zip(repeat(carrier), peer.session.seal_trains(messages, *sealing, hops))
        size = path.sent - sent + (path.sent_count - count) * MESSAGE_OVERHEAD
        if again is not None and size <= AGAIN_MAX:
            out.append((again, peer.session.seal_batch(messages, *sealing, hops)))
        if hops:
            peer.relayed_bytes += size
            peer.share.sent_relayed(size, self._table.relay_share, now)
        else:
            peer.share.direct_bytes += size
            if self._table.relay_share:
                peer.share.sent_direct(size, self._table.relay_share, now)
        is_owed = state.owed_since is not None and not state.is_tentative  # that one owes an ANSWER
        if is_owed and path.heard_at > (state.owed_since or 0.0):
            state.owed_since = None  # what was sent on it came; the reports took another link
        peer.contact.used(state, now)
        peer.contact.sent(state, path.inflight > 0, now)
        if entry.mtu is not None:
            self._sizing.used(state.link, entry, tunnel.resent_count, now)
        return paced

    def _spent(self, peer: Peer) -> None:
        """No number is left for messages to this peer, and none may repeat: silence."""
        if peer.tunnel.streams:
            text = f"numbers to node {peer.id} have run out: restart this node"
            self._table.tell(peer.id, text, "warning")
        peer.outbox.clear()
        peer.tunnel.abort(Fault.EXIT_DEAD)
