"""Which messages may act: bound ones, fresh first contacts, and stale ones once their origin echoed.

What stands in docs/wire.md, section 6. A message that may not act yet is held, within bounds, until
its origin has answered a challenge; one that is bound to a boot of ours that is gone draws a notice.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from uservpn.node.table import Peer, Table
from uservpn.types import Buffer, LinkId
from uservpn.wire.constants import FLAG_BOUND, SKEW_LOGGED_MS, Kind
from uservpn.wire.header import Header
from uservpn.wire.session import first_contact_is_fresh

HELD_MAX: Final = 64
"""First contacts of one origin that wait for its echo; more are dropped (it will ask again)."""
HELD_SIZE_MAX: Final = 1 << 20
"""Bytes of them."""
NOTICE_EVERY_S: Final = 0.2
CHALLENGE_SIZE: Final = 16


class Admitted(NamedTuple):
    """A message that was held and may act now."""

    link: LinkId
    header: Header
    payload: bytes


class Admission:
    """Opens what peers sent. Bad, stale and replayed messages end here, as a None and a counter."""

    def __init__(self, table: Table, now: float) -> None:
        self._table = table
        self._started = now
        self._started_ms = int((now + table.wall_s) * 1000)

    def open(
        self, peer: Peer, link: LinkId, header: Header, body: Buffer, now: float
    ) -> bytes | None:
        """The payload of a first contact that may act now; None also for a bound one that did not open.

        `peer.session.peer_boot` may have moved.
        """
        session = peer.session
        if header.flags & FLAG_BOUND:
            self._not_opened(peer, link, header, now)
            return None
        first = session.open_first(header, body)
        if first is None:
            self._table.counters.stale += 1
            return None
        self._note_skew(peer, first.sent_ms, now)
        wall_ms = int((now + self._table.wall_s) * 1000)
        # by the clock of then and by that of now: either may be wrong, and was put right since
        started_ms = int((self._started + self._table.wall_s) * 1000)
        self._started_ms = max(self._started_ms, started_ms)
        if not first_contact_is_fresh(first.sent_ms, wall_ms, self._started_ms):
            self._hold(peer, link, header, first.payload, now)
            return None
        return first.payload if session.accept_first(header) else None

    def release(self, peer: Peer, payload: bytes) -> list[Admitted]:
        """An echo came: what was held for it, if it is the right one."""
        if not peer.challenge or payload[:CHALLENGE_SIZE] != peer.challenge:
            return []
        held = peer.held
        peer.held = []
        peer.challenge = b""
        return [
            Admitted(link, header, first)
            for header, first, link in held
            if header.boot == peer.session.peer_boot and peer.session.accept_first(header)
        ]

    def _not_opened(self, peer: Peer, link: LinkId, header: Header, now: float) -> None:
        """A bound message that did not open: bound to a boot of ours that is gone, or forged."""
        self._table.counters.stale += 1
        known = peer.session.peer_boot
        if header.boot == known and peer.is_greeted:
            return  # it knows our boot: replayed or damaged
        if header.boot < known and not self._table.is_stamp_recent(header, now):
            return  # a recording; a recent one may be of a node whose number was used elsewhere
        if now < peer.notice_at:
            return
        peer.notice_at = now + NOTICE_EVERY_S
        self._reply_unproven(peer, link, header, Kind.NOTICE, b"")

    def _reply_unproven(
        self, peer: Peer, link: LinkId, header: Header, kind: int, payload: bytes
    ) -> None:
        """An answer to an origin whose boot is claimed, not yet proved: sealed for that boot."""
        peer.outbox.append((link, kind, payload + self._table.padding(), header.boot))

    def _hold(self, peer: Peer, link: LinkId, header: Header, payload: bytes, now: float) -> None:
        """A stale first contact waits until its origin has echoed a random value."""
        size = sum(len(payload) for _, payload, _ in peer.held) + len(payload)
        if len(peer.held) < HELD_MAX and size <= HELD_SIZE_MAX:
            peer.held.append((header, payload, link))
        if not peer.challenge:
            peer.challenge = self._table.random(CHALLENGE_SIZE)
        if now >= peer.notice_at:
            peer.notice_at = now + NOTICE_EVERY_S
            self._reply_unproven(peer, link, header, Kind.CHALLENGE, peer.challenge)

    def _note_skew(self, peer: Peer, sent_ms: int, now: float) -> None:
        skew_ms = sent_ms - int((now + self._table.wall_s) * 1000)
        if abs(skew_ms) > SKEW_LOGGED_MS and not peer.skew_told:
            peer.skew_told = True
            side = "ahead of" if skew_ms > 0 else "behind"
            minutes = abs(skew_ms) / 60_000
            text = f"the clock of node {peer.id} is {minutes:.0f} min {side} this node's"
            self._table.tell(peer.id, text, "warning")
