"""The sink's credit: how far ahead of what was consumed a stream's source may send.

The window starts at WINDOW_START and doubles while the path empties it within CREDIT_ROUNDS, or while bytes
behind a gap take a quarter of it; so it follows the path's rate also where messages get lost.
"""

from __future__ import annotations

from uservpn.tunnel import limits
from uservpn.tunnel.inbox import Inbox
from uservpn.tunnel.lanes import Lanes
from uservpn.tunnel.stream import Stream
from uservpn.tunnel.streams import StreamTable
from uservpn.wire import frames


class Credit:
    """Grants credit. No window exceeds WINDOW_MAX, and none grows when all together exceed WINDOW_SUM_MAX."""

    def __init__(self, table: StreamTable, lanes: Lanes, inbox: Inbox) -> None:
        self._table = table
        self._lanes = lanes
        self._inbox = inbox

    def consumed(self, stream: Stream, size: int, now: float) -> None:
        """`size` delivered bytes have gone on: gives credit back, in large steps."""
        stream.consumed += size
        if stream.is_over or stream.recv_done:
            return
        window = stream.recv_window
        step = window >> 1
        if step > limits.CREDIT_STEP:
            step = max(window >> 3, limits.CREDIT_STEP)
        if stream.recv_limit - stream.consumed > window - step:
            return
        rounds = limits.CREDIT_ROUNDS * step / window
        is_fast = now - stream.granted_at < rounds * self._inbox.rtt_s
        if is_fast or stream.recv_span > window >> 2:
            self._widen(stream)
        stream.granted_at = now
        stream.recv_span = 0
        self._grant(stream)

    def held(self, stream: Stream) -> None:
        """Bytes wait behind a gap: they need a window of their own, or the source would have to stop."""
        window = stream.recv_window
        span = stream.recv_end - stream.recv_offset
        if span <= window >> 2 or not stream.is_known or stream.recv_done:
            return
        is_read = stream.recv_offset - stream.consumed <= window >> 2
        is_plain = stream.held_size <= span + (span >> 2)  # not the same bytes again and again
        if is_read and is_plain:
            self._widen(stream)
            if stream.recv_window > window:
                self._grant(stream)

    def _widen(self, stream: Stream) -> None:
        if (
            stream.recv_window < limits.WINDOW_MAX
            and self._table.window_sum < limits.WINDOW_SUM_MAX
        ):
            self._table.widen(stream, 2 * stream.recv_window)

    def _grant(self, stream: Stream) -> None:
        stream.recv_limit = max(stream.recv_limit, stream.consumed + stream.recv_window)
        self._lanes.control.append(
            frames.CREDIT_FRAME.pack(frames.CREDIT, stream.id, stream.recv_limit)
        )
