"""What the peer's messages say: frames are read one by one, and each part of the tunnel told its own.

One loop, without a table of functions, because it is on the bulk path.
"""

from __future__ import annotations

from typing import Final

from uservpn.errors import Fault, PeerFault
from uservpn.kit.series import alike, unpacked
from uservpn.kit.slots import Slots
from uservpn.tunnel import limits
from uservpn.tunnel.credit import Credit
from uservpn.tunnel.delivery import Delivery
from uservpn.tunnel.events import Offered, Opened, Reset
from uservpn.tunnel.inbox import Inbox
from uservpn.tunnel.lanes import HEAD_SIZE, Lanes
from uservpn.tunnel.outbox import Outbox
from uservpn.tunnel.stream import Stream
from uservpn.tunnel.streams import StreamTable
from uservpn.wire import frames
from uservpn.wire.constants import NUMBER_MAX

_FAULTS: Final = {int(fault): fault for fault in Fault}
"""By number, one of a newer peer left out; calling an enum costs microseconds for each connection."""


class Reader:
    """Reads the frames of genuine messages. What breaks the protocol raises PeerFault."""

    def __init__(
        self, table: StreamTable, lanes: Lanes, credit: Credit, outbox: Outbox, inbox: Inbox
    ) -> None:
        self._table = table
        self._lanes = lanes
        self._outbox = outbox
        self._inbox = inbox
        self._delivery = Delivery(table, credit)

    def read(self, payload: bytes, position: int, now: float) -> None:
        """The frames of one message, from `position` on.

        Raises:
            PeerFault, struct.error, IndexError, UnicodeDecodeError: the peer broke the protocol.
        """
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
                stream = self._table.by_id.get(stream_id)
                if stream is None:
                    stream = self._table.early(stream_id)
                if stream is not None:
                    self._delivery.deliver(stream, offset, view[position : position + size])
                position += size
            elif kind == frames.CREDIT:
                _, stream_id, limit = frames.CREDIT_FRAME.unpack_from(payload, position)
                position += 13
                stream = self._table.by_id.get(stream_id)
                if stream is not None and limit > stream.send_limit:
                    self._credit(stream, limit)
            elif kind == frames.OPEN:
                position = self._on_open(payload, position)
            elif kind == frames.OPENED:
                position = self._on_opened(payload, position)
            elif kind == frames.FIN:
                _, stream_id, final = frames.FIN_FRAME.unpack_from(payload, position)
                position += 13
                stream = self._table.by_id.get(stream_id) or self._table.early(stream_id)
                if stream is not None:
                    if final < stream.recv_end or (stream.final >= 0 and final != stream.final):
                        raise PeerFault("another end than before")
                    stream.final = final
                    self._delivery.maybe_finished(stream)
            elif kind == frames.RESET:
                _, stream_id, code = frames.RESET_FRAME.unpack_from(payload, position)
                position += 6
                stream = self._table.by_id.get(stream_id) or self._table.early(stream_id)
                if stream is None:
                    continue
                self._table.events.append(Reset(stream, _FAULTS.get(code, Fault.FAILED)))
                self._table.drop(stream)
            elif kind == frames.HAVE:
                _, below, start, held, again, count = frames.HAVE_HEAD.unpack_from(
                    payload, position
                )
                position += frames.HAVE_HEAD.size
                self._outbox.confirm(below, frames.ranges_of(payload, position, start, count), now)
                position += frames.RUN.size * count
                report = held * frames.HELD_UNIT_S, again
            elif kind == frames.WANT:
                self._outbox.want(frames.WANT_FRAME.unpack_from(payload, position)[1])
                position += frames.WANT_FRAME.size
            elif kind == frames.PAD:
                break
            else:
                raise PeerFault(f"unknown frame type {kind}")
        if report is not None:
            self._outbox.report_over(*report, now)

    def has_room(self, payload: bytes, position: int) -> bool:
        """May the message be read? Not while it would bring more that overtook its OPEN than may be kept.

        An OPEN depends on nothing, and whatever needs it left later: so an honest peer's messages all can be
        read in the end.

        Raises:
            struct.error, IndexError, PeerFault: the peer broke the protocol.
        """
        opened: set[int] = set()
        early: set[int] = set()
        held = 0
        for kind, stream_id, size in frames.heads(payload, position):
            if kind == frames.OPEN:
                opened.add(stream_id)
            elif stream_id not in opened and self._table.is_early(stream_id):
                early.add(stream_id)
                if kind == frames.DATA:
                    held += size + limits.HELD_COST
        return self._table.has_early_room(early, held)

    def read_pieces(
        self, burst: Slots, size: int, index: int, end: int, now: float, is_lossy: bool
    ) -> int:
        """Delivers neighbouring pieces of a stream that messages in `burst`, all of `size` bytes, hold.

        They lie from place `index` on, before `end`; how many follow each other and hold nothing else. The
        caller reads the next one.
        """
        if size <= HEAD_SIZE + limits.PAD_MAX:
            return 0
        at, view = index * size, burst.view
        seq, kind, stream_id, start, length = frames.SEQ_DATA_HEAD.unpack_from(view, at)
        if kind != frames.DATA or HEAD_SIZE + length != size:
            return 0
        if seq > NUMBER_MAX or start > NUMBER_MAX:  # what counts up from there must fit
            return 0
        stream = self._table.by_id.get(stream_id)
        if stream is None or not stream.is_known:
            return 0
        heads = unpacked(f"{HEAD_SIZE}s{length}x", end - index, view, at)
        count = alike(heads, frames.data_heads(seq, stream_id, start, length, end - index))
        if not self._inbox.admit_run(seq, count, count * size, now, is_lossy):
            return 0
        pieces = burst.cut(size, index, index + count, HEAD_SIZE)
        self._delivery.deliver(stream, start, b"".join(pieces))
        return count

    # --- inside ----------------------------------------------------------------------------------

    def _on_open(self, payload: bytes, position: int) -> int:
        size: int
        _, stream_id, window, port, size = frames.OPEN_HEAD.unpack_from(payload, position)
        position += 12
        host = payload[position : position + size].decode()
        if len(host) == 0 or position + size > len(payload):
            raise PeerFault("OPEN without a host")
        stream = self._table.offered(stream_id)
        if stream is None:
            return position + size
        stream.send_limit = window
        self._table.widen(stream, limits.WINDOW_START)
        self._table.events.append(Offered(stream, host, port))
        self._delivery.release(stream)
        self._delivery.maybe_finished(stream)
        return position + size

    def _on_opened(self, payload: bytes, position: int) -> int:
        size: int
        _, stream_id, code, limit, size = frames.OPENED_HEAD.unpack_from(payload, position)
        position += 11
        if position + size > len(payload):
            raise PeerFault("OPENED is longer than its message")
        stream = self._table.by_id.get(stream_id)
        if stream is not None and stream.is_mine and not stream.is_answered:
            stream.is_answered = True
            fault = _FAULTS.get(code, Fault.FAILED)
            self._table.events.append(Opened(stream, fault, payload[position : position + size]))
            if fault:
                self._table.drop(stream)
            elif limit > stream.send_limit:
                self._credit(stream, limit)
        return position + size

    def _credit(self, stream: Stream, limit: int) -> None:
        stream.send_limit = limit
        if stream.queue and not stream.in_lane:
            self._lanes.enlist(stream)
