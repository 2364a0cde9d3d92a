"""One path of a tunnel: a link, or a way over relays, with what was sent over it and what became of that.

Messages leave in *flights*: all that one take put on one path, with one time. A flight remembers how much
the path had delivered when it left, so that its confirmation gives a delivery rate and a round trip
(Cheng et al., draft-cheng-iccrg-delivery-rate-estimation), and what else the congestion controller asks for.

What is missing at the sink is resent only if its last transmission was *overtaken*: a flight that left later
on the same path was confirmed, and the rest had a round trip and a reordering window's time (RACK, RFC 8985;
other paths prove nothing; tunnel/resending.py). On a path that ended, or was left because it fell silent, all
that the sink misses counts as overtaken. A lost tail is found by an empty message sent behind it, soon where
messages get lost, else after one and a half round trips.

The pacer has no timer for each message: what may leave is what the rate allowed since the last burst,
at most BURST_S ahead, so bursts are as coarse as the driver's timer.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from uservpn.tunnel.congestion import Controller, Sample
from uservpn.tunnel.limits import (
    ACK_DELAY_LOSSY_S,
    ASK_DELAY_MAX_S,
    ASK_DELAY_S,
    COPY_LOSS,
    FAR_RTT_S,
)
from uservpn.tunnel.resending import ReorderWindow, ResendBudget
from uservpn.types import LinkId

BURST_S: Final = 0.002
"""What leaves at once lasts so long at the present rate; the driver's timer ticks in a millisecond."""
LATE_S: Final = 0.012
"""How much of what could have left in the past is made up for, when the driver comes late."""
PROBE_MIN_S: Final = 0.005
TAIL_PROBE_S: Final = 0.3
"""A path that is silent is probed at least so often at first, so that a black hole's end is noticed."""
OFTEN_COUNT: Final = 200
"""So many probes go that often (for a minute); then they grow rarer, up to every ASK_DELAY_MAX_S. Where no
stream is open, they grow rarer at once."""
SILENT_COUNT: Final = 2
"""Probes without a report until a path that loses messages counts as silent; one on others."""
SWALLOWED_MIN: Final = 12_000
"""So many bytes of large messages, all lost while a small one came at the first try, are no chance."""
LOSS_WEIGHT: Final = 1 / 16
RTT_START_S: Final = 0.1


class Flight:
    """What left at one time on one path: sequences from `start` on, or those in `seqs`."""

    __slots__ = (
        "count",
        "delivered",
        "delivered_at",
        "first_sent_at",
        "is_large",
        "is_limited",
        "is_lost",
        "path",
        "sent_at",
        "seqs",
        "size",
        "start",
    )

    def __init__(self, path: Path, sent_at: float, start: int, seqs: list[int] | None) -> None:
        self.path = path
        self.sent_at = sent_at
        self.start = start
        self.seqs = seqs
        self.count = 0
        self.size = 0
        """Bytes that are neither confirmed nor found lost."""
        self.is_lost = False
        self.is_limited = False
        self.is_large = False
        """Its messages are larger than what every path carries."""
        self.delivered = 0
        self.delivered_at = 0.0
        self.first_sent_at = 0.0

    @property
    def end(self) -> int:
        """Behind the highest sequence in it."""
        return self.start + self.count if self.seqs is None else max(self.seqs) + 1


class Path:
    """What is known of one path. The tunnel's outbox alone sends and confirms on it."""

    def __init__(
        self,
        link: LinkId,
        controller: Controller | None = None,
        rtt_s: float | None = None,
        is_lossy: bool | None = None,
    ) -> None:
        self.link = link
        self.controller = controller
        """None: nothing bounds what is on it but the link's own room."""
        self.is_lossy = controller is not None if is_lossy is None else is_lossy
        """Messages may get lost on it. Else the link below keeps order and controls congestion itself: the
        controller only keeps its queue short, by the window, where the path is long."""
        self.is_costly = False
        """Reliable by work in this process, not in the kernel. Set by the owner: the tunnel does not care."""
        self.is_bounded = self.is_lossy
        """The controller says how much may be on it: on a reliable path if that is a long one."""
        self.is_awaited = True
        """Set by the tunnel before a take: a stream is open, somebody waits for the end of a silence."""
        self.is_held = False
        """Set by the owner before a take: the controller holds back bulk, not the link below."""
        self.flights: deque[Flight] = deque()
        self.inflight = 0
        self.delivered = 0
        """Bytes of messages that were confirmed."""
        self.sent = 0
        """Bytes of messages that left, resends and probes included."""
        self.sent_count = 0
        self.resent_count = 0
        self.spurious_count = 0
        self.copied_count = 0
        self.resending = ResendBudget()
        self.lost_count = 0
        """Messages found lost."""
        self.loss = 0.0
        """Share of the bytes that get lost, smoothed over rounds."""
        self.choked_rounds = 0
        """So many rounds in a row most of what they told of was lost."""
        self.rtt_s = rtt_s
        """Smoothed round trip; None: not measured."""
        self.rtt_min_s = rtt_s or RTT_START_S
        self.base_size = 0
        """Messages up to this size are never too large for it; 0: none is."""
        self.swallowed = 0
        """Bytes of larger ones, all lost since one came, while small ones came at the first try."""
        self.is_gone = False
        self.silent_count = 0
        """Probes since the last confirmation on it."""
        self.heard_at = 0.0
        """When something on it was last confirmed."""
        self.asked_at = -1.0
        """When the first probe of this silence left."""
        self.probe_at: float | None = None
        """When an empty message is due."""
        self.is_probe_due = False
        self.loss_at: float | None = None
        """When an overtaken flight counts as lost."""
        self.rate: float = 0.0
        """The latest delivery rate, bytes/s."""
        self.first_second = 0
        """Bytes that came in the first second of the latest burst of traffic (or a little more)."""
        self._began_at: float | None = None
        self._began = 0
        self._rtt_var_s = 0.0
        self._rtt_last_s = rtt_s or RTT_START_S
        self._left_at = -1.0
        self._sent_at = 0.0
        self._delivered_at = 0.0
        self._first_sent_at = 0.0
        self._overtaken_at = -1.0
        self._round_end = 0
        self._round_lost = 0
        self._round_acked = 0
        self._reordering = ReorderWindow()
        self._resent_at = -1.0
        self._large_at = -1.0
        """When the newest flight left of which a large message came."""
        self._was_asked_once = False
        """The report at hand came without a second probe."""
        self._newest: Flight | None = None
        self._acked = 0
        self._lost = 0
        self._pace_at = 0.0
        self._is_limited = False

    @property
    def is_stuck(self) -> bool:
        """Is something on it that is not confirmed although it was asked for, and was it not left yet?"""
        most = SILENT_COUNT if self.is_lossy else 1
        return (
            self.silent_count + self.is_probe_due >= most
            and self.inflight > 0
            and any(flight.size > 0 and flight.sent_at > self._left_at for flight in self.flights)
        )

    @property
    def is_copied(self) -> bool:
        """Does it lose so much that small messages that somebody waits for leave twice?"""
        return self.is_lossy and self.loss > COPY_LOSS

    @property
    def is_asked(self) -> bool:
        """Was a report asked for, or is about to be, and has not come?"""
        return self.inflight > 0 and (self.silent_count > 0 or self.is_probe_due)

    @property
    def awaited_since(self) -> float:
        """When the oldest of what is on it left; infinite: there is nothing."""
        return next((flight.sent_at for flight in self.flights if flight.size > 0), float("inf"))

    @property
    def is_swallowing(self) -> bool:
        """Do small messages pass, and large ones not?"""
        return self.swallowed >= SWALLOWED_MIN

    @property
    def is_starting(self) -> bool:
        """Is its rate still growing from nothing?"""
        return self.controller is not None and self.controller.is_starting

    # --- questions -------------------------------------------------------------------------------

    def budget(self, now: float) -> int:
        """Bytes that may leave now, may be <= 0; for bounded paths."""
        control = self.controller
        assert control is not None
        if not self.is_lossy:
            return control.window - self.inflight
        ahead = min(now + BURST_S - self._pace_at, BURST_S + LATE_S)
        return min(control.window - self.inflight, int(ahead * control.pace))

    def piece(self) -> int:
        """How long a message on a bounded, reliable path should be: a sixteenth of the window."""
        return self.controller.window >> 4 if self.controller is not None else 1 << 30

    def pace_deadline(self) -> float | None:
        """When the pacer lets more leave; None: it is not what holds back."""
        control = self.controller
        if control is None or not self.is_lossy or control.window <= self.inflight:
            return None
        return self._pace_at - BURST_S / 2

    def next_deadline(self) -> float | None:
        """When a probe or a loss falls due, or resends that wait for their budget."""
        due = self.probe_at
        if due is None or (self.loss_at is not None and self.loss_at < due):
            due = self.loss_at
        resend_at = self.resending.at
        if due is None or (resend_at is not None and resend_at < due):
            due = resend_at
        return due

    def resend_room(self, now: float) -> int:
        """Bytes that may be sent again now."""
        return self.resending.room(self.rtt_s or RTT_START_S, now)

    def timeout_s(self) -> float:
        """After so long without a report one is asked for (RFC 8985's probe time-out)."""
        rtt = self.rtt_s or RTT_START_S
        if not self.is_lossy:
            return max(ASK_DELAY_S, 4 * rtt)
        return max(1.5 * rtt + 4 * self._rtt_var_s, 4 * PROBE_MIN_S)

    # --- sending ---------------------------------------------------------------------------------

    def sends(self, flight: Flight, size: int, count: int, now: float) -> None:
        """A flight leaves."""
        is_first = self.inflight == 0
        if is_first:
            self._first_sent_at = self._delivered_at = now
            if now > self._sent_at + 1.0:
                self._began_at, self._began = now, self.delivered
            if self.controller is not None and now > self._sent_at + 0.2:
                self.controller.on_restart(now)
        flight.size += size
        flight.count += count
        flight.delivered = self.delivered
        flight.delivered_at = self._delivered_at
        flight.first_sent_at = self._first_sent_at
        flight.is_limited = self._is_limited
        flight.is_large = size > self.base_size * count > 0
        self.flights.append(flight)
        self.inflight += size
        self.sent += size
        self.sent_count += count
        self._sent_at = now
        control = self.controller
        if control is not None and self.is_lossy:
            self._pace_at = max(self._pace_at, now - LATE_S) + size / control.pace
        if self.silent_count == 0:
            if (
                is_first or self.probe_at is None
            ):  # else the report that is awaited is not later for it
                self.probe_at = now + self.timeout_s()
        elif not self.is_probe_due and self._is_probe_far(now):
            self._probe_later(now)

    def note_end(self, has_more: bool, now: float) -> None:
        """The take is over: had the source more to send than the path took?"""
        self._is_limited = not has_more
        if has_more or not self.is_lossy or self.silent_count:
            return
        if self.inflight and self.loss > 0.002:
            rtt = self.rtt_s or RTT_START_S
            self.probe_at = now + max(rtt / 16, PROBE_MIN_S)

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self.probe_at is not None and now >= self.probe_at:
            self.is_probe_due = True
            self.probe_at = None
        self.resending.on_deadline(now)

    def probed(self, now: float) -> None:
        """A message leaves because no report came."""
        if self.silent_count == 0:
            self.asked_at = now
        self.is_probe_due = False
        self.silent_count += 1
        if self.silent_count == SILENT_COUNT + 1 and self.controller is not None and self.is_lossy:
            self.controller.on_silence(now)
        self._probe_later(now)

    def _probe_later(self, now: float) -> None:
        base = self.timeout_s()
        most = ASK_DELAY_MAX_S
        if self._is_often():
            most = TAIL_PROBE_S
        self.probe_at = now + max(base, min(base * 2.0 ** min(self.silent_count - 1, 10), most))

    # --- what became of it -----------------------------------------------------------------------

    def confirmed(self, flight: Flight, size: int, now: float) -> None:
        """Bytes of a flight have come."""
        if flight.is_lost:  # it was not lost, only late
            self._round_lost -= size
        else:
            flight.size -= size
            self.inflight -= size
        self.delivered += size
        self._acked += size
        if flight.is_large and size > self.base_size and flight.sent_at > self._large_at:
            self._large_at = flight.sent_at
            self.swallowed = 0
        if flight.seqs is not None and now - flight.sent_at < self.rtt_min_s:
            self.heard_at = now  # the first transmission came after all
        elif self._newest is None or flight.sent_at > self._newest.sent_at:
            self._newest = flight

    def report_over(self, held_s: float, now: float) -> None:
        """A report was read to its end: measures, and tells the controller."""
        flight = self._newest
        if flight is None:
            return
        self._newest = None
        if flight.sent_at >= self.asked_at or not self.is_lossy:
            self.heard_at = now
            self._was_asked_once = self.silent_count <= 1
            self.silent_count = 0
            self.is_probe_due = False
            self.asked_at = -1.0
        # else it came before the question, as a report over another path may tell: still no answer
        rtt = now - flight.sent_at
        is_round = flight.delivered >= self._round_end
        if flight.sent_at > self._overtaken_at:
            self._overtaken_at = flight.sent_at
        # of what was sent twice nobody knows which one came (Karn and Partridge, 1987)
        sample_s = max(rtt - held_s, 1e-5) if flight.seqs is None else None
        if sample_s is not None:
            self._measure(sample_s)
        rate = self._delivery_rate(flight, now)
        self._round_acked += self._acked
        self.resending.earn(self._acked)
        if is_round:
            self._end_round()
        if self._began_at is not None and now >= self._began_at + 1.0:
            self.first_second = self.delivered - self._began
            self._began_at = None
        self._delivered_at = now
        self._first_sent_at = max(self._first_sent_at, flight.sent_at)
        if self.silent_count == 0:
            self.probe_at = self._asks_at(flight, now) if self.inflight else None
        if not self.is_lossy:
            self.is_bounded = self.controller is not None and self.rtt_min_s >= FAR_RTT_S
            if self.probe_at is not None:
                self._probe_later(now)
        if self.controller is not None:
            self.controller.on_sample(
                Sample(
                    now,
                    self._acked,
                    self._lost,
                    self.inflight,
                    sample_s,
                    rate,
                    flight.is_limited,
                    is_round,
                )
            )
        self._acked = self._lost = 0

    def take_lost(self, wanted: int, now: float) -> list[Flight]:
        """Flights whose rest counts as lost now; the sink wants what it misses below `wanted`."""
        self.loss_at = None
        lost: list[Flight] = []
        reorder_s = self._reordering.seconds(self.rtt_min_s, self.rtt_s or RTT_START_S)
        flights = self.flights
        while flights:
            flight = flights[0]
            if flight.size <= 0:
                flights.popleft()
                continue
            if self.is_gone or flight.sent_at <= self._left_at:
                if flight.end > wanted:
                    break
            else:
                if flight.sent_at >= self._overtaken_at:
                    break
                due = flight.sent_at + self._rtt_last_s + reorder_s
                if due > now:
                    self.loss_at = due
                    break
                if flight.is_large and self._was_asked_once and flight.sent_at > self._large_at:
                    self.swallowed += flight.size
            flights.popleft()
            flight.is_lost = True
            self.inflight -= flight.size
            self._lost += flight.size
            self._round_lost += flight.size
            lost.append(flight)
        if not self.inflight:
            self.probe_at = None
            self.is_probe_due = False
        return lost

    def look_anew(self) -> None:
        """Nothing but reports was on it for long: what it carries today is looked for from the beginning."""
        if self.controller is not None and self.is_lossy:
            self.controller = self.controller.renewed()

    def look_on(self) -> None:
        """It may carry more than is known: that is looked for from what is known on."""
        if self.controller is not None and self.is_lossy:
            self.controller.look_on()

    def leave(self, now: float) -> None:
        """What is on it is resent over another one as soon as the sink says what it misses."""
        self._left_at = now

    def copies(self, count: int, size: int) -> None:
        """So many messages that have just left leave once more; nobody waits for these."""
        self.copied_count += count
        self.sent += size
        self.sent_count += count
        if self.controller is not None:
            self._pace_at += size / self.controller.pace

    def copy_over(self, size: int, is_twice: bool) -> None:
        """Of a message that left twice both came, or one of them is lost without being missed."""
        if is_twice:
            self._round_acked += size
        else:
            self._round_lost += size

    def resends(self, count: int, size: int, now: float) -> None:
        """So many messages that were lost leave again over this path."""
        self.resent_count += count
        self.resending.spend(size)
        self._resent_at = now

    def spurious(self, count: int, now: float) -> None:
        """The sink got messages twice; if some were resent here, the reordering window widens."""
        count = min(count, self.resent_count - self.spurious_count)
        if count <= 0 or now > self._resent_at + 8 * (self.rtt_s or RTT_START_S):
            return
        self.spurious_count += count
        self._reordering.widen()

    # --- inside ----------------------------------------------------------------------------------

    def _asks_at(self, newest: Flight, now: float) -> float:
        """When a report is overdue, now that one has told of `newest`.

        While messages leave all the time the next report is due when that of the next flight would be: a
        silence shows long before the usual time-out.
        """
        due = now + self.timeout_s()
        if not self.is_lossy or not self.flights or self.flights[-1].sent_at <= newest.sent_at:
            return due
        sent_at = now
        for flight in self.flights:
            if flight.sent_at > newest.sent_at:
                sent_at = flight.sent_at
                break
        expected = max(now, sent_at + now - newest.sent_at)
        spread = max((self.rtt_s or RTT_START_S) / 4, 4 * self._rtt_var_s)
        return min(due, expected + ACK_DELAY_LOSSY_S + spread)

    def _is_often(self) -> bool:
        return self.is_lossy and self.is_awaited and self.silent_count < OFTEN_COUNT

    def _is_probe_far(self, now: float) -> bool:
        """Is no probe planned, or one from a time when nobody waited?"""
        if self.probe_at is None:
            return True
        return self._is_often() and self.probe_at > now + max(self.timeout_s(), TAIL_PROBE_S)

    def _measure(self, rtt: float) -> None:
        self._rtt_last_s = rtt
        known = self.rtt_s
        if known is None:
            self.rtt_s = self.rtt_min_s = rtt
            self._rtt_var_s = rtt / 2
            return
        self._rtt_var_s += (abs(known - rtt) - self._rtt_var_s) / 4
        self.rtt_s = known + (rtt - known) / 8
        # the shortest of late: it follows a path that has become longer, slowly
        self.rtt_min_s = min(rtt, self.rtt_min_s * 1.0001)

    def _delivery_rate(self, flight: Flight, now: float) -> float | None:
        took = max(now - flight.delivered_at, flight.sent_at - flight.first_sent_at)
        if took < self.rtt_min_s / 2 or took <= 0:
            return None
        self.rate = (self.delivered - flight.delivered) / took
        return self.rate

    def _end_round(self) -> None:
        self._round_end = self.delivered
        lost, acked = max(0, self._round_lost), self._round_acked
        self._round_acked = self._round_lost = 0
        if lost + acked:
            self.loss += LOSS_WEIGHT * (lost / (lost + acked) - self.loss)
            self.choked_rounds = self.choked_rounds + 1 if lost > acked else 0
        self._reordering.end_round()
