"""Out-of-band messages (mesh/mailbox.py) in the node: a way for each, confirmations, what came.

They need no stream and no tunnel: a peer that is not linked is dialled, or reached over relays, for as
long as a letter waits.
"""

from __future__ import annotations

from typing import Final

from uservpn.errors import UsageError
from uservpn.mesh.mailbox import confirmation
from uservpn.node.options import Message, MessageResult
from uservpn.node.table import Peer, Table
from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, LinkId, NodeId
from uservpn.wire.constants import Kind

_TOKEN_SHIFT: Final = 32


class Mailing:
    """The mailboxes of all peers."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def post(self, node: NodeId, topic: str, payload: bytes, confirmed: bool, now: float) -> int:
        """Queues a letter; its token, 0 for one at best effort. The caller sees to a way."""
        if not NODE_ID_MIN <= node <= NODE_ID_MAX or node == self._table.me:
            raise UsageError(f"no message can be sent to node {node}")
        peer = self._table.peer(node)
        self._table.touch(peer)
        number = peer.mail.post(topic, payload, confirmed, now)
        return number and node << _TOKEN_SHIFT | number

    def receive(self, peer: Peer, link: LinkId, payload: bytes) -> None:
        """A MESSAGE came. Raises PeerFault."""
        arrived = peer.mail.receive(payload)
        if arrived.number:
            answer = confirmation(arrived.number) + self._table.padding()
            peer.outbox.append((link, Kind.CONFIRM, answer, 0))
        if arrived.is_new:
            self._table.events.append(Message(peer.id, arrived.topic, arrived.payload))

    def report(self, peer: Peer) -> None:
        """Confirmed letters that are over become events."""
        for number, delivered in peer.mail.take_results():
            token = peer.id << _TOKEN_SHIFT | number
            self._table.events.append(MessageResult(token, delivered))
