"""BBR: the path's rate and its shortest round trip are measured, and what is on it follows from both.

The model is BBR's (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016;
draft-cardwell-iccrg-bbr-congestion-control-00 and -02): the pace is the highest delivery rate of late, the
window a small multiple of rate times shortest round trip; a fast start until the rate no longer grows, then
cycles that try a little more for one round trip and let the queue of that run off in the next. Loss alone
says nothing, so random loss costs what it loses and not more.

These things differ; docs/congestion.md has the measurements behind them:

- The pace makes up for random loss. Its share is the lowest of the last blocks of rounds in which no queue
  stood: what a full queue drops is not made up for.
- While a queue stands (round trips far above the shortest) the rate is believed for RATE_ROUNDS_QUEUED
  rounds instead of RATE_ROUNDS: a path whose rate fell by ten is followed within a few round trips.
- To see the empty path again it halves what is on it (as BBRv2 does) instead of cutting to 4 messages.
- Flows that share a path end up with equal rates: their windows have a part that grows with the root of the
  rate only. A round that lost messages while a queue stood shrinks all that goes beyond 1.0 (as BBRv2 does).
- A round trip that stays the same although much less, or more, is on the path is no queue's: the path has
  become longer, and its rate is looked for again (tunnel/longer.py).
- What a path holds back and lets go together widens the window (`extra_acked` of the later drafts;
  tunnel/bunches.py), and round trips that it explains count as no queue.
"""

from __future__ import annotations

import enum
import math
from typing import Final

from uservpn.tunnel.bunches import Bunches
from uservpn.tunnel.congestion import Sample
from uservpn.tunnel.longer import LongerPath
from uservpn.tunnel.rates import Lowest, RateFilter

MESSAGE: Final = 1400
START_GAIN: Final = 2.77
CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
WINDOW_GAIN: Final = 1.25
GROWTH: Final = 1.25
START_ROUNDS: Final = 3
START_LOSS: Final = 0.15
"""In start-up, more loss than this and twice the lowest so far is our own: a tiny queue is full."""
RISE: Final = 1.05
"""When a phase that tried more got so much more, the next one follows at once."""
RATE_ROUNDS: Final = 10
RATE_ROUNDS_QUEUED: Final = 3
QUEUED_GAIN: Final = 1.5
QUEUED_S: Final = 0.010
LOSS_ROUNDS: Final = 16
LOSS_BLOCK: Final = 64 * MESSAGE
"""Rounds count together until so much was sent in them: the lowest of small counts is always near nothing."""
LOSS_MAX: Final = 0.40
"""More random loss than this is not made up for."""
SPARE_MIN: Final = 0.1
SPARE_CUT: Final = 0.7
SPARE_STEP: Final = 1 / 32
"""The share of what goes beyond 1.0 rates times round trips: so much of it is left after a round in which a
queue got full, and so much comes back with every other round."""
FAIR: Final = 2.0
"""Messages beyond the model's window, times the root of the window in messages. What each flow has beyond its
share must not be in proportion to its rate, or flows would keep whatever rates they happen to have."""
RTT_WINDOW_S: Final = 5.0
PROBE_RTT_S: Final = 0.2
DRAINED_GAIN: Final = 1.25
DRAINED_S: Final = 0.005
"""A round trip that is no longer than so many of the shortest ones, and this, saw no queue."""
QUANTUM_S: Final = 0.005
"""Bursts, and reports that tell of many messages at once, need so much beyond the model's window."""
OWN_S: Final = 0.012
OWN_GAIN: Final = 0.2
OWN_MAX_S: Final = 0.02
"""Bunches of so long, or of such a part of the shortest round trip up to so long, are made by our own bursts,
by reports and by loops that are late."""
WINDOW_START: Final = 32 * MESSAGE
WINDOW_MIN: Final = 4 * MESSAGE
PROBE_MIN: Final = 2 * MESSAGE
"""The least window while the shortest round trip is looked for: four are a queue on a slow path."""
PACE_MIN: Final = 1.0 * MESSAGE


class State(enum.Enum):
    """Where the controller is in its life."""

    START = enum.auto()
    DRAIN = enum.auto()
    CYCLE = enum.auto()
    PROBE_RTT = enum.auto()


class Bbr:
    """The controller in use: see the module's text. Implements `congestion.Controller`."""

    def __init__(self, rtt_s: float | None = None, shares: bool = True) -> None:
        """`shares` is False where the protocol below sees to equal shares."""
        self._start_size = WINDOW_START
        """The window that a start begins with at least."""
        self.window = WINDOW_START
        self.pace = START_GAIN * WINDOW_START / max(rtt_s or 0.1, 0.001)
        self.state = State.START
        self.rtt_min_s: float | None = None
        self._rtt_min_at = 0.0
        self._rates = RateFilter()
        self._losses = Lowest(LOSS_ROUNDS)
        self._bunches = Bunches()
        self._round = 0
        self._round_acked = 0
        self._round_lost = 0
        self._round_rtt_s = 1e9
        self._is_queued = False
        self._full_rate = 0.0
        self._full_rounds = 0
        self._phase = 0
        self._phase_at = 0.0
        self._tried_rate = 1e18
        self._probe_until = 0.0
        self._probe_rtt_s = 0.0
        self._probe_size = 0.0
        """While the shortest round trip is looked for: what it is today, and the window."""
        self._is_silent = False
        self._last_total = 0
        self._block_lost = 0
        self._block_total = 0
        self._longer = LongerPath()
        self._spare = 1.0
        self._fair = FAIR if shares else 0.0
        self._queue_lost = 0
        self._drained_at: float | None = None

    @property
    def is_starting(self) -> bool:
        """Is the path's rate still looked for?"""
        return self.state is State.START

    @property
    def rate(self) -> float:
        """Bytes/s the path is believed to deliver; 0: nothing is known."""
        return self._rates.highest

    @property
    def loss(self) -> float:
        """The share that gets lost whatever is sent."""
        return min(self._losses.value, LOSS_MAX)

    # --- outside events --------------------------------------------------------------------------

    def on_sample(self, sample: Sample) -> None:
        """A report came."""
        self._is_silent = False
        now = sample.now
        self._round_acked += sample.acked
        self._round_lost += sample.lost
        if sample.rtt_s is not None and not self._is_drained(sample.rtt_s, self._held_s):
            self._queue_lost += sample.lost
        if sample.rtt_s is not None:
            self._round_rtt_s = min(self._round_rtt_s, sample.rtt_s)
            self._note_rtt(sample.rtt_s, now)
        if sample.rate is not None and (not sample.is_limited or sample.rate > self.rate):
            self._rates.add(self._round, sample.rate)
        self._bunches.note(self._round, sample.acked, self.rate, now)
        if sample.is_round:
            self._end_round(sample)
        if self.state is State.START and self._full_rounds >= START_ROUNDS:
            self.state = State.DRAIN
        if self.state is State.DRAIN and sample.inflight <= self._product(1.0):
            self._enter_cycle(2, now)
        if self.state is State.CYCLE:
            self._follow_cycle(sample)
        self._follow_probe_rtt(sample)
        self._set(sample)

    def on_silence(self, now: float) -> None:
        """No report comes any more."""
        self._is_silent = True
        self.window = WINDOW_MIN

    def on_restart(self, now: float) -> None:
        """After a pause the path is as it was left, as far as anybody knows: paced at its rate."""
        if self.state is State.CYCLE:
            self._enter_cycle(2, now)

    def look_on(self) -> None:
        """The rate may be a higher one: it is looked for as at the start, but from what is known on.

        So on a path that is that slow the queue is a small one.
        """
        self._longer.forget()
        self._start_size = WINDOW_MIN
        self.state = State.START
        self._full_rate = self._full_rounds = 0
        self._spare = 1.0
        self._is_queued = False

    def renewed(self) -> Bbr:
        """One that knows the shortest round trip only."""
        return Bbr(self.rtt_min_s, self._fair > 0)

    # --- inside ----------------------------------------------------------------------------------

    def _note_rtt(self, rtt_s: float, now: float) -> None:
        known = self.rtt_min_s
        if known is None or rtt_s <= known:
            self.rtt_min_s = rtt_s
            self._rtt_min_at = now
        elif rtt_s <= known * 1.05 + 0.0005:  # as good as it: the path is still that short
            self._rtt_min_at = now

    def _end_round(self, sample: Sample) -> None:
        self._round += 1
        lost = self._round_lost
        total = self._round_acked + lost
        rtt_min = self.rtt_min_s or self._round_rtt_s
        # a round in which only resends were confirmed showed no round trip, and no queue
        queued_s = QUEUED_GAIN * rtt_min + QUEUED_S + self._held_s
        self._is_queued = queued_s < self._round_rtt_s < 1e9
        if not self._is_queued or lost < self.loss * total:  # what a full queue drops is not random
            self._block_lost += lost
            self._block_total += total
            if self._block_total >= LOSS_BLOCK:
                self._losses.add(self._block_lost / self._block_total)
                self._block_lost = self._block_total = 0
        is_congested = self._queue_lost > 2.0 * self.loss * total
        self._queue_lost = 0
        if self.state is State.CYCLE:
            if is_congested:
                self._spare = max(SPARE_MIN, self._spare * SPARE_CUT)
            else:
                self._spare = min(1.0, self._spare + SPARE_STEP)
        self._look_whether_longer(sample)
        self._round_acked = self._round_lost = 0
        self._round_rtt_s = 1e9
        if self.state in (
            State.CYCLE,
            State.PROBE_RTT,
        ):  # in others a queue runs off: no rate is measured
            self._rates.forget(
                self._round - (RATE_ROUNDS_QUEUED if self._is_queued else RATE_ROUNDS)
            )
        # a few messages of a source that has no more make no queue: they tell nothing of the rate
        is_trickle = sample.is_limited and max(total, self._last_total) < WINDOW_START
        if self.state is State.START and not is_trickle:
            # what a large flight lost is found out when little of it is left to be confirmed
            self._end_start_round(sample, lost / max(total, self._last_total, 1))
        self._last_total = total

    def _look_whether_longer(self, sample: Sample) -> None:
        """A path that has become longer is no queue: it is another path, whose rate is looked for anew."""
        if self.state is not State.CYCLE or self._round_rtt_s >= 1e9:
            return
        if self._is_drained(self._round_rtt_s, 0.0):
            self._longer.forget()
            return
        rtt_s = self._longer.note(self._round_rtt_s, sample.inflight)
        if rtt_s is None:
            return
        self.rtt_min_s = rtt_s
        self._rtt_min_at = sample.now
        self.look_on()

    def _end_start_round(self, sample: Sample, loss: float) -> None:
        """A standing queue, much more loss than before, a rate that no longer grows: the path is full."""
        if self._is_queued or (self._losses.count > 1 and loss > START_LOSS + 2.0 * self.loss):
            self._full_rounds = START_ROUNDS
        elif not sample.is_limited:
            # what gets lost anyhow is missing in the growth as well
            growth = 1.0 + (GROWTH - 1.0) * (1.0 - 2.0 * self.loss)
            if self.rate >= growth * self._full_rate:
                self._full_rate = self.rate
                self._full_rounds = 0
            else:
                self._full_rounds += 1

    def _is_drained(self, rtt_s: float, held_s: float) -> bool:
        """Does a round trip show no queue, in a path that holds messages back for so long?"""
        return rtt_s <= DRAINED_GAIN * (self.rtt_min_s or 0.1) + DRAINED_S + held_s

    # --- the cycle -------------------------------------------------------------------------------

    def _enter_cycle(self, phase: int, now: float) -> None:
        self.state = State.CYCLE
        self._phase = phase
        if phase == 0:
            self._tried_rate = self.rate
        self._phase_at = now

    def _follow_cycle(self, sample: Sample) -> None:
        rtt = self.rtt_min_s or 0.1
        elapsed = sample.now - self._phase_at
        gain = CYCLE[self._phase]
        if gain > 1.0:
            is_over = elapsed > rtt and sample.inflight >= self._product(gain) * 0.95
            is_over = is_over or elapsed > 2.0 * rtt or (elapsed > rtt and sample.is_limited)
        elif gain < 1.0:
            is_over = elapsed > 2.0 * rtt or sample.inflight <= self._product(1.0)
        else:
            is_over = elapsed > rtt
        if gain <= 1.0 and self.rate > RISE * self._tried_rate and not self._is_queued:
            self._enter_cycle(0, sample.now)  # the path takes more and more: go on
            return
        if is_over:
            self._enter_cycle((self._phase + 1) % len(CYCLE), sample.now)

    def _follow_probe_rtt(self, sample: Sample) -> None:
        now, rtt_s = sample.now, sample.rtt_s
        if self.state is State.PROBE_RTT:
            self._probe_rtt_s = min(self._probe_rtt_s, rtt_s or 1e9)
            if self._drained_at is None and sample.inflight <= max(self._probe_size, PROBE_MIN):
                self._drained_at = now
                # what is confirmed first left while the path was full
                trip_s = max(self.rtt_min_s or 0.0, rtt_s or 0.0)
                self._probe_until = now + max(PROBE_RTT_S, trip_s)
            if now >= self._probe_until:
                self.rtt_min_s = self._probe_rtt_s
                self._rtt_min_at = now
                self._enter_cycle(2, now)
        elif (
            self.state is State.CYCLE
            and now > self._rtt_min_at + RTT_WINDOW_S
            and rtt_s is not None
        ):
            self.state = State.PROBE_RTT
            self._drained_at = None
            self._probe_until = now + max(PROBE_RTT_S, 4.0 * rtt_s)
            self._probe_size = self._product(0.5)
            self._probe_rtt_s = rtt_s

    @property
    def _bunch(self) -> float:
        """Bytes that the path lets go together, beyond what our own bursts and reports explain."""
        own_s = min(max(OWN_S, OWN_GAIN * (self.rtt_min_s or 0.0)), OWN_MAX_S)
        return max(0.0, self._bunches.size - max(own_s * self.rate, WINDOW_MIN))

    @property
    def _held_s(self) -> float:
        """A round trip may take so much longer in an empty path."""
        return self._bunch / max(self.rate, 1.0)

    def _product(self, gain: float) -> float:
        """`gain` times rate times shortest round trip, with what is lost on the way."""
        return gain * self.rate * (self.rtt_min_s or 0.1) / (1.0 - self.loss)

    def _set(self, sample: Sample) -> None:
        rate = self.rate
        if not rate or self.rtt_min_s is None:
            return
        paced = rate / (1.0 - self.loss)
        least = WINDOW_MIN
        if self.state is State.START:
            start_pace = START_GAIN * self._start_size / max(self.rtt_min_s, 0.001)
            pace = max(START_GAIN * paced, start_pace)
            window = max(self._product(START_GAIN) + 2 * QUANTUM_S * rate, self._start_size)
        elif self.state is State.DRAIN:
            pace, window = paced / START_GAIN, self._product(1.0)
        elif self.state is State.PROBE_RTT:  # no bursts either: they are queues of their own
            pace, window, least = 0.5 * paced, self._probe_size, PROBE_MIN
        else:
            pace = CYCLE[self._phase] * paced
            bunch = self._bunch
            base = self._product(1.0) + bunch
            window = self._product(WINDOW_GAIN) + bunch
            window += 2 * QUANTUM_S * rate + self._fair * math.sqrt(window * MESSAGE)
            window = base + self._spare * (window - base)
        self.pace = max(pace, PACE_MIN)
        self.window = max(int(window), least)
