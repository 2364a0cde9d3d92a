"""The sink's side of streams: bytes become events in order; what came ahead of a gap is held until then."""

from __future__ import annotations

from heapq import heappop, heappush

from uservpn.errors import PeerFault
from uservpn.tunnel import limits
from uservpn.tunnel.credit import Credit
from uservpn.tunnel.events import Data, Finished
from uservpn.tunnel.stream import Stream
from uservpn.tunnel.streams import StreamTable
from uservpn.types import Buffer


class Delivery:
    """Puts the pieces of streams in order. What a stream holds is bounded by its window (HELD_FACTOR)."""

    def __init__(self, table: StreamTable, credit: Credit) -> None:
        self._table = table
        self._credit = credit

    def deliver(self, stream: Stream, offset: int, chunk: Buffer) -> None:
        """Bytes of a stream came, from `offset` on.

        Raises:
            PeerFault: they lie beyond its credit or its end, or are sent in too many pieces.
        """
        end = offset + len(chunk)
        if end > stream.recv_end:
            if end > stream.recv_limit:
                raise PeerFault("sent beyond its credit")
            if stream.final >= 0 and end > stream.final:
                raise PeerFault("sent beyond its end")
            stream.recv_end = end
        expected = stream.recv_offset
        if offset != expected or not stream.is_known or stream.held:
            if end > expected:
                self._hold(stream, offset, chunk)
            if stream.is_known and offset <= expected:
                self.release(stream)
            return
        stream.recv_offset = end
        self._table.events.append(Data(stream, chunk))
        if end == stream.final:
            self.maybe_finished(stream)

    def release(self, stream: Stream) -> None:
        """Delivers what has become contiguous; overlaps (messages cut anew) are trimmed."""
        held = stream.held
        order = stream.held_order
        while held and order[0] <= stream.recv_offset:
            offset = heappop(order)
            chunk = held.pop(offset)
            stream.held_size -= len(chunk) + limits.HELD_COST
            fresh = memoryview(chunk)[stream.recv_offset - offset :]
            if len(fresh):
                stream.recv_offset += len(fresh)
                self._table.events.append(Data(stream, fresh))
        if not held:
            stream.held = None
        self.maybe_finished(stream)

    def maybe_finished(self, stream: Stream) -> None:
        """Have all its bytes come? Then the peer's direction is done."""
        if stream.final < 0 or stream.recv_done or not stream.is_known:
            return
        if stream.recv_offset == stream.final:
            stream.recv_done = True
            self._table.events.append(Finished(stream))
            if stream.send_done:
                self._table.drop(stream)

    def _hold(self, stream: Stream, offset: int, chunk: Buffer) -> None:
        """Keeps bytes that came ahead of a gap, or of their OPEN."""
        stream.recv_span = max(stream.recv_span, stream.recv_end - stream.recv_offset)
        held = stream.held
        if held is None:
            held = stream.held = {}
            stream.held_size = 0
        known = held.get(offset)
        size = stream.held_size + len(chunk)
        if known is None:
            size += limits.HELD_COST
        elif len(known) < len(chunk):
            size -= len(known)
        else:
            return
        window = stream.recv_limit - stream.recv_offset
        if size > limits.HELD_FACTOR * max(window, limits.WINDOW_START):
            raise PeerFault("sends the same bytes in too many pieces")
        if known is None:
            heappush(stream.held_order, offset)
        if not stream.is_known:
            self._table.hold_early(0, size - stream.held_size)
        stream.held_size = size
        # else it would keep its whole message
        is_copied = len(chunk) <= limits.SMALL_CHUNK or not stream.is_known
        held[offset] = bytes(chunk) if is_copied else chunk
        self._credit.held(stream)
