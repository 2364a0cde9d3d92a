"""The source's side of streams: what waits to be sent, in which order it leaves, and cut into messages.

Three lanes leave in this order: control frames (open, credit, reset), small chunks of new and interactive
streams, bulk; bulk streams take turns, one chunk each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import add
from typing import Final

from uservpn.kit.series import COUNT_MAX, unpacked
from uservpn.tunnel import limits
from uservpn.tunnel.events import Room
from uservpn.tunnel.outbox import Outbox
from uservpn.tunnel.stream import Stream
from uservpn.tunnel.streams import StreamTable
from uservpn.types import Buffer
from uservpn.wire import frames

SEQ_SIZE: Final = frames.SEQ.size
HEAD_SIZE: Final = frames.SEQ_DATA_HEAD.size


class Lanes:
    """What waits to be sent. `write` pushes back: beyond QUEUE_STREAM_MAX or QUEUE_MAX it says False."""

    def __init__(
        self, table: StreamTable, outbox: Outbox, random_below: Callable[[int], int]
    ) -> None:
        self.control: list[bytes] = []
        self.fresh: deque[Stream] = deque()
        """New and interactive streams with something to send."""
        self.bulk: deque[Stream] = deque()
        self._table = table
        self._outbox = outbox
        self._random_below = random_below

    # --- commands --------------------------------------------------------------------------------

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
        self._table.queued += size
        if not stream.in_lane:
            self.enlist(stream)
        if stream.queue_size < limits.QUEUE_STREAM_MAX and self._table.queued < limits.QUEUE_MAX:
            return True
        stream.is_blocked = True
        return False

    def enlist(self, stream: Stream) -> None:
        """The stream takes its place in a lane."""
        stream.in_lane = True
        if stream.queue_size <= limits.SMALL_CHUNK or stream.sent_size < limits.FRESH_SIZE:
            self.fresh.append(stream)
        else:
            self.bulk.append(stream)

    def send_fin(self, stream: Stream) -> None:
        """All of the stream has been sent: so is its end."""
        self.control.append(frames.FIN_FRAME.pack(frames.FIN, stream.id, stream.send_offset))
        stream.send_done = True
        if stream.recv_done:
            self._table.drop(stream)

    # --- takes -----------------------------------------------------------------------------------

    def has_data(self) -> bool:
        """Do resends or streams wait, and may they leave?"""
        outbox = self._outbox
        return bool(outbox.resend or ((self.fresh or self.bulk) and outbox.size < limits.CACHE_MAX))

    def take_control(self, new: list[Buffer], parts: list[Buffer], size: int, size_max: int) -> int:
        """Control frames into the message at hand and, where they do not fit, more messages."""
        control = self.control
        self.control = []
        for frame in control:
            if size + len(frame) > size_max:
                new.append(self.message(parts, len(new)))
                parts.clear()
                size = SEQ_SIZE
            parts.append(frame)
            size += len(frame)
        return size

    def take_fresh(
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
        while self.fresh and room > 0 and self._outbox.size < limits.CACHE_MAX:
            stream = self.fresh[0]
            queue = stream.queue
            length = len(queue[0]) - SEQ_SIZE - stream.head_at if queue else 0
            if not 0 < length <= min(limits.SMALL_CHUNK, size_max - SEQ_SIZE):
                room -= self.take_chunk(self.fresh, new, room, size_max)
                continue
            if size + length > size_max:
                new.append(self.message(parts, len(new)))
                parts.clear()
                size = SEQ_SIZE
            item = self._take_whole(self.fresh)
            if item is not None:
                parts.append(memoryview(item)[SEQ_SIZE:])
                size += len(item) - SEQ_SIZE
                room -= len(item)
        return room - extra, size

    def take_chunk(self, lane: deque[Stream], new: list[Buffer], room: int, size_max: int) -> int:
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
        size = len(item) - HEAD_SIZE
        if stream.head_at == 0 and size <= credit and size <= size_max - HEAD_SIZE:
            frames.SEQ.pack_into(item, 0, self._outbox.next_seq + len(new))
            new.append(item)
            queue.popleft()
            stream.piece = 0
        else:
            if credit <= 0:  # CREDIT enlists it again
                return 0
            size = self._cut(stream, item, new, min(room, credit), size_max - HEAD_SIZE)
        stream.sent_size += size
        stream.queue_size -= size
        self._table.queued -= size
        if queue:
            stream.in_lane = True
            (self.bulk if stream.sent_size >= limits.FRESH_SIZE else lane).append(stream)
        elif stream.send_fin:
            self.send_fin(stream)
        if stream.is_blocked and stream.queue_size <= limits.QUEUE_STREAM_MAX >> 1:
            stream.is_blocked = False
            self._table.events.append(Room(stream))
        return size + HEAD_SIZE

    def message(self, parts: list[Buffer], index: int) -> Buffer:
        """Frames as the message `index` places behind the last one kept; padded where it is short."""
        item = b"".join((frames.SEQ.pack(self._outbox.next_seq + index), *parts))
        if len(item) < limits.PAD_BELOW:
            item += bytes(self._random_below(limits.PAD_MAX))
        return item

    # --- inside ----------------------------------------------------------------------------------

    def _take_whole(self, lane: deque[Stream]) -> Buffer | None:
        """The whole next chunk of the lane's first stream; None: it has no credit for it."""
        new: list[Buffer] = []
        stream = lane[0]
        rest = limits.FRESH_SIZE + len(stream.queue[0]) if stream.queue else 0
        self.take_chunk(lane, new, rest, rest)
        assert len(new) <= 1
        return new[0] if new else None

    def _cut(
        self, stream: Stream, item: bytearray, new: list[Buffer], most: int, piece: int
    ) -> int:
        """Messages of at most `piece` bytes of a chunk's rest; about `most` bytes of it, which it returns."""
        start = HEAD_SIZE + stream.head_at
        stream.piece = piece
        # whole pieces, so that only a chunk's or credit's last one is short
        pieces = -(-most // piece)
        stop = min(len(item), start + pieces * piece, start + stream.send_limit - stream.sent_size)
        seq = self._outbox.next_seq + len(new)
        offset, at = stream.sent_size, start
        while at < stop:
            count = min((stop - at) // piece, COUNT_MAX)
            if not count:  # the last one
                count, piece = 1, stop - at
            heads = frames.data_heads(seq, stream.id, offset, piece, count)
            new += map(add, heads, unpacked(f"{piece}s", count, item, at))
            size = count * piece
            seq, offset, at = seq + count, offset + size, at + size
        if stop == len(item):
            assert stream.queue is not None
            stream.queue.popleft()
            stream.head_at = 0
        else:
            stream.head_at += stop - start
        return stop - start
