"""A newcomer asks which numbers are taken: answered at the door, before it is anybody.

Who has no number yet cannot be a node's peer. JOIN therefore comes "from" the number of the node that is
asked, which nobody else may use: it has keys of its own, no session and no membership, and does nothing
but draw JOINED: 32 bytes, in which bit n % 8 of byte n // 8 is set for every number n that is on the
list, stale ones too, or linked, or configured. Two who choose the same free number at once are told so
when they meet (node/numbers.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from uservpn.mesh.directory import Directory
from uservpn.node.table import Table
from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, Buffer, LinkId
from uservpn.wire.constants import FLAG_BOUND, STAMP_MASK, Kind
from uservpn.wire.header import Header
from uservpn.wire.session import Session

ANSWER_EVERY_S: Final = 0.2
"""All newcomers together are answered so often, at most."""
NUMBERS_SIZE: Final = 32


class Door:
    """Answers newcomers. Bounded: one session, one answer per ANSWER_EVERY_S, the rest is dropped."""

    def __init__(self, table: Table, directory: Directory) -> None:
        self._table = table
        self._directory = directory
        self._session: Session | None = None
        self._answer_at = 0.0

    def knock(self, link: LinkId, header: Header, body: Buffer, now: float) -> None:
        """A JOIN came over this link."""
        table = self._table
        if header.flags & FLAG_BOUND or link not in table.links or now < self._answer_at:
            table.counters.stale += 1
            return
        if self._session is None:
            self._session = table.session(table.me)
        opened = self._session.peek(header, body)
        wall_ms = int((now + table.wall_s) * 1000)
        if opened is None or not table.is_recent(opened.sent_ms / 1000, now):
            table.counters.stale += 1
            return
        self._answer_at = now + ANSWER_EVERY_S
        payload = pack_numbers(self._taken()) + table.padding()
        stamp = (wall_ms & STAMP_MASK).to_bytes(3, "big")
        sealed = self._session.seal(Kind.JOINED, payload, stamp, wall_ms, header.boot)
        table.strays.append((link, list(sealed)))

    def _taken(self) -> set[int]:
        table = self._table
        linked = {node for node, peer in table.peers.items() if peer.contact.links}
        listed = {int(record.node) for record in self._directory}
        return {int(table.me), *listed, *linked, *map(int, table.servers)}


def pack_numbers(numbers: Iterable[int]) -> bytes:
    """The payload of JOINED, without padding."""
    found = bytearray(NUMBERS_SIZE)
    for number in numbers:
        found[number // 8] |= 1 << number % 8
    return bytes(found)


def unpack_numbers(payload: bytes) -> set[int] | None:
    """The numbers in a JOINED; None: it is cut off."""
    if len(payload) < NUMBERS_SIZE:
        return None
    return {
        number
        for number in range(NODE_ID_MIN, NODE_ID_MAX + 1)
        if payload[number // 8] >> number % 8 & 1
    }
