"""Messages back to back on a byte stream: what the links of all stream protocols have in common.

Receiving: one large buffer per link that is read into at its end and parsed from its start; a message is
opened where it lies, and only a message cut by the buffer's end is ever moved. Sending: one gathering
write per batch. The transport is not given more than a tenth of a second takes (`Backlog`), so that
what is urgent overtakes in the tunnel's lanes instead of waiting here, behind megabytes.

A header that does not open means the bytes are not ours: from then on the connection is read
and thrown away, nothing is answered, and it ends when the other side gives up (or after a time
limit), so that a probe learns nothing. Only the side that dialled closes: it has nobody to hide from, and
a new connection gets back into step at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, cast

from uservpn.links.backlog import LIMIT_MAX, Backlog
from uservpn.links.base import LinkCaps, LinkOwner
from uservpn.links.pipe import Below, Pipe
from uservpn.types import Buffer
from uservpn.wire.constants import HEADER_SIZE, KIB, PAYLOAD_SIZE_MAX, TAG_SIZE
from uservpn.wire.header import Header, HeaderCodec, Run

ROOM_MIN: Final = 64 * KIB
"""A fast link that is not full takes at least so much: no message is cut for the last bytes."""
BURST: Final = 1024 * KIB
"""A fast link with nothing queued gets all that one read brings: the kernel takes most of it at once."""
LOOK_S: Final = 0.01
"""A slow link that is full by what lies below its transport is looked at again after so long."""
WATCH_S: Final = 1.0
"""So often it is looked whether what was sent is acknowledged; where nothing is, ever less often..."""
WATCH_MAX_S: Final = 8.0
"""...up to this."""
PROGRESS_SIZE: Final = 4 * KIB
"""So many acknowledged bytes tell of a large message: small ones are acknowledged by strangers, too."""
MESSAGE_MAX: Final = 256 * KIB
BUFFER_START: Final = 64 * KIB
BUFFER_SIZE: Final = 1024 * KIB
STRANGER_S: Final = 60.0
"""How long a connection with foreign bytes is read and thrown away."""
UNPROVEN_S: Final = 20.0
"""How long an accepted connection may stay without one genuine message."""

assert HEADER_SIZE + PAYLOAD_SIZE_MAX <= BUFFER_SIZE <= BURST


def stream_caps(protocol: str, is_self_bounding: bool, is_costly: bool = False) -> LinkCaps:
    """What a link on an ordered, reliable byte stream can do."""
    return LinkCaps(
        protocol,
        MESSAGE_MAX + TAG_SIZE + KIB,
        is_ordered=True,
        is_reliable=True,
        is_self_bounding=is_self_bounding,
        is_costly=is_costly,
    )


def own(part: Buffer) -> bytes:
    """What may be kept: a copy, unless it is one already."""
    return part if type(part) is bytes else bytes(part)


class StreamLink(asyncio.BufferedProtocol):
    """One byte stream to an adjacent node (both `Link` and asyncio protocol).

    Its transport is asyncio's, or any object with the same `writelines`, `get_write_buffer_size`,
    `set_write_buffer_limits`, `is_closing` and `abort`. A protocol that wraps the stream feeds what it
    unwrapped with `feed`. What the system below the transport holds, a subclass may tell.
    """

    def __init__(
        self,
        caps: LinkCaps,
        codec: HeaderCodec,
        owner: LinkOwner,
        accepted: bool,
        pipe: Pipe | None = None,
    ) -> None:
        self.caps = caps
        self.id = owner.new_link_id()
        self.local = self.remote = ""
        self.bytes_in = self.bytes_out = 0
        self._codec = codec
        self._owner = owner
        self._accepted = accepted
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(BUFFER_START)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._header: Header | None = None
        self._is_stranger = False
        self._is_full = False
        self._full_at = 0.0
        self._backlog = Backlog()
        self._pipe = pipe or Pipe()
        self._limit = 0  # as last set for the transport
        self._look_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._acked = 0
        self._acked_at = 0.0
        self._progress_from = 0
        self._watch_s = WATCH_S
        self._loop = asyncio.get_running_loop()
        self._is_proven = False
        self._timer: asyncio.TimerHandle | None = None

    # --- Link ------------------------------------------------------------------------------------

    def room(self) -> int:
        """Bytes up to just over the limit (so that `resume_writing` comes); <= 0: full."""
        if self._transport is None:
            return 0
        size = self._transport.get_write_buffer_size()
        if self._is_full:
            return min(0, self._limit - size)
        if self._look_below(size):
            room = self._pipe.room
            if room <= 0:
                self._look_later(self._pipe.pause_s)
            return room
        if self._limit == LIMIT_MAX:
            room = (LIMIT_MAX if size else BURST) + 1 - size
            return max(ROOM_MIN, room) if room > 0 else room
        size += self.unsent_below()
        self._backlog.look(self._loop.time(), self.bytes_out - size, size)
        self._set_limit()
        room = self._limit + 1 - size
        if room <= 0:
            self._look_later(LOOK_S)
        return room

    def send(self, batch: Sequence[Buffer]) -> None:
        """One gathering write."""
        if self._transport is not None and not self._transport.is_closing():
            size = sum(map(len, batch))
            self.bytes_out += size
            self._pipe.took(size)
            self._transport.writelines([own(part) for part in batch])
            self._watch_soon()

    def close(self) -> None:
        """Closes at once, dropping what is unsent."""
        if self._transport is not None:
            self._transport.abort()

    # --- for protocols on top --------------------------------------------------------------------

    def below(self) -> Below | None:
        """What the system below the transport tells of its path; None: nothing."""
        return None

    def unsent_below(self) -> int:
        """Bytes that the system below the transport holds unsent."""
        return 0

    def unacknowledged_below(self) -> int:
        """Bytes that the system below the transport holds, those on their way too."""
        return 0

    def is_resending(self) -> bool:
        """Does the system below the transport send what it holds again, since nobody acknowledges it?"""
        return False

    def limit_below(self, limit: int) -> None:
        """The system below the transport should hold no more than so many unsent bytes."""

    def feed(self, data: Buffer) -> None:
        """Takes bytes that were read elsewhere."""
        view = memoryview(data)
        while len(view) and self._transport is not None:
            room = self.get_buffer(len(view))
            size = min(len(room), len(view))
            room[:size] = view[:size]
            self.buffer_updated(size)
            view = view[size:]

    # --- asyncio ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The stream stands; `local` and `remote` are known by now."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._set_limit()
        if self._accepted:
            self._timer = self._loop.call_later(UNPROVEN_S, self.close)
            self._owner.link_opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for at least the rest of the message at hand."""
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hands on every whole message."""
        self.bytes_in += nbytes
        if self._is_stranger:
            return
        end = self._end = self._end + nbytes
        start = self._start
        view = self._view
        header = self._header
        runs: list[Run] = []
        while True:
            if header is None:
                if end - start < HEADER_SIZE:
                    break
                header = self._codec.open(view[start : start + HEADER_SIZE])
                if header is None:
                    self._hand_on(runs)
                    self._become_stranger()
                    return
                start += HEADER_SIZE
            length = header.length
            if end - start < length:
                break
            if not self._is_proven:
                self._prove()
            runs.append(Run(header, (view[start : start + length],)))
            start += length
            header = None
        self._hand_on(runs)
        self._header = header
        if start == end:
            self._start = self._end = 0
        else:
            self._start = start
            self._make_space(HEADER_SIZE if header is None else header.length)
            if header is not None:
                self._owner.link_progress(self)
        if nbytes >= BUFFER_START // 2 and len(self._buffer) < BUFFER_SIZE:
            self._move(BUFFER_SIZE)

    def eof_received(self) -> bool:
        """The other side closed: so do we (a stranger's connection goes with it)."""
        return False

    def pause_writing(self) -> None:
        """The write buffer is above its high-water mark."""
        self._is_full = True
        self._full_at = self._loop.time()
        self._pipe.filled()

    def resume_writing(self) -> None:
        """The write buffer has drained."""
        self._is_full = False
        self._backlog.drained(self._loop.time() - self._full_at)
        self._set_limit()
        self._owner.link_writable(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the owner."""
        for timer in (self._timer, self._look_timer, self._watch_timer):
            if timer is not None:
                timer.cancel()
        self._transport = None
        self._owner.link_closed(self, str(exc) if exc else "closed")

    # --- inside ----------------------------------------------------------------------------------

    def _hand_on(self, runs: list[Run]) -> None:
        """The owner gets what one read has brought."""
        if runs:
            self._owner.link_runs(self, runs)

    def _look_below(self, size: int) -> bool:
        """Does the pipe bound what may be sent? `size` bytes wait in the transport."""
        pipe = self._pipe
        if not self.caps.is_self_bounding:
            return False
        now = self._loop.time()
        if pipe.is_due(now) and (below := self.below()) is not None:
            pipe.look(now, below._replace(unsent=below.unsent + size))
            if pipe.is_bounding:
                self._backlog.limit = LIMIT_MAX
                self._set_limit()
        return pipe.is_bounding

    def _look_later(self, seconds: float) -> None:
        """What lies below says nothing when it has room again."""
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(seconds, self._look)

    def _set_limit(self) -> None:
        """The backlog's limit becomes the transport's, if it is another one."""
        limit = self._backlog.limit
        if limit == self._limit:
            return
        self._limit = limit
        assert self._transport is not None
        self._transport.set_write_buffer_limits(limit, limit // 4)
        self.limit_below(limit)

    def _look(self) -> None:
        self._look_timer = None
        self._pipe.be_due()
        if not self._is_full:
            self._owner.link_writable(self)

    def _watch_soon(self) -> None:
        """Bytes were sent."""
        if self._watch_timer is None:
            self._acked_at = self._loop.time()  # all that went before is acknowledged
            self._progress_from = self._acked
            self._watch_s = WATCH_S
            self._watch_timer = self._loop.call_later(WATCH_S, self._watch)

    def _watch(self) -> None:
        """While something is under way: tells the owner whether the other side still takes it."""
        self._watch_timer = None
        if self._transport is None:
            return
        held = self._transport.get_write_buffer_size() + self.unacknowledged_below()
        now = self._loop.time()
        has_progress = self.bytes_out - held > self._acked
        if held:
            self._watch_s = WATCH_S if has_progress else min(2 * self._watch_s, WATCH_MAX_S)
            self._watch_timer = self._loop.call_later(self._watch_s, self._watch)
        if has_progress:
            self._acked = self.bytes_out - held
            self._acked_at = now
            if self._acked - self._progress_from >= PROGRESS_SIZE:
                self._progress_from = self._acked
                self._owner.link_progress(self)
        elif held and self.is_resending():
            self._owner.link_stalled(self, now - self._acked_at)

    def _prove(self) -> None:
        self._is_proven = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _make_space(self, needed: int) -> None:
        """Moves the unparsed tail to the front when what is needed would not fit behind it."""
        if self._start + needed <= len(self._buffer) and self._end < len(self._buffer):
            return
        size = len(self._buffer)
        self._move(BUFFER_SIZE if needed > size or self._end - self._start == size else size)

    def _move(self, size: int) -> None:
        """A fresh start at offset 0, in a larger buffer if `size` says so."""
        tail = self._view[self._start : self._end]
        if size == len(self._buffer):
            self._view[: len(tail)] = tail  # where the two overlap, too
        else:
            # A new object: the event loop still holds the old one while buffer_updated runs.
            buffer = bytearray(size)
            buffer[: len(tail)] = tail
            self._buffer = buffer
            self._view = memoryview(buffer)
        self._end -= self._start
        self._start = 0

    def _become_stranger(self) -> None:
        self._is_stranger = True
        self._start = self._end = 0
        if not self._accepted:
            self.close()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(STRANGER_S, self.close)
