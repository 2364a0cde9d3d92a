"""Flight times in the node: probes are answered with stamps, answers and ordinary stamps are measured."""

from __future__ import annotations

import struct
from typing import Final

from uservpn.mesh.flight import STAMP_S, ClockFilter, legs, offsets, unwrap
from uservpn.mesh.liveness import LinkState
from uservpn.node.options import Pong
from uservpn.node.table import LinkEntry, Peer, Table
from uservpn.types import LinkId
from uservpn.wire.header import Header

TOKEN_SIZE: Final = 8
SAMPLE_EVERY_S: Final = 1.0
"""The stamps of ordinary messages of one peer are looked at so often, at most."""
ASKED_MAX: Final = 64
_ANSWER: Final = struct.Struct(">8sQ3s3s8s")


class Flights:
    """The clocks of other nodes, and the hops of the ways to them."""

    def __init__(self, table: Table, instance: bytes) -> None:
        self._table = table
        self._instance = instance
        self.clocks: dict[int, ClockFilter] = {}
        """By node number."""
        self._asked: dict[bytes, None] = {}

    # --- commands --------------------------------------------------------------------------------

    def ping(self, peer: Peer, now: float) -> bytes | None:
        """Probes the link in use, with a `Pong` to come; its token, or None: there is no link."""
        if not peer.contact.links:
            return None
        if len(self._asked) >= ASKED_MAX:
            self._asked.pop(next(iter(self._asked)))
        self._table.touch(peer)
        token = self._table.probe(peer, peer.contact.best().link, now)
        self._asked[token] = None
        return token

    def answer(self, header: Header, payload: bytes, now: float) -> bytes:
        """What an ANSWER says: when the PROBE came, the relays' stamps in it, and who we are."""
        received_us = int((now + self._table.wall_s) * 1e6)
        token = payload[:TOKEN_SIZE].ljust(TOKEN_SIZE, b"\0")
        return _ANSWER.pack(
            token, received_us, header.stamp_hop1, header.stamp_hop2, self._instance
        )

    # --- outside events --------------------------------------------------------------------------

    def answered(
        self, peer: Peer, link: LinkId, sent_at: float, header: Header, payload: bytes, now: float
    ) -> None:
        """An ANSWER to a probe of ours came over the link that it went by."""
        entry = self._table.links[link]
        if len(payload) < _ANSWER.size:
            self._table.counters.peer_faults += 1
            return
        token, received_us, *stamps, peer.instance = _ANSWER.unpack_from(payload)
        nodes = (*entry.hops, peer.id)
        ours = now + self._table.wall_s
        received = received_us / 1e6
        answered = max(received, unwrap(header.stamp, received) - STAMP_S / 2)
        back_stamps = (header.stamp_hop1, header.stamp_hop2)[: len(entry.hops)]
        out = [sent_at + self._table.wall_s]
        out += [
            unwrap(s, self._clock_near(n, ours)) for s, n in zip(stamps, entry.hops, strict=False)
        ]
        back = [unwrap(s, there) for s, there in zip(reversed(back_stamps), out[1:], strict=True)]
        out.append(received)
        back = [ours, *back, answered]
        known = []
        for node, (offset_s, delay_s) in zip(nodes, offsets(out, back), strict=True):
            clock = self.clocks.setdefault(node, ClockFilter())
            clock.add(now, offset_s + self._table.wall_s, delay_s)
            known.append(clock.offset() - self._table.wall_s)
        entry.legs = legs(nodes, out, back, known)
        if token in self._asked:
            del self._asked[token]
            self._table.events.append(Pong(token, peer.id, link, now - sent_at, entry.legs))

    def heard(self, peer: Peer, link: LinkId, entry: LinkEntry, header: Header, now: float) -> None:
        """A message came over a direct link: its stamp tells how long it flew."""
        peer.sample_at = now + SAMPLE_EVERY_S
        clock = self.clocks.get(peer.id)
        state: LinkState | None = entry.state
        if clock is None or state is None or not clock.is_known or entry.hops:
            return
        sent_at = unwrap(header.stamp, clock.offset() + now) - clock.offset()
        flown_s = now - sent_at
        if flown_s < -clock.error(now):  # before it was sent: the clock over there was stepped
            clock.clear()
            state.in_s = None
            self._table.probe(peer, link, now)
            return
        flown_s = max(0.0, flown_s)
        state.in_s = flown_s if state.in_s is None else state.in_s + (flown_s - state.in_s) / 8

    def restarted(self, peer: Peer) -> None:
        """The peer is another process: what its clock said is nothing worth."""
        self.clocks.pop(peer.id, None)

    # --- questions -------------------------------------------------------------------------------

    def offset(self, node: int) -> float | None:
        """That node's clock minus ours, seconds; None: not known."""
        clock = self.clocks.get(node)
        if clock is None or not clock.is_known:
            return None
        return clock.offset() - self._table.wall_s

    def _clock_near(self, node: int, ours: float) -> float:
        """About what that node's clock says now."""
        return ours + (self.offset(node) or 0.0)
