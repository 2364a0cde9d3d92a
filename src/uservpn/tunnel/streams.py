"""All streams of one tunnel: which there are, which of the peer's were there, and what happened to them.

Who opened a stream shows in its number: ids are odd on one side and even on the other. What the peer opened
before is remembered as ranges of numbers, so that a late frame of a stream that is over opens nothing.
"""

from __future__ import annotations

from typing import Final

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.kit.ranges import RangeSet
from uservpn.tunnel import limits
from uservpn.tunnel.events import Event
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.wire import frames

_EARLY_FRAME: Final = min(frames.FIN_FRAME.size, frames.DATA_HEAD.size)
"""Each early stream takes at least so much of a message."""
_EARLY_FACTOR: Final = 4
"""A message's early bytes cost at most so many times its size: one byte, framed, HELD_COST and itself."""
assert _EARLY_FACTOR * (frames.DATA_HEAD.size + 1) >= limits.HELD_COST + 1


class StreamTable:
    """The streams between `me` and `peer`, and the events that wait to be taken.

    At most HELD_EARLY_MAX may be known by DATA that overtook their OPEN, and hold HELD_EARLY_SIZE: whoever
    reads a message that could bring more (`unread_max`) asks `has_early_room` first. Of ids that were seen
    out of order GAPS_MAX ranges are kept: beyond that the lowest count as over.
    """

    def __init__(self, me: int, peer: int) -> None:
        self.peer = peer
        self.by_id: dict[int, Stream] = {}
        self.events: list[Event] = []
        self.opened_count = 0
        """Streams the peer has opened."""
        self.window_sum = 0
        """Bytes that all receive windows together allow."""
        self.queued = 0
        """Bytes that wait to be sent."""
        self._next_id = 2 if me < peer else 1
        self._mine = self._next_id & 1
        self._seen = RangeSet()  # ids (halved) the peer has opened
        self._seen_below = 0
        self._early_count = 0
        self._early_size = 0
        self.unread_max = 0
        """No message up to this size can bring more early streams, or bytes of theirs, than have room."""
        self.hold_early(0, 0)

    # --- commands --------------------------------------------------------------------------------

    def open(self, owner: StreamOwner | None) -> Stream:
        """A new stream of ours.

        Raises:
            StreamFault: no stream number is left.
        """
        if self._next_id >= 1 << 32:
            raise StreamFault(Fault.LIMIT, "stream numbers have run out: restart this node")
        stream = Stream(self._next_id, self.peer, True, limits.WINDOW_START)
        self._next_id += 2
        stream.owner = owner
        stream.send_limit = limits.EARLY_SIZE
        self._add(stream)
        return stream

    def adopt(self, stream: Stream) -> None:
        """A stream of ours from an earlier tunnel to this peer is one of this one, with its number."""
        self._next_id = max(self._next_id, stream.id + 2)
        self.queued += stream.queue_size
        self._add(stream)

    def widen(self, stream: Stream, window: int) -> None:
        """The stream's receive window is as large as that now."""
        self.window_sum += window - stream.recv_window
        stream.recv_window = window

    def drop(self, stream: Stream) -> None:
        """The stream is over; what it had queued or held is forgotten."""
        stream.is_over = True
        self.by_id.pop(stream.id, None)
        if not stream.is_known:
            self.hold_early(-1, -stream.held_size)
            self._mark_seen(stream.id)  # its OPEN opens nothing
        self.window_sum -= stream.recv_window
        self.queued -= stream.queue_size
        stream.queue_size = 0
        stream.queue = None
        stream.held = None

    # --- what the peer opens ---------------------------------------------------------------------

    def offered(self, stream_id: int) -> Stream | None:
        """The stream that an OPEN names, known from now on; None: it is open already, or over.

        Raises:
            PeerFault: the number is one of ours.
        """
        if stream_id & 1 == self._mine:
            raise PeerFault("OPEN with a number of ours")
        stream = self.by_id.get(stream_id)
        if stream is None:
            if self._was_seen(stream_id):
                return None  # its RESET came first
            stream = self._add(Stream(stream_id, self.peer, False, limits.EARLY_SIZE))
        elif stream.is_known:
            return None  # its message was cut anew, and both came
        else:
            self.hold_early(-1, -stream.held_size)
        stream.is_known = True
        self._mark_seen(stream_id)
        self.opened_count += 1
        return stream

    def early(self, stream_id: int) -> Stream | None:
        """A stream of the peer, not in `by_id`, whose OPEN is still on its way; None: it is over."""
        if self._is_over(stream_id):
            return None
        self.hold_early(1, 0)
        return self._add(Stream(stream_id, self.peer, False, limits.EARLY_SIZE))

    def is_early(self, stream_id: int) -> bool:
        """Would a frame of it be one that overtook its OPEN?"""
        stream = self.by_id.get(stream_id)
        return not self._is_over(stream_id) if stream is None else not stream.is_known

    def hold_early(self, count: int, size: int) -> None:
        """So many streams more, and so much more that they hold, while their OPEN is on its way."""
        self._early_count += count
        self._early_size += size
        streams = limits.HELD_EARLY_MAX - self._early_count
        cost = limits.HELD_EARLY_SIZE - self._early_size
        self.unread_max = min(streams * _EARLY_FRAME, cost // _EARLY_FACTOR)

    def has_early_room(self, ids: set[int], size: int) -> bool:
        """May these be early streams, and hold so much more?"""
        count = self._early_count + len(ids - self.by_id.keys())
        return count <= limits.HELD_EARLY_MAX and self._early_size + size <= limits.HELD_EARLY_SIZE

    # --- inside ----------------------------------------------------------------------------------

    def _add(self, stream: Stream) -> Stream:
        self.by_id[stream.id] = stream
        self.window_sum += stream.recv_window
        return stream

    def _is_over(self, stream_id: int) -> bool:
        """One that is not in `by_id`: ours, or one that the peer had opened."""
        return stream_id & 1 == self._mine or self._was_seen(stream_id)

    def _was_seen(self, stream_id: int) -> bool:
        index = stream_id >> 1
        return index < self._seen_below or index in self._seen

    def _mark_seen(self, stream_id: int) -> None:
        index = stream_id >> 1
        if index == self._seen_below:
            self._seen_below = self._seen.pop_prefix(index + 1)
        elif not self._was_seen(stream_id):
            self._seen.add(index, index + 1)
            if len(self._seen.ranges) > limits.GAPS_MAX:  # what never came counts as over
                self._seen_below = self._seen.pop_prefix(self._seen.ranges[0][0])
