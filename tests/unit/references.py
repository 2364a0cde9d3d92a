"""Other published controllers, for comparison only, and a TCP flow that shares a bottleneck.

`Cubic` is RFC 9438, `Copa` is Arun and Balakrishnan, "Copa: Practical
Delay-Based Congestion Control for the Internet", NSDI 2018, default mode and its competitive one. Both
implement `uservpn.tunnel.congestion.Controller`, so that they run in the shipped tunnel.
"""

from __future__ import annotations

from collections import deque

from cubic_window import CubicWindow
from uservpn.tunnel.congestion import Sample

MESSAGE = 1400
START = 32 * MESSAGE


class Cubic:
    """Loss-based: the window of `cubic_window` as a controller, with TCP's slow start."""

    is_starting = False

    def __init__(self, size: float = START, message: int = MESSAGE) -> None:
        self._cubic = CubicWindow(size, message)
        self.window = int(size)
        self.pace = 1e9
        self._rtt = 0.1
        self._reduced_until = 0.0

    def on_sample(self, sample) -> None:
        if sample.rtt_s is not None:
            self._rtt = sample.rtt_s
        if sample.lost and sample.now >= self._reduced_until:
            self._reduced_until = sample.now + self._rtt
            self._cubic.reduce()
        elif not sample.is_limited:
            self._cubic.grow(sample.acked, self._rtt, sample.now)
        self.window = int(self._cubic.size)
        self.pace = 1.25 * self.window / self._rtt

    def on_silence(self, now: float) -> None:
        self._cubic.size = self.window = 2 * MESSAGE

    def on_restart(self, now: float) -> None:
        pass

    def renewed(self):
        return self


class Copa:
    """Delay-based: rate towards 1 / (delta * queueing delay); delta adapts when others fill the queue."""

    is_starting = False

    def __init__(self, is_competitive: bool = True) -> None:
        self.window = START
        self.pace = 1e9
        self._exact = float(START)
        self._is_competitive = is_competitive
        self._delta = 0.5
        self._velocity = 1.0
        self._direction = 0
        self._same = 0
        self._is_slow_start = True
        self._round_window = float(START)
        self._rtts: deque[tuple[float, float]] = deque()
        self._standing: deque[tuple[float, float]] = deque()
        self._queues: deque[tuple[float, float]] = deque()
        self._had_loss = False

    def _low(self, values: deque, now: float, span: float, rtt: float) -> float:
        while values and values[-1][1] >= rtt:
            values.pop()
        values.append((now, rtt))
        while values[0][0] < now - span:
            values.popleft()
        return values[0][1]

    def on_sample(self, sample) -> None:
        if sample.rtt_s is None:
            return
        now, rtt = sample.now, sample.rtt_s
        lowest = self._low(self._rtts, now, 10.0, rtt)
        standing = self._low(self._standing, now, rtt / 2, rtt)
        queue = max(standing - lowest, 1e-4)
        self._had_loss = self._had_loss or sample.lost > 0
        if self._is_competitive:
            self._choose_mode(now, rtt, queue, lowest, sample.is_round)
        target = MESSAGE / (self._delta * queue)
        current = self._exact / standing
        if self._is_slow_start:
            if current < target:
                self._exact += sample.acked
                self._finish(standing)
                return
            self._is_slow_start = False
        step = self._velocity * MESSAGE * sample.acked / (self._delta * self._exact)
        self._exact += step if current <= target else -step
        self._exact = max(self._exact, 2.0 * MESSAGE)
        if sample.is_round:
            direction = 1 if self._exact > self._round_window else -1
            if direction == self._direction:
                self._same += 1
                if self._same >= 3:
                    self._velocity = min(self._velocity * 2, 64.0)
            else:
                self._velocity, self._same = 1.0, 0
            self._direction = direction
            self._round_window = self._exact
        self._finish(standing)

    def _choose_mode(self, now, rtt, queue, lowest, is_round) -> None:
        self._queues.append((now, rtt - lowest))
        while self._queues[0][0] < now - 5 * rtt:
            self._queues.popleft()
        most = max(value for _, value in self._queues)
        least = min(value for _, value in self._queues)
        if least < 0.1 * most + 0.001:
            self._delta = 0.5
        elif is_round:
            if self._had_loss:
                self._delta = min(0.5, self._delta * 2)
            else:
                self._delta = 1 / (1 / self._delta + 1)
            self._had_loss = False

    def _finish(self, standing: float) -> None:
        self.window = int(self._exact)
        self.pace = 2 * self._exact / standing

    def on_silence(self, now: float) -> None:
        self._exact = self.window = 2 * MESSAGE

    def on_restart(self, now: float) -> None:
        pass

    def renewed(self):
        return self


class TcpFlow:
    """A TCP with CUBIC in the same bottleneck: packets of 1,500 bytes, each acknowledged."""

    SIZE = 1500

    def __init__(self, clock, bottleneck, rtt_s: float) -> None:
        self.clock, self.bottleneck, self.rtt_s = clock, bottleneck, rtt_s
        self.cubic = Cubic(10 * self.SIZE, self.SIZE)
        self.got = 0
        self.is_over = False
        """Set to end it: nothing more leaves."""
        self._inflight = 0
        self._next = 0
        self._acked = 0
        self._round_end = 0
        self._sent_at: dict[int, float] = {}
        self._lost: set[int] = set()

    def start(self) -> None:
        self._send()

    def _send(self) -> None:
        while not self.is_over and self._inflight + self.SIZE <= self.cubic.window:
            number = self._next
            self._next += 1
            self._inflight += self.SIZE
            self._sent_at[number] = self.clock.now
            self.bottleneck.send(self.SIZE, lambda number=number: self._arrived(number))
        self.clock.at(self.clock.now + 1.0, lambda at=self._acked: self._stalled(at))

    def _arrived(self, number: int) -> None:
        self.got += self.SIZE
        self.clock.at(self.clock.now + self.rtt_s / 2, lambda: self._confirmed(number))

    def _confirmed(self, number: int) -> None:
        sent_at = self._sent_at.pop(number, None)
        if sent_at is None:
            return
        self._acked += 1
        self._inflight -= self.SIZE
        lost = [other for other in self._sent_at if other < number - 3]
        for other in lost:
            del self._sent_at[other]
            self._inflight -= self.SIZE
        is_round = number >= self._round_end
        if is_round:
            self._round_end = self._next
        rtt = self.clock.now - sent_at
        self.cubic.on_sample(
            Sample(
                self.clock.now, self.SIZE, len(lost) * self.SIZE, self._inflight,
                rtt, None, False, is_round,
            )
        )  # fmt: skip
        self._send()

    def _stalled(self, acked: int) -> None:
        if acked == self._acked and self._inflight:
            self._sent_at.clear()
            self._inflight = 0
            self.cubic.on_silence(self.clock.now)
            self._send()
