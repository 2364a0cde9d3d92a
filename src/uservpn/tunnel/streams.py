"""All streams of one tunnel: which there are, which of the peer's were there, and what happened to them.

Who opened a stream shows in its number: ids are odd on one side and even on the other. What the peer opened
before is remembered as ranges of numbers, so that a late frame of a stream that is over opens nothing.
"""

from __future__ import annotations

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.kit.ranges import RangeSet
from uservpn.tunnel import limits
from uservpn.tunnel.events import Event
from uservpn.tunnel.stream import Stream, StreamOwner


class StreamTable:
    """The streams between `me` and `peer`, and the events that wait to be taken.

    At most HELD_EARLY_MAX may be known by DATA that overtook their OPEN: more break the protocol. Of ids that
    were seen out of order GAPS_MAX ranges are kept: beyond that the lowest count as over.
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
            self._early_count -= 1
        stream.is_known = True
        self._mark_seen(stream_id)
        self.opened_count += 1
        return stream

    def early(self, stream_id: int) -> Stream | None:
        """A stream of the peer whose OPEN is still on its way; None: it is over.

        Raises:
            PeerFault: there are too many.
        """
        if stream_id & 1 == self._mine:
            return None  # ours, and over
        if self._was_seen(stream_id):
            return None
        if self._early_count >= limits.HELD_EARLY_MAX:
            raise PeerFault("too many streams before their OPEN")
        self._early_count += 1
        return self._add(Stream(stream_id, self.peer, False, limits.EARLY_SIZE))

    def reset_by_peer(self, stream: Stream) -> None:
        """The peer ended it; one whose RESET overtook its OPEN is never opened."""
        if not stream.is_known:
            self._early_count -= 1
            self._mark_seen(stream.id)
        self.drop(stream)

    # --- inside ----------------------------------------------------------------------------------

    def _add(self, stream: Stream) -> Stream:
        self.by_id[stream.id] = stream
        self.window_sum += stream.recv_window
        return stream

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
