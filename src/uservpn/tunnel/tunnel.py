"""The tunnel: reliable, multiplexed streams between two nodes, over messages that may be lost.

Each direction is a sequence of messages. The source keeps every sequenced message in one bounded cache
(tunnel/outbox.py) until the sink says that it has it; the sink (tunnel/inbox.py) says what it has (HAVE),
asks for what is missing (WANT) and grants credit per stream (CREDIT). Nothing is resent on a guess: a source
that hears nothing sends an empty message, which draws a report. Every DATA frame carries its stream and
offset, so bytes are delivered as soon as *their* stream is complete, whatever else is missing.

A tunnel uses several paths at once (tunnel/path.py); its owner says which one the next messages take.

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
from typing import Final

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.kit.ranges import RangeSet
from uservpn.tunnel import limits
from uservpn.tunnel.events import Data, Event, Finished, Offered, Opened, Reset, Room
from uservpn.tunnel.inbox import Inbox
from uservpn.tunnel.outbox import Outbox
from uservpn.tunnel.path import Path
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.types import Buffer
from uservpn.wire import frames
from uservpn.wire.constants import Kind

ALL_LANES: Final = 0
BULK_ONLY: Final = 1
PROBE_ONLY: Final = 2
REPORT_ONLY: Final = 3
FIRST_ONLY: Final = 4
"""What `take_messages` takes."""
_SEQ_SIZE = frames.SEQ.size
_HEAD_SIZE = frames.SEQ_DATA_HEAD.size


class Tunnel:
    """One end of the tunnel between `me` and `peer`.

    Limits (tunnel/limits.py): the cache and the queues push back, windows bound what a peer may send; a
    peer that sends more raises PeerFault out of `receive`, and the tunnel must then be aborted.
    """

    def __init__(self, me: int, peer: int, random_below: Callable[[int], int]) -> None:
        self.peer = peer
        self.streams: dict[int, Stream] = {}
        self.opened_count = 0
        """Streams the peer has opened."""
        self.outbox = Outbox()
        self.inbox = Inbox()
        self.paced: Path | None = None
        """Set by the owner: the path whose pacer holds back what waits."""
        self._random_below = random_below
        self._next_id = 2 if me < peer else 1
        self._mine = self._next_id & 1
        self._seen = RangeSet()  # ids (halved) the peer has opened
        self._seen_below = 0
        self._window_sum = 0
        self._early_count = 0
        self._control: list[bytes] = []
        self._fresh: deque[Stream] = deque()
        self._bulk: deque[Stream] = deque()
        self._queued = 0
        self._ask_due = False
        self._events: list[Event] = []

    @property
    def rtt_s(self) -> float:
        """The owner's estimate of the round trip; paces window growth and reports."""
        return self.inbox.rtt_s

    @rtt_s.setter
    def rtt_s(self, seconds: float) -> None:
        self.inbox.rtt_s = seconds

    @property
    def cache_size(self) -> int:
        """Bytes sent and not confirmed."""
        return self.outbox.size

    @property
    def resent_count(self) -> int:
        """Messages that were sent again."""
        return self.outbox.resent_count

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
        self.outbox.drop_payloads()

    def consumed(self, stream: Stream, size: int, now: float) -> None:
        """`size` delivered bytes have gone on: gives credit back, in steps of half a window."""
        stream.consumed += size
        if stream.is_over or stream.recv_done:
            return
        window = stream.recv_window
        if stream.recv_limit - stream.consumed > window >> 1:
            return
        if (
            (now - stream.granted_at < 2.0 * self.rtt_s or stream.recv_span > window >> 2)
            and window < limits.WINDOW_MAX
            and self._window_sum < limits.WINDOW_SUM_MAX
        ):
            stream.recv_window = 2 * window
            self._window_sum += window
        stream.granted_at = now
        stream.recv_span = 0
        stream.recv_limit = stream.consumed + stream.recv_window
        self._control.append(frames.CREDIT_FRAME.pack(frames.CREDIT, stream.id, stream.recv_limit))

    def abort(self, fault: Fault) -> None:
        """Every stream ends here and now; nothing is sent. The tunnel is not used again."""
        for stream in list(self.streams.values()):
            self._events.append(Reset(stream, fault))
            self._drop(stream)
        self._control.clear()
        self.outbox.clear()

    # --- outside events --------------------------------------------------------------------------

    def path_up(self, path: Path, is_first: bool) -> None:
        """A path may be used; `is_first`: there was none, so ask for all that the old ones may have lost."""
        self.outbox.paths.append(path)
        if is_first:
            self.link_up()

    def link_up(self) -> None:
        """A link came up where there was none: both ends ask for all that the old ones may have lost."""
        self.inbox.link_up()
        self._ask_due = self._ask_due or self.outbox.size > 0

    def path_down(self, path: Path) -> None:
        """A path is gone; both ends ask, over what is left, for what was on it."""
        path.is_gone = True
        path.probe_at = None
        if self.paced is path:
            self.paced = None
        self.inbox.link_up()
        if not path.flights:
            self.outbox.paths.remove(path)
        if self.outbox.size:
            self._ask_due = True

    def path_left(self, path: Path, now: float) -> None:
        """A path fell silent: what is on it is resent over another, once the sink says what it misses."""
        path.leave(now)
        self._ask_due = True

    def receive(self, kind: int, payload: bytes, now: float, is_lossy: bool = False) -> None:
        """A genuine message of the peer; `is_lossy` tells what kind of path it came over.

        Raises:
            PeerFault: the peer broke the protocol.
        """
        position = 0
        if len(self._control) > limits.CONTROL_MAX:
            raise PeerFault("asks for more answers than it reads")
        if kind == Kind.DATA:
            size = len(payload)
            if size < _SEQ_SIZE:
                raise PeerFault("message without a sequence")
            seq = frames.SEQ.unpack_from(payload)[0]
            position = _SEQ_SIZE
            if not self.inbox.admit(seq, size, now, is_lossy):
                return
        try:
            self._receive_frames(payload, position, now)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise PeerFault(f"malformed frame: {error}") from None

    def receive_run(self, payloads: list[bytes], now: float, is_lossy: bool) -> None:
        """As `receive` for DATA messages that came together; a stream's neighbouring pieces become one event.

        Raises:
            PeerFault: the peer broke the protocol.
        """
        index, count = 0, len(payloads)
        while index < count:
            taken = self._receive_pieces(payloads, index, now, is_lossy)
            if not taken:
                self.receive(Kind.DATA, payloads[index], now, is_lossy)
                taken = 1
            index += taken

    def _receive_pieces(self, payloads: list[bytes], index: int, now: float, is_lossy: bool) -> int:
        """From `index` on, messages that follow each other and hold a stream's next bytes each; how many."""
        unpack = frames.SEQ_DATA_HEAD.unpack_from
        payload = payloads[index]
        if len(payload) <= _HEAD_SIZE + limits.PAD_MAX:
            return 0
        first, kind, stream_id, start, size = unpack(payload)
        if kind != frames.DATA or _HEAD_SIZE + size != len(payload):
            return 0
        stream = self.streams.get(stream_id)
        if stream is None or not stream.is_known:
            return 0
        pieces = [memoryview(payload)[_HEAD_SIZE:]]
        seq, end = first + 1, start + size
        for payload in payloads[index + 1 :]:
            length = len(payload)
            if length <= _HEAD_SIZE:
                break
            other, kind, number, offset, size = unpack(payload)
            if (
                other != seq
                or kind != frames.DATA
                or number != stream_id
                or offset != end
                or _HEAD_SIZE + size != length
            ):
                break
            pieces.append(memoryview(payload)[_HEAD_SIZE:])
            seq += 1
            end += size
        count = len(pieces)
        wire = end - start + count * _HEAD_SIZE
        if not self.inbox.admit_run(first, count, wire, now, is_lossy):
            return 0
        self._deliver(stream, start, pieces[0] if count == 1 else b"".join(pieces))
        return count

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        self.inbox.on_deadline(now)
        self.outbox.on_deadline(now)

    def next_deadline(self) -> float | None:
        """When `on_deadline`, or a take, wants to be called, monotonic seconds."""
        due = self.inbox.next_deadline()
        for path in self.outbox.paths:
            other = path.next_deadline()
            if due is None or (other is not None and other < due):
                due = other
        if self.paced is not None and self._has_data():
            other = self.paced.pace_deadline()
            if due is None or (other is not None and other < due):
                due = other
        return due

    # --- takes -----------------------------------------------------------------------------------

    def has_outgoing(self) -> bool:
        """Would `take_messages` with room return something?"""
        return bool(
            self._control
            or self.inbox.is_due
            or self._ask_due
            or self._has_data()
            or any(path.is_probe_due for path in self.outbox.paths)
        )

    def _has_data(self) -> bool:
        outbox = self.outbox
        return bool(
            outbox.resend or ((self._fresh or self._bulk) and outbox.size < limits.CACHE_MAX)
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

    def has_bulk(self) -> bool:
        """Does a stream wait that has sent much already?"""
        return bool(self._bulk)

    def take_messages(
        self, room: int, size_max: int, path: Path, now: float, lanes: int = ALL_LANES
    ) -> list[tuple[int, Buffer]]:
        """(kind, payload) of what should leave now over `path`.

        Control goes whatever the room; resends and data while `room` bytes last, those of new and interactive
        streams somewhat longer on a lossy path. No payload is longer than `size_max` bytes. `lanes` narrows
        it down: BULK_ONLY for a path that gets a share, PROBE_ONLY for one that is only asked, REPORT_ONLY
        for the one that the peer's messages come over, FIRST_ONLY for all but bulk.
        """
        outbox = self.outbox
        out: list[tuple[int, Buffer]] = []
        new: list[Buffer] = []
        path.is_awaited = bool(self.streams)
        if self.inbox.is_due and lanes in (ALL_LANES, REPORT_ONLY, FIRST_ONLY):
            self._take_report(out, size_max, now)
        is_first = lanes in (ALL_LANES, FIRST_ONLY)
        if is_first and (self._fresh or self._control or outbox.resend):
            room = self._take_first(out, new, room, size_max, path, now)
        if lanes in (ALL_LANES, BULK_ONLY):
            while self._bulk and room > 0 and outbox.size < limits.CACHE_MAX:
                room -= self._take_chunk(self._bulk, new, room, size_max)
        if self._control and is_first:  # ends of streams whose last chunk was just taken
            parts: list[Buffer] = []
            self._take_control(new, parts, _SEQ_SIZE, size_max)
            new.append(self._message(parts, len(new)))
        if path.is_probe_due or (self._ask_due and is_first):
            if not new:  # nothing else draws a report over this path
                new.append(self._message([b""], 0))
            path.probed(now)
            self._ask_due = self._ask_due and not is_first
        if new:
            outbox.keep(new, sum(map(len, new)), path, now)
            out += [(Kind.DATA, payload) for payload in new]
        path.note_end(is_first and self._has_data(), now)
        return out

    def _take_report(self, out: list[tuple[int, Buffer]], size_max: int, now: float) -> None:
        pad_max = limits.PAD_MAX
        out += [
            (Kind.SINK, report + bytes(self._random_below(pad_max)))
            for report in self.inbox.take_report(size_max - pad_max, now)
        ]

    def _take_first(
        self,
        out: list[tuple[int, Buffer]],
        new: list[Buffer],
        room: int,
        size_max: int,
        path: Path,
        now: float,
    ) -> int:
        """All that goes ahead of bulk: resends, control, new and interactive streams; the room left."""
        if self.outbox.resend and room > 0:
            resends = self.outbox.take_resends(room, size_max, path, now)
            room -= sum(map(len, resends))
            out += [(Kind.DATA, payload) for payload in resends]
        parts: list[Buffer] = []
        size = _SEQ_SIZE
        if self._control:
            size = self._take_control(new, parts, size, size_max)
        if self._fresh:
            room, size = self._take_fresh(new, parts, size, room, size_max, path.is_held)
        if self._control:  # ends of streams whose last chunk has just been taken
            size = self._take_control(new, parts, size, size_max)
        if parts:
            new.append(self._message(parts, len(new)))
        return room

    # --- source ----------------------------------------------------------------------------------

    def _take_control(
        self, new: list[Buffer], parts: list[Buffer], size: int, size_max: int
    ) -> int:
        """Control frames into the message at hand and, where they do not fit, more messages."""
        control = self._control
        self._control = []
        for frame in control:
            if size + len(frame) > size_max:
                new.append(self._message(parts, len(new)))
                parts.clear()
                size = _SEQ_SIZE
            parts.append(frame)
            size += len(frame)
        return size

    def _take_fresh(
        self,
        new: list[Buffer],
        parts: list[Buffer],
        size: int,
        room: int,
        size_max: int,
        is_held: bool,
    ) -> tuple[int, int]:
        """Chunks of new and interactive streams, the small ones joined; returns room and size left."""
        extra = limits.FRESH_EXTRA if is_held else 0
        room += extra
        while self._fresh and room > 0 and self.outbox.size < limits.CACHE_MAX:
            stream = self._fresh[0]
            queue = stream.queue
            length = len(queue[0]) - _SEQ_SIZE - stream.head_at if queue else 0
            if not 0 < length <= min(limits.SMALL_CHUNK, size_max - _SEQ_SIZE):
                room -= self._take_chunk(self._fresh, new, room, size_max)
                continue
            if size + length > size_max:
                new.append(self._message(parts, len(new)))
                parts.clear()
                size = _SEQ_SIZE
            item = self._take_whole(self._fresh)
            if item is not None:
                parts.append(memoryview(item)[_SEQ_SIZE:])
                size += len(item) - _SEQ_SIZE
                room -= len(item)
        return room - extra, size

    def _enlist(self, stream: Stream) -> None:
        stream.in_lane = True
        if stream.queue_size <= limits.SMALL_CHUNK or stream.sent_size < limits.FRESH_SIZE:
            self._fresh.append(stream)
        else:
            self._bulk.append(stream)

    def _take_whole(self, lane: deque[Stream]) -> Buffer | None:
        """The whole next chunk of the lane's first stream; None: it has no credit for it."""
        new: list[Buffer] = []
        stream = lane[0]
        rest = limits.FRESH_SIZE + len(stream.queue[0]) if stream.queue else 0
        self._take_chunk(lane, new, rest, rest)
        assert len(new) <= 1
        return new[0] if new else None

    def _take_chunk(self, lane: deque[Stream], new: list[Buffer], room: int, size_max: int) -> int:
        """Messages from the next chunk of the lane's first stream, which then goes to the end of the line.

        The chunk leaves whole where it fits, else in pieces while `room` lasts. Returns the bytes taken.
        """
        stream = lane.popleft()
        stream.in_lane = False
        queue = stream.queue
        if not queue or stream.is_over:
            return 0
        item = queue[0]
        credit = stream.send_limit - stream.sent_size
        size = len(item) - _HEAD_SIZE
        if stream.head_at == 0 and size <= credit and size <= size_max - _HEAD_SIZE:
            frames.SEQ.pack_into(item, 0, self.outbox.next_seq + len(new))
            new.append(item)
            queue.popleft()
        else:
            if credit <= 0:  # CREDIT enlists it again
                return 0
            size = self._cut(stream, item, new, min(room, credit), size_max - _HEAD_SIZE)
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
        return size + _HEAD_SIZE

    def _cut(
        self, stream: Stream, item: bytearray, new: list[Buffer], most: int, piece: int
    ) -> int:
        """Messages of at most `piece` bytes of a chunk's rest; about `most` bytes of it, which it returns."""
        pack = frames.SEQ_DATA_HEAD.pack
        data, stream_id, join = frames.DATA, stream.id, b"".join
        view = memoryview(item)
        start = _HEAD_SIZE + stream.head_at
        # whole pieces, so that only a chunk's or credit's last one is short
        pieces = -(-most // piece)
        stop = min(len(item), start + pieces * piece, start + stream.send_limit - stream.sent_size)
        seq = self.outbox.next_seq + len(new)
        offset = stream.sent_size - start
        for at in range(start, stop, piece):
            end = at + piece
            if end > stop:
                end = stop
            new.append(join((pack(seq, data, stream_id, offset + at, end - at), view[at:end])))
            seq += 1
        if stop == len(item):
            assert stream.queue is not None
            stream.queue.popleft()
            stream.head_at = 0
        else:
            stream.head_at += stop - start
        return stop - start

    def _message(self, parts: list[Buffer], index: int) -> Buffer:
        """Frames as the message `index` places behind the last one kept; padded where it is short."""
        item = b"".join((frames.SEQ.pack(self.outbox.next_seq + index), *parts))
        if len(item) < limits.PAD_BELOW:
            item += bytes(self._random_below(limits.PAD_MAX))
        return item

    def _send_fin(self, stream: Stream) -> None:
        self._control.append(frames.FIN_FRAME.pack(frames.FIN, stream.id, stream.send_offset))
        stream.send_done = True
        if stream.recv_done:
            self._drop(stream)

    # --- frames ----------------------------------------------------------------------------------

    def _receive_frames(self, payload: bytes, position: int, now: float) -> None:
        view = memoryview(payload)
        total = len(payload)
        report: tuple[float, int] | None = None
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
                _, below, start, held, again, count = frames.HAVE_HEAD.unpack_from(
                    payload, position
                )
                position += frames.HAVE_HEAD.size
                self.outbox.confirm(below, frames.ranges_of(payload, position, start, count), now)
                position += frames.RUN.size * count
                report = held * frames.HELD_UNIT_S, again
            elif kind == frames.WANT:
                self.outbox.want(frames.WANT_FRAME.unpack_from(payload, position)[1])
                position += frames.WANT_FRAME.size
            elif kind == frames.PAD:
                break
            else:
                raise PeerFault(f"unknown frame type {kind}")
        if report is not None:
            self.outbox.report_over(*report, now)

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
            return position + size  # its message was cut anew, and both came
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
        if stream is not None and stream.is_mine and not stream.is_answered:
            stream.is_answered = True
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
