"""One proxied connection inside a tunnel: offsets, credit, and what waits in between.

Offsets count the bytes of one direction from 0. `send_limit` is the credit the sink gave us;
`recv_limit` is what we gave. A stream leaves its tunnel when both directions are done, or at once when it is
reset.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from uservpn.errors import Fault
from uservpn.types import Buffer


class StreamOwner(Protocol):
    """Who hears of a stream; called by whoever drives the tunnel, never by the tunnel."""

    def stream_opened(self, fault: Fault, detail: bytes) -> None:
        """The peer's answer to our OPEN."""

    def stream_data(self, chunk: Buffer) -> None:
        """The next bytes, in order."""

    def stream_room(self) -> None:
        """More may be written."""

    def stream_finished(self) -> None:
        """The peer sends no more."""

    def stream_reset(self, fault: Fault) -> None:
        """The stream is over."""


class Stream:
    """State of one stream; owned by its tunnel. `owner` belongs to whoever drives the tunnel."""

    __slots__ = (
        "consumed",
        "final",
        "granted_at",
        "head_at",
        "held",
        "held_order",
        "held_size",
        "id",
        "in_lane",
        "is_answered",
        "is_blocked",
        "is_known",
        "is_mine",
        "is_over",
        "opened_at",
        "owner",
        "peer",
        "piece",
        "queue",
        "queue_size",
        "recv_done",
        "recv_end",
        "recv_limit",
        "recv_offset",
        "recv_span",
        "recv_window",
        "send_done",
        "send_fin",
        "send_limit",
        "send_offset",
        "sent_size",
    )

    def __init__(self, stream_id: int, peer: int, is_mine: bool, window: int) -> None:
        self.id = stream_id
        self.peer = peer
        self.is_mine = is_mine
        """We opened it."""
        self.is_known = is_mine
        """False while only DATA that overtook its OPEN has come."""
        self.is_over = False
        self.opened_at = 0.0
        """When we opened it, seconds; set by the owner of the tunnel."""
        self.is_answered = False
        """The peer has said how its dial ended."""
        self.owner: StreamOwner | None = None
        self.queue: deque[bytearray] | None = None
        """Framed chunks that wait to be sent (SEQ_DATA_HEAD, then bytes)."""
        self.head_at = 0
        """So much of the first chunk has been sent."""
        self.piece = 0
        """Bytes in each message that the last chunk was cut into; 0: it left whole. A chunk of a multiple
        of it leaves no short message behind, which would cost as much as many others."""
        self.queue_size = 0
        self.send_offset = 0
        """Offset behind the last byte queued."""
        self.sent_size = 0
        """Offset behind the last byte sent."""
        self.send_limit = 0
        self.send_fin = False
        self.send_done = False
        self.is_blocked = False
        self.in_lane = False
        self.recv_offset = 0
        self.recv_end = 0
        """Offset behind the highest byte that came."""
        self.recv_span = 0
        """The most bytes that lay behind a gap since credit was last given: the window holds them too."""
        self.recv_window = window
        self.recv_limit = window
        self.consumed = 0
        self.granted_at = 0.0
        self.held: dict[int, Buffer] | None = None
        """Bytes that arrived ahead of a gap, by offset."""
        self.held_order: list[int] = []
        """The offsets in `held`, as a heap."""
        self.held_size = 0
        """What `held` costs: its bytes, overlaps too, and something for each piece."""
        self.final = -1
        self.recv_done = False
