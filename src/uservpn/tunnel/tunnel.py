"""The tunnel: reliable, multiplexed streams between two nodes, over messages that may be lost.

Each direction is a sequence of messages. The source keeps every sequenced message in one bounded cache
(tunnel/outbox.py) until the sink says that it has it; the sink (tunnel/inbox.py) says what it has (HAVE),
asks for what is missing (WANT) and grants credit per stream (CREDIT). Nothing is resent on a guess: a source
that hears nothing sends an empty message, which draws a report. Every DATA frame carries its stream and
offset, so bytes are delivered as soon as *their* stream is complete, whatever else is missing.

A tunnel uses several paths at once (tunnel/path.py); its owner says which one the next messages take.

A tunnel is bound to both nodes' boots; a node that restarted gets a new one, and every stream of the old
one ends. Sans-I/O: time comes in as `now` (monotonic seconds), messages and events are taken as lists.

This is the door: which streams there are is in tunnel/streams.py, what waits to be sent in lanes.py, what the
peer's frames say in reader.py; bytes are put in order in delivery.py, credit is granted in credit.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Final

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.kit.slots import Slots
from uservpn.tunnel import limits
from uservpn.tunnel.credit import Credit
from uservpn.tunnel.events import Event, Reset
from uservpn.tunnel.inbox import Inbox
from uservpn.tunnel.lanes import SEQ_SIZE, Lanes
from uservpn.tunnel.outbox import Outbox
from uservpn.tunnel.path import Path
from uservpn.tunnel.reader import Reader
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.tunnel.streams import StreamTable
from uservpn.types import Buffer
from uservpn.wire import frames
from uservpn.wire.constants import Kind

ALL_LANES: Final = 0
BULK_ONLY: Final = 1
PROBE_ONLY: Final = 2
REPORT_ONLY: Final = 3
FIRST_ONLY: Final = 4
ASK_ONLY: Final = 5
"""What `take_messages` takes."""


class Tunnel:
    """One end of the tunnel between `me` and `peer`.

    Limits (tunnel/limits.py): the cache and the queues push back, windows bound what a peer may send; a
    peer that sends more raises PeerFault out of `receive`, and the tunnel must then be aborted.
    """

    def __init__(self, me: int, peer: int, random_below: Callable[[int], int]) -> None:
        self.peer = peer
        self.outbox = Outbox()
        self.inbox = Inbox()
        self.paced: Path | None = None
        """Set by the owner: the path whose pacer holds back what waits."""
        self._random_below = random_below
        self._table = StreamTable(me, peer)
        self.streams = self._table.by_id
        self._lanes = Lanes(self._table, self.outbox, random_below)
        credit = Credit(self._table, self._lanes, self.inbox)
        self._reader = Reader(self._table, self._lanes, credit, self.outbox, self.inbox)
        self._ask_due = False
        self.write: Final = self._lanes.write
        """Queues a stream's chunk, see there; bound here because it is called for each chunk."""
        self.consumed: Final = credit.consumed
        """Bytes have gone on: gives credit back, see there."""

    @property
    def opened_count(self) -> int:
        """Streams the peer has opened."""
        return self._table.opened_count

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
        stream = self._table.open(owner)
        self._lanes.control.append(frames.open_frame(stream.id, stream.recv_window, name, port))
        return stream

    def accept(self, stream: Stream, detail: bytes = b"") -> None:
        """The offered connection stands."""
        if not stream.is_over:
            stream.recv_limit = max(stream.recv_limit, limits.WINDOW_START)
            self._lanes.control.append(
                frames.opened_frame(stream.id, Fault.NONE, stream.recv_limit, detail)
            )

    def refuse(self, stream: Stream, fault: Fault, detail: bytes = b"") -> None:
        """The offered connection could not be made."""
        if not stream.is_over:
            self._lanes.control.append(frames.opened_frame(stream.id, fault, 0, detail))
            self._table.drop(stream)

    def finish(self, stream: Stream) -> None:
        """No more will be written; what is queued still goes."""
        if not stream.is_over and not stream.send_fin:
            stream.send_fin = True
            if not stream.queue:
                self._lanes.send_fin(stream)

    def reset(self, stream: Stream, fault: Fault) -> None:
        """Ends the stream at once, ahead of all data; what was queued is dropped."""
        if not stream.is_over:
            self._lanes.control.append(frames.RESET_FRAME.pack(frames.RESET, stream.id, fault))
            self._table.drop(stream)

    def fail(self, stream: Stream, fault: Fault) -> None:
        """As `reset`, and our own side is told too (`Reset` follows)."""
        self._table.events.append(Reset(stream, fault))
        self.reset(stream, fault)

    def fail_all(self, fault: Fault) -> None:
        """Every stream ends, on both sides; of what was not confirmed only the sequence is kept."""
        for stream in list(self.streams.values()):
            self.fail(stream, fault)
        self.outbox.drop_payloads()

    def take_over(self, old: Tunnel, streams: Sequence[Stream]) -> None:
        """Opens streams of ours again that the peer never saw in tunnel `old`, with what was sent on them.

        `old` is to be aborted next.
        """
        if not streams:
            return
        chosen = {stream.id for stream in streams}
        for payload in old.outbox.unconfirmed():
            for frame in frames.split(bytes(payload), SEQ_SIZE, len(payload)):  # cuts nothing
                if frames.stream_of(frame) in chosen:
                    pieces = frames.split(bytes(frame), 0, limits.FRAME_MIN)
                    self._lanes.control += map(bytes, pieces)
        self._lanes.control += [
            frame for frame in old._lanes.control if frames.stream_of(frame) in chosen
        ]
        for stream in streams:
            del old.streams[stream.id]
            self._table.adopt(stream)
            if stream.queue:
                self._lanes.enlist(stream)

    def abort(self, fault: Fault) -> None:
        """Every stream ends here and now; nothing is sent. The tunnel is not used again."""
        for stream in list(self.streams.values()):
            self._table.events.append(Reset(stream, fault))
            self._table.drop(stream)
        self._lanes.control.clear()
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
        """A path fell silent: what the sink is known to miss is resent over another one."""
        self.outbox.leave(path, now)
        self._ask_due = self._ask_due or self.outbox.size > 0

    def receive(self, kind: int, payload: bytes, now: float, is_lossy: bool = False) -> None:
        """A genuine message of the peer; `is_lossy` tells what kind of path it came over.

        Raises:
            PeerFault: the peer broke the protocol.
        """
        position = 0
        size = len(payload)
        if len(self._lanes.control) > limits.CONTROL_MAX:
            raise PeerFault("asks for more answers than it reads")
        if kind == Kind.DATA:
            position = SEQ_SIZE
            if size < position:
                raise PeerFault("message without a sequence")
        try:
            if size > self._table.unread_max and not self._reader.has_room(payload, position):
                return  # as if it had got lost
            if kind == Kind.DATA:
                seq = frames.SEQ.unpack_from(payload)[0]
                if not self.inbox.admit(seq, size, now, is_lossy):
                    return
            self._reader.read(payload, position, now)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise PeerFault(f"malformed frame: {error}") from None

    def receive_burst(
        self, burst: Slots, size: int, count: int, now: float, is_lossy: bool
    ) -> None:
        """As `receive` for DATA messages of `size` bytes that lie side by side, at less cost for each.

        A stream's neighbouring pieces become one event. Nothing is kept of `burst`.

        Raises:
            PeerFault: the peer broke the protocol.
        """
        index = 0
        while index < count:
            taken = self._reader.read_pieces(burst, size, index, count, now, is_lossy)
            if not taken:
                self.receive(
                    Kind.DATA, bytes(burst.view[index * size : (index + 1) * size]), now, is_lossy
                )
                taken = 1
            index += taken

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
        if self.paced is not None and self._lanes.has_data():
            other = self.paced.pace_deadline()
            if due is None or (other is not None and other < due):
                due = other
        return due

    # --- takes -----------------------------------------------------------------------------------

    def has_outgoing(self) -> bool:
        """Would `take_messages` with room return something?"""
        return bool(
            self._lanes.control
            or self.inbox.is_due
            or self._ask_due
            or self._lanes.has_data()
            or any(path.is_probe_due for path in self.outbox.paths)
        )

    def has_events(self) -> bool:
        """Would `take_events` return something?"""
        return bool(self._table.events)

    def take_events(self) -> list[Event]:
        """What happened, in order."""
        events = self._table.events
        if events:
            self._table.events = []
        return events

    def has_bulk(self) -> bool:
        """Does a stream wait that has sent much already?"""
        return bool(self._lanes.bulk)

    def take_messages(
        self, room: int, size_max: int, path: Path, now: float, lanes: int = ALL_LANES
    ) -> list[tuple[int, Buffer]]:
        """(kind, payload) of what should leave now over `path`.

        Control goes whatever the room; resends and data while `room` bytes last, those of new and interactive
        streams somewhat longer on a lossy path. No payload is longer than `size_max` bytes. `lanes` narrows
        it down: BULK_ONLY for a path that gets a share, PROBE_ONLY for one that is only asked, REPORT_ONLY
        for the one that the peer's messages come over, FIRST_ONLY for all but bulk, ASK_ONLY for one over
        which the peer is to say what came while another one is silent.
        """
        outbox = self.outbox
        out: list[tuple[int, Buffer]] = []
        new: list[Buffer] = []
        path.is_awaited = bool(self.streams)
        if self.inbox.is_due and lanes in (ALL_LANES, REPORT_ONLY, FIRST_ONLY):
            self._take_report(out, size_max, now)
        is_first = lanes in (ALL_LANES, FIRST_ONLY)
        copies: list[Buffer] = []
        if is_first and (self._lanes.fresh or self._lanes.control or outbox.resend):
            room = self._take_first(out, new, room, size_max, path, now)
            if path.is_copied:
                copies = [payload for payload in new if len(payload) <= limits.COPY_SIZE]
        if is_first and outbox.resend:
            room = 0  # neither room nor budget is left for what is missing: bulk waits
        if lanes in (ALL_LANES, BULK_ONLY):
            while self._lanes.bulk and room > 0 and outbox.size < limits.CACHE_MAX:
                room -= self._lanes.take_chunk(self._lanes.bulk, new, room, size_max)
        if self._lanes.control and is_first:  # ends of streams whose last chunk was just taken
            parts: list[Buffer] = []
            self._lanes.take_control(new, parts, SEQ_SIZE, size_max)
            new.append(self._lanes.message(parts, len(new)))
        if lanes == ASK_ONLY:
            new.append(self._lanes.message([b""], 0))
        elif path.is_probe_due or (self._ask_due and is_first):
            if not new:  # nothing else draws a report over this path
                new.append(self._lanes.message([b""], 0))
            if path.is_probe_due:  # else it is asked for another one's sake: no sign of silence
                path.probed(now)
            self._ask_due = self._ask_due and not is_first
        if new:
            outbox.keep(new, sum(map(len, new)), path, now)
            out += zip(repeat(Kind.DATA), new)
        if copies:  # behind all that leaves now: losses come in rows
            outbox.copied(copies, path, now)
            out += zip(repeat(Kind.DATA), copies)
        path.note_end(is_first and self._lanes.has_data(), now)
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
        size = SEQ_SIZE
        if self._lanes.control:
            size = self._lanes.take_control(new, parts, size, size_max)
        if self._lanes.fresh:
            room, size = self._lanes.take_fresh(new, parts, size, room, size_max, path.is_held)
        if self._lanes.control:  # ends of streams whose last chunk has just been taken
            size = self._lanes.take_control(new, parts, size, size_max)
        if parts:
            new.append(self._lanes.message(parts, len(new)))
        return room
