"""The tunnel: reliable, multiplexed streams between two nodes, over messages that may be lost.

Each direction is a sequence of messages. The source keeps every sequenced message in one bounded cache until
the sink says that it has it; the sink says what it has (HAVE), asks for what is missing (WANT) and grants
credit per stream (CREDIT). Nothing is resent on a guess: a source that hears nothing asks for a report
(NEXT). Every DATA frame carries its stream and offset, so bytes are delivered as soon as *their* stream
is complete, whatever else is missing.

A tunnel is bound to both nodes' boots; a node that restarted gets a new one, and every stream of the old
one ends. Sans-I/O: time comes in as `now` (monotonic seconds), messages and events are taken as lists.
Three lanes leave in this order: control frames (open, credit, reset), small chunks of new and
interactive streams, bulk; bulk streams take turns, one chunk each.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.kit.ranges import RangeSet
from uservpn.tunnel import limits
from uservpn.tunnel.events import Data, Event, Finished, Offered, Opened, Reset, Room
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.types import Buffer, LinkId
from uservpn.wire import frames
from uservpn.wire.constants import NUMBER_MAX, Kind

_SEQ_SIZE = frames.SEQ.size
_HEAD_SIZE = frames.SEQ_DATA_HEAD.size
_REPORT_REST = limits.PAD_MAX + 64
"""What a report holds beside its ranges, at most."""


class Tunnel:
    """One end of the tunnel between `me` and `peer`.

    Limits (tunnel/limits.py): the cache and the queues push back, windows bound what a peer may send; a
    peer that sends more raises PeerFault out of `receive`, and the tunnel must then be aborted.
    """

    def __init__(self, me: int, peer: int, random_below: Callable[[int], int]) -> None:
        self.peer = peer
        self.streams: dict[int, Stream] = {}
        self.rtt_s = 0.05
        """The owner's estimate of the round trip; paces window growth and asking."""
        self.resent_count = 0
        self.opened_count = 0
        """Streams the peer has opened."""
        self.cache_size = 0
        self.ack_size = limits.ACK_SIZE
        """A report goes out at the latest after so many bytes."""
        self._random_below = random_below
        self._next_id = 2 if me < peer else 1
        self._mine = self._next_id & 1
        self._seen = RangeSet()  # ids (halved) the peer has opened
        self._seen_below = 0
        self._window_sum = 0
        self._early_count = 0
        # source
        self._seq = 0
        self._base = 0
        self._confirmed = RangeSet()  # above _base
        self._cache: dict[int, tuple[Buffer, LinkId]] = {}
        self._resend: deque[int] = deque()
        self._resend_set: set[int] = set()
        self._control: list[bytes] = []
        self._fresh: deque[Stream] = deque()
        self._bulk: deque[Stream] = deque()
        self._queued = 0
        self._ask_at: float | None = None
        self._ask_s = 0.0
        # sink
        self._below = 0
        self._above = RangeSet()
        self._unreported_count = 0
        self._unreported_size = 0
        self._report_at: float | None = None
        self._report_due = False
        self._want_all = False
        self._told_next = 0
        self._ask_due = False
        self._events: list[Event] = []

    # --- commands --------------------------------------------------------------------------------

    def open(self, host: str, port: int, owner: StreamOwner | None) -> Stream:
        """A new stream; OPEN leaves with the next messages. Data may be written at once.

        Raises:
            StreamFault: the host name does not fit into a frame, or no stream number is left.
        """
        name = host.encode()
        if not 0 < len(name) <= 255:
            raise StreamFault(Fault.HOST_UNREACHABLE, "host name is empty or over 255 bytes")
        if self._next_id >= 1 << 32:
            raise StreamFault(Fault.LIMIT, "stream numbers have run out: restart this node")
        stream = Stream(self._next_id, self.peer, True, limits.WINDOW_START)
        self._next_id += 2
        stream.owner = owner
        stream.send_limit = limits.EARLY_SIZE
        self._window_sum += stream.recv_window
        self.streams[stream.id] = stream
        self._control.append(frames.open_frame(stream.id, stream.recv_window, name, port))
        return stream

    def accept(self, stream: Stream, detail: bytes = b"") -> None:
        """The offered connection stands."""
        if not stream.is_over:
            stream.recv_limit = max(stream.recv_limit, limits.WINDOW_START)
            self._control.append(
                frames.opened_frame(stream.id, Fault.NONE, stream.recv_limit, detail)
            )

    def refuse(self, stream: Stream, fault: Fault, detail: bytes = b"") -> None:
        """The offered connection could not be made."""
        if not stream.is_over:
            self._control.append(frames.opened_frame(stream.id, fault, 0, detail))
            self._drop(stream)

    def write(self, stream: Stream, chunk: Buffer) -> bool:
        """Queues a copy of `chunk` (not empty). False: wait for `Room` before the next one."""
        if stream.is_over or stream.send_fin:
            return True
        size = len(chunk)
        offset = stream.send_offset
        head = frames.SEQ_DATA_HEAD.pack(0, frames.DATA, stream.id, offset, size)
        item = bytearray(b"").join((head, chunk))
        stream.send_offset = offset + size
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append(item)
        stream.queue_size += size
        self._queued += size
        if not stream.in_lane:
            self._enlist(stream)
        if stream.queue_size < limits.QUEUE_STREAM_MAX and self._queued < limits.QUEUE_MAX:
            return True
        stream.is_blocked = True
        return False

    def finish(self, stream: Stream) -> None:
        """No more will be written; what is queued still goes."""
        if not stream.is_over and not stream.send_fin:
            stream.send_fin = True
            if not stream.queue:
                self._send_fin(stream)

    def reset(self, stream: Stream, fault: Fault) -> None:
        """Ends the stream at once, ahead of all data; what was queued is dropped."""
        if not stream.is_over:
            self._control.append(frames.RESET_FRAME.pack(frames.RESET, stream.id, fault))
            self._drop(stream)

    def fail(self, stream: Stream, fault: Fault) -> None:
        """As `reset`, and our own side is told too (`Reset` follows)."""
        self._events.append(Reset(stream, fault))
        self.reset(stream, fault)

    def fail_all(self, fault: Fault) -> None:
        """Every stream ends, on both sides; of what was not confirmed only the sequence is kept."""
        for stream in list(self.streams.values()):
            self.fail(stream, fault)
        for seq, (_, link) in self._cache.items():
            self._cache[seq] = (frames.SEQ.pack(seq), link)
        self.cache_size = _SEQ_SIZE * len(self._cache)

    def consumed(self, stream: Stream, size: int, now: float) -> None:
        """`size` delivered bytes have gone on: gives credit back, in steps of half a window."""
        stream.consumed += size
        if stream.is_over or stream.recv_done:
            return
        window = stream.recv_window
        if stream.recv_limit - stream.consumed > window >> 1:
            return
        if (
            now - stream.granted_at < 2.0 * self.rtt_s
            and window < limits.WINDOW_MAX
            and self._window_sum < limits.WINDOW_SUM_MAX
        ):
            stream.recv_window = 2 * window
            self._window_sum += window
        stream.granted_at = now
        stream.recv_limit = stream.consumed + stream.recv_window
        self._control.append(frames.CREDIT_FRAME.pack(frames.CREDIT, stream.id, stream.recv_limit))

    def abort(self, fault: Fault) -> None:
        """Every stream ends here and now; nothing is sent. The tunnel is not used again."""
        for stream in list(self.streams.values()):
            self._events.append(Reset(stream, fault))
            self._drop(stream)
        self._control.clear()
        self._cache.clear()
        self.cache_size = 0

    # --- outside events --------------------------------------------------------------------------

    def link_up(self) -> None:
        """A link came up where there was none: ask for all that the old ones may have lost."""
        if self._below or self._above or self._seq:
            self._report_due = True
            self._want_all = True

    def link_lost(self) -> None:
        """One of several links is gone: both ends ask, over what is left, for what was on it."""
        self.link_up()
        self._ask_due = bool(self._cache)

    def receive(self, kind: int, payload: bytes, now: float) -> None:
        """A genuine message of the peer.

        Raises:
            PeerFault: the peer broke the protocol.
        """
        position = 0
        if len(self._control) > limits.CONTROL_MAX:
            raise PeerFault("asks for more answers than it reads")
        if kind == Kind.DATA:
            if len(payload) < _SEQ_SIZE:
                raise PeerFault("message without a sequence")
            seq = frames.SEQ.unpack_from(payload)[0]
            if seq > NUMBER_MAX:
                raise PeerFault("a sequence that cannot be")
            position = _SEQ_SIZE
            if seq == self._below:
                self._below = seq + 1
                if self._above:
                    self._below = self._above.pop_prefix(seq + 1)
            elif seq < self._below or seq in self._above:
                self._report_due = True  # the source does not know yet
                return
            else:
                if len(self._above.ranges) >= limits.GAPS_MAX:
                    return  # weather: too many gaps; it will be asked for again
                self._above.add(seq, seq + 1)
            self._unreported_count += 1
            self._unreported_size += len(payload)
            if self._unreported_count >= limits.ACK_COUNT or self._unreported_size >= self.ack_size:
                self._report_due = True
            elif self._report_at is None and not self._report_due:
                self._report_at = now + limits.ACK_DELAY_S
        try:
            self._receive_frames(payload, position, now)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise PeerFault(f"malformed frame: {error}") from None

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self._report_at is not None and now >= self._report_at:
            self._report_due = True
            self._report_at = None
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_s = min(2 * self._ask_s, 8.0)
            self._ask_at = now + self._ask_s
            self._ask_due = bool(self._cache)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called, monotonic seconds."""
        if self._ask_at is None:
            return self._report_at
        return self._ask_at if self._report_at is None else min(self._ask_at, self._report_at)

    # --- takes -----------------------------------------------------------------------------------

    def has_outgoing(self) -> bool:
        """Would `take_messages` with room return something?"""
        return bool(
            self._control
            or self._report_due
            or self._ask_due
            or self._resend
            or ((self._fresh or self._bulk) and self.cache_size < limits.CACHE_MAX)
        )

    def has_events(self) -> bool:
        """Would `take_events` return something?"""
        return bool(self._events)

    def take_events(self) -> list[Event]:
        """What happened, in order."""
        events = self._events
        if events:
            self._events = []
        return events

    def take_messages(
        self, room: int, size_max: int, link: LinkId, now: float
    ) -> list[tuple[int, Buffer]]:
        """(kind, payload) of what should leave now over `link`.

        Control goes whatever the room; resends and data while `room` bytes last. No payload is longer
        than `size_max` bytes. `link` is remembered with what is cached.
        """
        out: list[tuple[int, Buffer]] = []
        if self._report_due or self._ask_due:
            out.append((Kind.SINK, self._report(size_max)))
        resend = self._resend
        while resend and room > 0:
            seq = resend.popleft()
            self._resend_set.discard(seq)
            entry = self._cache.get(seq)
            if entry is not None:
                self._cache[seq] = (entry[0], link)
                self.resent_count += 1
                room -= len(entry[0])
                out.append((Kind.DATA, entry[0]))
        parts: list[Buffer] = []
        size = _SEQ_SIZE
        if self._control:
            size = self._take_control(out, parts, size, size_max, link)
        while self._fresh and room > 0 and self.cache_size < limits.CACHE_MAX:
            item = self._take_item(self._fresh, size_max)
            if item is None:
                continue
            length = len(item) - _SEQ_SIZE
            if length > limits.SMALL_CHUNK:
                out.append(self._keep(item, link))
            else:
                if size + length > size_max:
                    out.append(self._message(parts, link))
                    parts = []
                    size = _SEQ_SIZE
                parts.append(memoryview(item)[_SEQ_SIZE:])
                size += length
            room -= length
        if self._control:  # ends of streams whose last chunk has just been taken
            self._take_control(out, parts, size, size_max, link)
        if parts:
            out.append(self._message(parts, link))
        while self._bulk and room > 0 and self.cache_size < limits.CACHE_MAX:
            item = self._take_item(self._bulk, size_max)
            if item is not None:
                room -= len(item)
                out.append(self._keep(item, link))
        if self._control:
            parts = []
            self._take_control(out, parts, _SEQ_SIZE, size_max, link)
            out.append(self._message(parts, link))
        if self._cache and self._ask_at is None:
            self._ask_later(now)
        return out

    # --- source ----------------------------------------------------------------------------------

    def _take_control(
        self,
        out: list[tuple[int, Buffer]],
        parts: list[Buffer],
        size: int,
        size_max: int,
        link: LinkId,
    ) -> int:
        """Control frames into the message at hand and, where they do not fit, more messages."""
        control = self._control
        self._control = []
        for frame in control:
            if size + len(frame) > size_max:
                out.append(self._message(parts, link))
                parts.clear()
                size = _SEQ_SIZE
            parts.append(frame)
            size += len(frame)
        return size

    def _enlist(self, stream: Stream) -> None:
        stream.in_lane = True
        if stream.queue_size <= limits.SMALL_CHUNK or stream.sent_size < limits.FRESH_SIZE:
            self._fresh.append(stream)
        else:
            self._bulk.append(stream)

    def _take_item(self, lane: deque[Stream], size_max: int) -> bytearray | None:
        """The next chunk of the lane's first stream, which then goes to the end of the line."""
        stream = lane.popleft()
        stream.in_lane = False
        queue = stream.queue
        if not queue or stream.is_over:
            return None
        item = queue.popleft()
        size = len(item) - _HEAD_SIZE
        most = min(size_max - _HEAD_SIZE, stream.send_limit - stream.sent_size)
        if size > most:
            if most <= 0:  # no credit: CREDIT enlists it again
                queue.appendleft(item)
                return None
            item = self._cut(stream, item, most)
            size = most
        stream.sent_size += size
        stream.queue_size -= size
        self._queued -= size
        if queue:
            stream.in_lane = True
            (self._bulk if stream.sent_size >= limits.FRESH_SIZE else lane).append(stream)
        elif stream.send_fin:
            self._send_fin(stream)
        if stream.is_blocked and stream.queue_size <= limits.QUEUE_STREAM_MAX >> 1:
            stream.is_blocked = False
            self._events.append(Room(stream))
        return item

    def _cut(self, stream: Stream, item: bytearray, size: int) -> bytearray:
        """Leaves what is behind `size` bytes at the head of the queue."""
        assert stream.queue is not None
        view = memoryview(item)
        offset = stream.sent_size
        rest = len(item) - _HEAD_SIZE - size
        pack = frames.SEQ_DATA_HEAD.pack
        stream.queue.appendleft(
            bytearray(b"").join(
                (pack(0, frames.DATA, stream.id, offset + size, rest), view[_HEAD_SIZE + size :])
            )
        )
        return bytearray(b"").join(
            (pack(0, frames.DATA, stream.id, offset, size), view[_HEAD_SIZE : _HEAD_SIZE + size])
        )

    def _keep(self, item: bytearray, link: LinkId) -> tuple[int, Buffer]:
        """Numbers a framed chunk in place and keeps it until the sink has it."""
        seq = self._seq
        self._seq = seq + 1
        frames.SEQ.pack_into(item, 0, seq)
        self._cache[seq] = (item, link)
        self.cache_size += len(item)
        return Kind.DATA, item

    def _message(self, parts: list[Buffer], link: LinkId) -> tuple[int, Buffer]:
        item = bytearray(b"").join((bytes(_SEQ_SIZE), *parts))
        if len(item) < limits.PAD_BELOW:
            item += bytes(self._random_below(limits.PAD_MAX))
        return self._keep(item, link)

    def _send_fin(self, stream: Stream) -> None:
        self._control.append(frames.FIN_FRAME.pack(frames.FIN, stream.id, stream.send_offset))
        stream.send_done = True
        if stream.recv_done:
            self._drop(stream)

    def _confirm(self, below: int, ranges: list[tuple[int, int]], now: float) -> None:
        if below > self._seq:
            raise PeerFault("confirms what was never sent")
        progress = False
        if below > self._base:
            progress = self._uncache(self._base, below)
            self._base = self._confirmed.pop_prefix(below)
        for start, end in ranges:
            low, high = max(start, self._base), min(end, self._seq)
            if low >= high:
                continue
            for gap in self._confirmed.gaps(low, high):  # each report names the old ones too
                progress |= self._uncache(*gap)
            self._confirmed.add(low, high)
        if not self._cache:
            self._ask_at = None
        elif progress:  # the rest has as much time again: its report may never come
            self._ask_later(now)

    def _uncache(self, start: int, end: int) -> bool:
        """The sink has these; False: that was known."""
        progress = False
        for seq in range(start, end):
            entry = self._cache.pop(seq, None)
            if entry is not None:
                self.cache_size -= len(entry[0])
                progress = True
        return progress

    def _ask_later(self, now: float) -> None:
        self._ask_s = max(limits.ASK_DELAY_S, 4 * self.rtt_s)
        self._ask_at = now + self._ask_s

    def _queue_resend(self, start: int, end: int) -> None:
        for seq in range(max(start, self._base), min(end, self._seq)):
            if seq in self._cache and seq not in self._resend_set:
                self._resend.append(seq)
                self._resend_set.add(seq)

    # --- sink ------------------------------------------------------------------------------------

    def _report(self, size_max: int) -> bytes:
        parts = []
        ranges_max = min(frames.RANGES_MAX, (size_max - _REPORT_REST) // (2 * frames.RANGE.size))
        if self._report_due:
            self._report_due = False
            self._report_at = None
            self._unreported_count = self._unreported_size = 0
            parts.append(frames.have_frame(self._below, self._above.ranges[:ranges_max]))
            end = self._above.ranges[-1][1] if self._above else self._below
            wanted = self._above.gaps(self._below, max(end, self._told_next))
            if self._want_all:
                self._want_all = False
                wanted = [*wanted, (max(end, self._told_next), frames.OPEN_ENDED)]
            if wanted:
                parts.append(frames.want_frame(wanted[:ranges_max]))
        if self._ask_due:
            self._ask_due = False
            parts.append(frames.NEXT_FRAME.pack(frames.NEXT, self._seq))
        parts.append(bytes(self._random_below(limits.PAD_MAX)))
        return b"".join(parts)

    def _receive_frames(self, payload: bytes, position: int, now: float) -> None:
        view = memoryview(payload)
        total = len(payload)
        while position < total:
            kind = payload[position]
            if kind == frames.DATA:
                _, stream_id, offset, size = frames.DATA_HEAD.unpack_from(payload, position)
                position += 17
                if position + size > total:
                    raise PeerFault("DATA is longer than its message")
                stream = self.streams.get(stream_id)
                if stream is None:
                    stream = self._early(stream_id)
                if stream is not None:
                    self._deliver(stream, offset, view[position : position + size])
                position += size
            elif kind == frames.CREDIT:
                _, stream_id, limit = frames.CREDIT_FRAME.unpack_from(payload, position)
                position += 13
                stream = self.streams.get(stream_id)
                if stream is not None and limit > stream.send_limit:
                    self._credit(stream, limit)
            elif kind == frames.OPEN:
                position = self._on_open(payload, position)
            elif kind == frames.OPENED:
                position = self._on_opened(payload, position)
            elif kind == frames.FIN:
                _, stream_id, final = frames.FIN_FRAME.unpack_from(payload, position)
                position += 13
                stream = self.streams.get(stream_id) or self._early(stream_id)
                if stream is not None:
                    if final < stream.recv_end or (stream.final >= 0 and final != stream.final):
                        raise PeerFault("another end than before")
                    stream.final = final
                    self._maybe_finished(stream)
            elif kind == frames.RESET:
                _, stream_id, code = frames.RESET_FRAME.unpack_from(payload, position)
                position += 6
                stream = self.streams.get(stream_id) or self._early(stream_id)
                if stream is None:
                    continue
                if not stream.is_known:  # it overtook its OPEN, which then opens nothing
                    self._early_count -= 1
                    self._mark_seen(stream_id)
                self._events.append(Reset(stream, _fault(code)))
                self._drop(stream)
            elif kind == frames.HAVE:
                _, below, count = frames.HAVE_HEAD.unpack_from(payload, position)
                position += 11
                self._confirm(below, _ranges(payload, position, count), now)
                position += 16 * count
            elif kind == frames.WANT:
                _, count = frames.WANT_HEAD.unpack_from(payload, position)
                position += 3
                for start, end in _ranges(payload, position, count):
                    self._queue_resend(start, end)
                position += 16 * count
            elif kind == frames.NEXT:
                _, self._told_next = frames.NEXT_FRAME.unpack_from(payload, position)
                position += 9
                self._told_next = min(self._told_next, self._below + (1 << 20))
                self._report_due = True
            elif kind == frames.PAD:
                return
            else:
                raise PeerFault(f"unknown frame type {kind}")

    def _early(self, stream_id: int) -> Stream | None:
        """A stream of the peer whose OPEN is still on its way; None: it is over."""
        if stream_id & 1 == self._mine:
            return None  # ours, and over
        if self._was_seen(stream_id):
            return None
        if self._early_count >= limits.HELD_EARLY_MAX:
            raise PeerFault("too many streams before their OPEN")
        self._early_count += 1
        stream = self.streams[stream_id] = Stream(stream_id, self.peer, False, limits.EARLY_SIZE)
        self._window_sum += stream.recv_window
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

    def _on_open(self, payload: bytes, position: int) -> int:
        size: int
        _, stream_id, window, port, size = frames.OPEN_HEAD.unpack_from(payload, position)
        position += 12
        host = payload[position : position + size].decode()
        if stream_id & 1 == self._mine or len(host) == 0 or position + size > len(payload):
            raise PeerFault("OPEN with a wrong number or host")
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._was_seen(stream_id):
                return position + size  # its RESET came first
            stream = Stream(stream_id, self.peer, False, limits.EARLY_SIZE)
            self.streams[stream_id] = stream
            self._window_sum += stream.recv_window
        elif stream.is_known:
            raise PeerFault("stream opened twice")
        else:
            self._early_count -= 1
        stream.is_known = True
        stream.send_limit = window
        stream.recv_window = limits.WINDOW_START
        self._window_sum += limits.WINDOW_START - limits.EARLY_SIZE
        self._mark_seen(stream_id)
        self.opened_count += 1
        self._events.append(Offered(stream, host, port))
        self._release(stream)
        self._maybe_finished(stream)
        return position + size

    def _on_opened(self, payload: bytes, position: int) -> int:
        size: int
        _, stream_id, code, limit, size = frames.OPENED_HEAD.unpack_from(payload, position)
        position += 11
        if position + size > len(payload):
            raise PeerFault("OPENED is longer than its message")
        stream = self.streams.get(stream_id)
        if stream is not None and stream.is_mine:
            fault = _fault(code)
            self._events.append(Opened(stream, fault, payload[position : position + size]))
            if fault:
                self._drop(stream)
            elif limit > stream.send_limit:
                self._credit(stream, limit)
        return position + size

    def _credit(self, stream: Stream, limit: int) -> None:
        stream.send_limit = limit
        if stream.queue and not stream.in_lane:
            self._enlist(stream)

    def _deliver(self, stream: Stream, offset: int, chunk: Buffer) -> None:
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
                self._release(stream)
            return
        stream.recv_offset = end
        self._events.append(Data(stream, chunk))
        if end == stream.final:
            self._maybe_finished(stream)

    def _hold(self, stream: Stream, offset: int, chunk: Buffer) -> None:
        """Keeps bytes that came ahead of a gap, or of their OPEN."""
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
        stream.held_size = size
        small = len(chunk) <= limits.SMALL_CHUNK  # would keep its whole message
        held[offset] = bytes(chunk) if small else chunk

    def _release(self, stream: Stream) -> None:
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
                self._events.append(Data(stream, fresh))
        if not held:
            stream.held = None
        self._maybe_finished(stream)

    def _maybe_finished(self, stream: Stream) -> None:
        if stream.final < 0 or stream.recv_done or not stream.is_known:
            return
        if stream.recv_offset == stream.final:
            stream.recv_done = True
            self._events.append(Finished(stream))
            if stream.send_done:
                self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        stream.is_over = True
        self.streams.pop(stream.id, None)
        self._window_sum -= stream.recv_window
        self._queued -= stream.queue_size
        stream.queue_size = 0
        stream.queue = None
        stream.held = None


def _fault(code: int) -> Fault:
    try:
        return Fault(code)
    except ValueError:
        return Fault.FAILED  # a newer peer's reason


def _ranges(payload: bytes, position: int, count: int) -> list[tuple[int, int]]:
    if count > frames.RANGES_MAX:
        raise PeerFault("too many ranges")
    unpack = frames.RANGE.unpack_from
    return [unpack(payload, position + 16 * index) for index in range(count)]
