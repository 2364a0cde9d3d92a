"""The sink's side of the sequence: what came, what is missing, and when to tell the source.

A report says everything below which number has come and, above it, which runs are missing and which came;
what is missing is wanted. Over a link that keeps order and loses nothing, reports are seldom: after many
messages or bytes, or a tenth of a second. Over one that loses messages they come a few times in a round
trip while data flows, and soon after a gap showed, but not at once: a message that was only overtaken
needs no report. Each report tells all that is known, so a lost one costs nothing but time.
"""

from __future__ import annotations

from uservpn.errors import PeerFault
from uservpn.kit.ranges import RangeSet
from uservpn.tunnel import limits
from uservpn.wire import frames
from uservpn.wire.constants import NUMBER_MAX


class Inbox:
    """What has come of the peer's sequence.

    At most GAPS_MAX gaps are remembered and SPAN_MAX sequences above the lowest missing one: a message
    beyond either is dropped, and asked for again.
    """

    __slots__ = (
        "_above",
        "_below",
        "_duplicates",
        "_newest_at",
        "_report_at",
        "_size",
        "_top",
        "_unreported",
        "_wants_all",
        "ack_size",
        "is_due",
        "received",
        "rtt_s",
    )

    def __init__(self) -> None:
        self.rtt_s = 0.05
        """The owner's estimate of the round trip."""
        self.ack_size = limits.ACK_SIZE
        """A report goes out at the latest after so many bytes."""
        self.is_due = False
        self.received = 0
        """Bytes of messages that came for the first time."""
        self._below = 0
        self._above = RangeSet()
        self._top = 0
        self._unreported = 0
        self._size = 0
        self._duplicates = 0
        self._newest_at = 0.0
        self._report_at: float | None = None
        self._wants_all = False

    # --- outside events --------------------------------------------------------------------------

    def admit(self, seq: int, size: int, now: float, is_lossy: bool) -> bool:
        """A message came; False: it is not to be acted on (seen before, or too far ahead).

        Raises:
            PeerFault: no such sequence can be.
        """
        if seq == self._below:
            self._below = seq + 1
            if self._above.ranges:
                self._below = self._above.pop_prefix(seq + 1)
        elif not self._admit_out_of_order(seq, now, is_lossy):
            return False
        if seq >= self._top:
            self._top = seq + 1
        self._newest_at = now
        self.came(1, size, now, is_lossy)
        return True

    def admit_run(self, seq: int, count: int, size: int, now: float, is_lossy: bool) -> bool:
        """So many messages from `seq` on came in order, none of them seen before; False: `admit` each."""
        if seq != self._top:
            if seq < self._top or seq - self._below > frames.SPAN_MAX:
                return False
            if len(self._above.ranges) >= limits.GAPS_MAX:
                return False
        if self._below == seq:
            self._below = seq + count
        else:
            self._above.add(seq, seq + count)
            if seq > self._top and is_lossy:
                self._report_soon(now)
        self._top = seq + count
        self._newest_at = now
        self.came(count, size, now, is_lossy)
        return True

    def came(self, count: int, size: int, now: float, is_lossy: bool) -> None:
        """New messages and their bytes: a report is due after so many, or after a while."""
        self._unreported += count
        self._size += size
        self.received += size
        if is_lossy:
            if self._unreported >= limits.ACK_COUNT_LOSSY:
                self.is_due = True
            elif self._report_at is None and not self.is_due:
                self._report_at = now + self.lossy_delay_s()
        elif self._unreported >= limits.ACK_COUNT or self._size >= self.ack_size:
            self.is_due = True
        elif self._report_at is None and not self.is_due:
            is_far = self.rtt_s >= limits.FAR_RTT_S
            self._report_at = now + (self.lossy_delay_s() if is_far else limits.ACK_DELAY_S)

    def link_up(self) -> None:
        """A link came up, or went: asks for all that those that are gone may have lost."""
        if self._top:
            self.is_due = True
            self._wants_all = True

    # --- time ------------------------------------------------------------------------------------

    def lossy_delay_s(self) -> float:
        """How long a report on a lossy link waits for more to tell."""
        return min(max(self.rtt_s / 8, limits.ACK_DELAY_MIN_S), limits.ACK_DELAY_LOSSY_S)

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self._report_at is not None and now >= self._report_at:
            self.is_due = True
            self._report_at = None

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called, monotonic seconds."""
        return self._report_at

    # --- takes -----------------------------------------------------------------------------------

    def take_report(self, size_max: int, now: float) -> list[bytes]:
        """HAVE and WANT, as one or more messages' frames, each at most `size_max` bytes."""
        self.is_due = False
        self._report_at = None
        self._unreported = self._size = 0
        held_s = max(0.0, now - self._newest_at)  # due work runs a little ahead of the clock
        want = frames.WANT_FRAME.pack(
            frames.WANT, frames.OPEN_ENDED if self._wants_all else self._top
        )
        self._wants_all = False
        runs = frames.runs_of(self._below, self._above.ranges) if self._above else []
        most = max(1, (size_max - frames.HAVE_HEAD.size - len(want)) // frames.RUN.size)
        most = min(most, frames.RUNS_MAX)
        parts: list[bytes] = []
        start = self._below
        while True:
            some = runs[:most]
            have = frames.have_frame(self._below, start, some, held_s, self._duplicates)
            parts.append(have + want)
            runs = runs[most:]
            if not runs or len(parts) >= limits.REPORT_PARTS_MAX:
                return parts
            start += sum(map(sum, some))

    # --- inside ----------------------------------------------------------------------------------

    def _admit_out_of_order(self, seq: int, now: float, is_lossy: bool) -> bool:
        if seq > NUMBER_MAX:
            raise PeerFault("a sequence that cannot be")
        if seq < self._below or seq in self._above:
            self._duplicates += 1  # the source does not know yet
            if is_lossy:
                self._report_soon(now)
            else:
                self.is_due = True
            return False
        if seq - self._below > frames.SPAN_MAX or len(self._above.ranges) >= limits.GAPS_MAX:
            return False  # weather: it will be asked for again
        self._above.add(seq, seq + 1)
        if seq > self._top and is_lossy:  # a new gap: told soon, if it was not just overtaken
            self._report_soon(now)
        return True

    def _report_soon(self, now: float) -> None:
        soon = now + min(self.lossy_delay_s(), limits.GAP_DELAY_S)
        if self._report_at is None or soon < self._report_at:
            self._report_at = soon
