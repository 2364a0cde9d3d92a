"""BBR: the path's rate and its shortest round trip are measured, and what is on it follows from both.

The model is BBR's (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016;
draft-cardwell-iccrg-bbr-congestion-control-00 and -02): the pace is the highest delivery rate of late, the
window a small multiple of rate times shortest round trip; a fast start until the rate no longer grows, then
cycles that try a little more for one round trip and let the queue of that run off in the next. Loss alone
says nothing, so random loss costs what it loses and not more.

Three things differ; docs/congestion.md has the measurements behind them:

- The pace makes up for random loss. Its share is the lowest that any round of the last cycles saw, rounds
  with a drained queue among them, so loss that our own queue causes is not made up for.
- While a queue stands (round trips far above the shortest) the rate is believed for RATE_ROUNDS_QUEUED
  rounds instead of RATE_ROUNDS: a path whose rate fell by ten is followed within a few round trips.
- To see the empty path again it halves what is on it (as BBRv2 does) instead of cutting to 4 messages.
"""

from __future__ import annotations

import enum
from typing import Final

from uservpn.tunnel.congestion import Sample
from uservpn.tunnel.rates import Lowest, RateFilter

START_GAIN: Final = 2.77
CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
WINDOW_GAIN: Final = 1.25
GROWTH: Final = 1.25
START_ROUNDS: Final = 3
RATE_ROUNDS: Final = 10
RATE_ROUNDS_QUEUED: Final = 3
QUEUED_GAIN: Final = 1.5
QUEUED_S: Final = 0.010
LOSS_ROUNDS: Final = 16
LOSS_MAX: Final = 0.20
"""More random loss than this is not made up for."""
RTT_WINDOW_S: Final = 10.0
PROBE_RTT_S: Final = 0.2
QUANTUM_S: Final = 0.005
"""Bursts, and reports that tell of many messages at once, need so much beyond the model's window."""
MESSAGE: Final = 1400
WINDOW_START: Final = 32 * MESSAGE
WINDOW_MIN: Final = 4 * MESSAGE
PACE_MIN: Final = 2.0 * MESSAGE / 0.1


class State(enum.Enum):
    """Where the controller is in its life."""

    START = enum.auto()
    DRAIN = enum.auto()
    CYCLE = enum.auto()
    PROBE_RTT = enum.auto()


class Bbr:
    """The controller in use: see the module's text. Implements `congestion.Controller`."""

    def __init__(self, rtt_s: float | None = None) -> None:
        self.window = WINDOW_START
        self.pace = START_GAIN * WINDOW_START / max(rtt_s or 0.1, 0.001)
        self.state = State.START
        self.rtt_min_s: float | None = None
        self._rtt_min_at = 0.0
        self._rates = RateFilter()
        self._losses = Lowest(LOSS_ROUNDS)
        self._round = 0
        self._round_acked = 0
        self._round_lost = 0
        self._round_rtt_s = 1e9
        self._is_queued = False
        self._full_rate = 0.0
        self._full_rounds = 0
        self._phase = 0
        self._phase_at = 0.0
        self._probe_until: float | None = None
        self._is_silent = False

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
        if sample.rtt_s is not None:
            self._round_rtt_s = min(self._round_rtt_s, sample.rtt_s)
            self._note_rtt(sample.rtt_s, now)
        if sample.rate is not None and (not sample.is_limited or sample.rate > self.rate):
            self._rates.add(self._round, sample.rate)
        if sample.is_round:
            self._end_round(sample)
        if self.state is State.START and self._full_rounds >= START_ROUNDS:
            self.state = State.DRAIN
        if self.state is State.DRAIN and sample.inflight <= self._product(1.0):
            self._enter_cycle(2, now)
        if self.state is State.CYCLE:
            self._follow_cycle(sample)
        self._follow_probe_rtt(sample)
        self._set()

    def on_silence(self, now: float) -> None:
        """No report comes any more."""
        self._is_silent = True
        self.window = WINDOW_MIN

    def on_restart(self, now: float) -> None:
        """After a pause the path is as it was left, as far as anybody knows: paced at its rate."""
        if self.state is State.CYCLE:
            self._enter_cycle(2, now)

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
        total = self._round_acked + self._round_lost
        if total > 8 * MESSAGE:
            self._losses.add(self._round_lost / total)
        rtt_min = self.rtt_min_s or self._round_rtt_s
        self._is_queued = self._round_rtt_s > QUEUED_GAIN * rtt_min + QUEUED_S
        self._round_acked = self._round_lost = 0
        self._round_rtt_s = 1e9
        if (
            self.state is State.CYCLE
        ):  # what is measured while a queue runs off is no rate of the path
            self._rates.forget(
                self._round - (RATE_ROUNDS_QUEUED if self._is_queued else RATE_ROUNDS)
            )
        if self.state is State.START and not sample.is_limited:
            if self.rate >= GROWTH * self._full_rate:
                self._full_rate = self.rate
                self._full_rounds = 0
            else:
                self._full_rounds += 3 if self._is_queued else 1

    def _enter_cycle(self, phase: int, now: float) -> None:
        self.state = State.CYCLE
        self._phase = phase
        self._phase_at = now

    def _follow_cycle(self, sample: Sample) -> None:
        rtt = self.rtt_min_s or 0.1
        elapsed = sample.now - self._phase_at
        gain = CYCLE[self._phase]
        if gain > 1.0:
            is_over = elapsed > rtt and sample.inflight >= self._product(gain) * 0.95
            is_over = is_over or elapsed > 2.0 * rtt or (elapsed > rtt and sample.is_limited)
        elif gain < 1.0:
            is_over = elapsed > rtt or sample.inflight <= self._product(1.0)
        else:
            is_over = elapsed > rtt
        if is_over:
            self._enter_cycle((self._phase + 1) % len(CYCLE), sample.now)

    def _follow_probe_rtt(self, sample: Sample) -> None:
        now = sample.now
        if self._probe_until is not None:
            if now >= self._probe_until:
                self._probe_until = None
                self._rtt_min_at = now
                self._enter_cycle(2, now)
        elif self.state is State.CYCLE and now > self._rtt_min_at + RTT_WINDOW_S:
            self.state = State.PROBE_RTT
            self._probe_until = now + max(PROBE_RTT_S, 2 * (self.rtt_min_s or 0.0))
            self.rtt_min_s = sample.rtt_s  # what it is today will show now

    def _product(self, gain: float) -> float:
        """`gain` times rate times shortest round trip, with what is lost on the way."""
        return gain * self.rate * (self.rtt_min_s or 0.1) / (1.0 - self.loss)

    def _set(self) -> None:
        rate = self.rate
        if not rate or self.rtt_min_s is None:
            return
        if self.state is State.START:
            pace_gain, window_gain = START_GAIN, START_GAIN
        elif self.state is State.DRAIN:
            pace_gain, window_gain = 1 / START_GAIN, 1.0
        elif self.state is State.PROBE_RTT:
            pace_gain, window_gain = 1.0, 0.5
        else:
            pace_gain, window_gain = CYCLE[self._phase], WINDOW_GAIN
        pace = pace_gain * rate / (1.0 - self.loss)
        window = self._product(window_gain)
        if self.state is State.START or self.state is State.CYCLE:
            window += 2 * QUANTUM_S * rate
        if self.state is State.START:
            pace = max(pace, START_GAIN * WINDOW_START / max(self.rtt_min_s, 0.001))
            window = max(window, WINDOW_START)
        self.pace = max(pace, PACE_MIN)
        self.window = max(int(window), WINDOW_MIN)
