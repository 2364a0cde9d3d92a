"""The source's side of the sequence: every message until the sink has it, and which are to be resent.

Messages are kept in *slabs*, one for each take, so that confirming a whole burst is one step however many
datagrams it was. Which path carries a message is known by its flight (tunnel/path.py): the one of its slab,
or that of its last resend. What a report shows missing is resent only once its path says that it was
overtaken; so a message that is still on a slower path is not sent twice.

A message that is too large for the path it is resent on is cut anew: its frames leave in messages of their
own, with new sequences, and one without frames closes its old number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Final

from uservpn.errors import PeerFault
from uservpn.kit.ranges import RangeSet
from uservpn.tunnel.path import Flight, Path
from uservpn.types import Buffer
from uservpn.wire import frames

SEQ_SIZE = frames.SEQ.size
_SLABS_KEPT = 64
COPY_ROUNDS: Final = 2
COPY_TIME_S: Final = 0.05
"""A copy shows as a duplicate within so many round trips, and what the sink waits with its report."""


class Slab:
    """The messages of one take, from sequence `start` on; None: confirmed."""

    __slots__ = ("flight", "left", "payloads", "size", "start")

    def __init__(self, start: int, payloads: list[Buffer | None], size: int, flight: Flight):
        self.start = start
        self.payloads = payloads
        self.left = len(payloads)
        self.size = size
        """Bytes of those not confirmed."""
        self.flight = flight


class Outbox:
    """What was sent and is not confirmed. Bounded by its owner, which asks `size` first."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes kept."""
        self.next_seq = 0
        self.paths: list[Path] = []
        self.resent_count = 0
        self.spurious_count = 0
        self.recut_count = 0
        self.resend: deque[int] = deque()
        """Sequences to send again, in order; some may have come meanwhile."""
        self._slabs: list[Slab] = []
        self._starts: list[int] = []
        self._first = 0
        """Slabs before this one are empty."""
        self._base = 0
        self._confirmed = RangeSet()  # above _base
        self._moved: dict[int, Flight] = {}
        self._wanted = 0
        self._duplicates = 0
        self._copies: deque[tuple[float, int, Path]] = deque()
        """Copies sent before any loss: until when they may show as duplicates, size, path."""

    # --- sending ---------------------------------------------------------------------------------

    def keep(self, payloads: list[Buffer], size: int, path: Path, now: float) -> None:
        """New messages leave, numbered from `next_seq` on; `size` is their sum."""
        start = self.next_seq
        flight = Flight(path, now, start, None)
        kept: list[Buffer | None] = [*payloads]
        slab = Slab(start, kept, size, flight)
        self._slabs.append(slab)
        self._starts.append(start)
        self.next_seq = start + slab.left
        self.size += size
        path.sends(flight, size, slab.left, now)

    def take_resends(self, room: int, size_max: int, path: Path, now: float) -> list[Buffer]:
        """Messages to send again over `path`, while `room` and its budget last; what is cut anew counts."""
        seqs: list[int] = []
        out: list[Buffer] = []
        size = cut = 0
        resend = self.resend
        room = min(room, path.resend_room(now))
        while resend and size + cut < room:
            seq = resend.popleft()
            slab, index = self._find(seq)
            payload = slab.payloads[index] if slab is not None else None
            if slab is None or payload is None:
                continue  # it has come meanwhile
            if len(payload) > size_max:
                slab.payloads[index] = closed = frames.SEQ.pack(seq)
                slab.size -= len(payload) - SEQ_SIZE
                self.size -= len(payload) - SEQ_SIZE
                cut += self._recut(bytes(payload), size_max, path, out, now)
                payload = closed
            seqs.append(seq)
            size += len(payload)
            out.append(payload)
        if seqs:
            flight = Flight(path, now, seqs[0], seqs)
            for seq in seqs:
                self._moved[seq] = flight
            path.sends(flight, size, len(seqs), now)
            path.resends(len(seqs), size + cut, now)
            self.resent_count += len(seqs)
        return out

    def copied(self, payloads: list[Buffer], path: Path, now: float) -> None:
        """These new messages leave a second time, so that the loss of one costs nobody a round trip."""
        path.copies(len(payloads), sum(map(len, payloads)))
        until = now + COPY_ROUNDS * (path.rtt_s or path.rtt_min_s) + COPY_TIME_S
        self._copies.extend((until, len(payload), path) for payload in payloads)

    def drop_payloads(self) -> None:
        """Of what is kept only the sequences stay: nobody waits for the bytes."""
        self.size = 0
        for path in self.paths:
            for flight in path.flights:
                path.inflight -= flight.size
                flight.size = 0
        for slab in self._slabs[self._first :]:
            slab.size = 0
            for index, payload in enumerate(slab.payloads):
                if payload is not None:
                    seq = slab.start + index
                    slab.payloads[index] = frames.SEQ.pack(seq)
                    slab.size += SEQ_SIZE
                    flight = self._moved.get(seq, slab.flight)
                    if not flight.is_lost:
                        flight.size += SEQ_SIZE
                        flight.path.inflight += SEQ_SIZE
            self.size += slab.size

    def unconfirmed(self) -> Iterator[Buffer]:
        """What the sink has not confirmed, oldest first."""
        for slab in self._slabs[self._first :]:
            yield from (payload for payload in slab.payloads if payload is not None)

    def clear(self) -> None:
        """Forgets everything: the tunnel is over."""
        self._slabs.clear()
        self._starts.clear()
        self._moved.clear()
        self.resend.clear()
        self.size = self._first = 0

    # --- what the sink tells ---------------------------------------------------------------------

    def confirm(self, below: int, ranges: list[tuple[int, int]], now: float) -> None:
        """The sink has everything below `below`, and these.

        Raises:
            PeerFault: something was never sent.
        """
        if below > self.next_seq or (ranges and ranges[-1][1] > self.next_seq):
            raise PeerFault("confirms what was never sent")
        if below > self._base:
            if self._confirmed:
                for start, end in self._confirmed.gaps(self._base, below):
                    self._drop(start, end, now)
            else:
                self._drop(self._base, below, now)
            self._base = self._confirmed.pop_prefix(below)
        if ranges:
            low = self._base
            if ranges[0][0] < low:
                ranges = [(max(a, low), b) for a, b in ranges if b > low]
            for start, end in self._confirmed.merge(ranges):
                self._drop(start, end, now)
            if self._confirmed.ranges and self._confirmed.ranges[0][0] <= low:
                self._base = self._confirmed.pop_prefix(low)

    def want(self, bound: int) -> None:
        """The sink wants what it misses below `bound`."""
        self._wanted = max(self._wanted, min(bound, self.next_seq))

    def report_over(self, held_s: float, duplicates: int, now: float) -> None:
        """A report was read to its end: what it proves lost is queued to be sent again."""
        again = (duplicates - self._duplicates) & 0xFFFFFFFF
        if again >= 1 << 31:
            again = 0  # an old report
        if again or self._copies:
            self._duplicates += again
            again = self._without_copies(again, now)
        if again:
            self.spurious_count = min(self.spurious_count + again, self.resent_count)
            for path in self.paths:
                path.spurious(again, now)
        for path in self.paths:
            self._queue_lost(path, now)
            path.report_over(held_s, now)
            self._queue_lost(path, now)
        if any(path.is_gone and not path.flights for path in self.paths):
            self.paths = [path for path in self.paths if path.flights or not path.is_gone]
        self._forget()

    def leave(self, path: Path, now: float) -> None:
        """Nothing more is expected of this path; what the sink is known to miss is sent again at once."""
        path.leave(now)
        self._queue_lost(path, now)
        self.resend = deque(sorted(self.resend))  # what was resent on it in vain is the oldest

    def on_deadline(self, now: float) -> None:
        """Overtaken messages whose time is over; harmless when early."""
        for path in self.paths:
            path.on_deadline(now)
            if path.loss_at is not None and now >= path.loss_at:
                self._queue_lost(path, now)

    # --- inside ----------------------------------------------------------------------------------

    def _without_copies(self, again: int, now: float) -> int:
        """Of so many duplicates, those that no copy explains."""
        copies = self._copies
        while copies and copies[0][0] < now:
            _, size, path = copies.popleft()
            path.copy_over(size, False)
        while copies and again:
            _, size, path = copies.popleft()
            path.copy_over(size, True)
            again -= 1
        return again

    def _find(self, seq: int) -> tuple[Slab | None, int]:
        index = bisect_right(self._starts, seq) - 1
        if index < self._first:
            return None, 0
        slab = self._slabs[index]
        return slab, seq - slab.start

    def _drop(self, start: int, end: int, now: float) -> None:
        """The sink has these, and nobody knew."""
        index = max(bisect_right(self._starts, start) - 1, self._first)
        slabs = self._slabs
        while start < end:
            slab = slabs[index]
            index += 1
            low = start - slab.start
            high = min(end - slab.start, len(slab.payloads))
            start = slab.start + high
            if self._moved:
                self._drop_some(slab, low, high, now)
            elif slab.left == high - low:
                self.size -= slab.size
                slab.flight.path.confirmed(slab.flight, slab.size, now)
                slab.payloads = [None] * len(slab.payloads)
                slab.left = slab.size = 0
            else:
                size = 0
                for payload in slab.payloads[low:high]:
                    assert payload is not None
                    size += len(payload)
                slab.payloads[low:high] = [None] * (high - low)
                slab.left -= high - low
                slab.size -= size
                self.size -= size
                slab.flight.path.confirmed(slab.flight, size, now)

    def _drop_some(self, slab: Slab, low: int, high: int, now: float) -> None:
        """As `_drop`, where some may have been resent."""
        moved = self._moved
        payloads = slab.payloads
        total = own = 0
        for at in range(low, high):
            payload = payloads[at]
            assert payload is not None
            payloads[at] = None
            size = len(payload)
            total += size
            flight = moved.pop(slab.start + at, None)
            if flight is None:
                own += size
            else:
                flight.path.confirmed(flight, size, now)
        slab.left -= high - low
        slab.size -= total
        self.size -= total
        if own:
            slab.flight.path.confirmed(slab.flight, own, now)

    def _forget(self) -> None:
        """Slabs from which everything has come, at the front."""
        slabs = self._slabs
        first = self._first
        while first < len(slabs) and slabs[first].left == 0:
            first += 1
        if first > _SLABS_KEPT:
            del slabs[:first], self._starts[:first]
            first = 0
        self._first = first

    def _queue_lost(self, path: Path, now: float) -> None:
        for flight in path.take_lost(self._wanted, now):
            before = len(self.resend)
            if flight.seqs is None:
                slab, _ = self._find(flight.start)
                if slab is not None:
                    moved, start = self._moved, slab.start
                    self.resend.extend(
                        start + at
                        for at, payload in enumerate(slab.payloads)
                        if payload is not None and start + at not in moved
                    )
            else:
                self.resend.extend(seq for seq in flight.seqs if self._moved.get(seq) is flight)
            path.lost_count += len(self.resend) - before

    def _recut(
        self, payload: bytes, size_max: int, path: Path, out: list[Buffer], now: float
    ) -> int:
        """The frames of a message that is too large, in new ones of at most `size_max` bytes; their sum."""
        self.recut_count += 1
        messages: list[Buffer] = []
        parts: list[Buffer] = []
        size = SEQ_SIZE

        def close() -> None:
            nonlocal parts, size
            if parts:
                seq = frames.SEQ.pack(self.next_seq + len(messages))
                messages.append(b"".join((seq, *parts)))
            parts, size = [], SEQ_SIZE

        for frame in frames.split(payload, SEQ_SIZE, size_max - SEQ_SIZE):
            if size + len(frame) > size_max:
                close()
            parts.append(frame)
            size += len(frame)
        close()
        total = sum(map(len, messages))
        if messages:
            self.keep(messages, total, path, now)
            out += messages
        return total
