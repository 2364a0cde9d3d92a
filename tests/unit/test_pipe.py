"""What bounds a stream link on a long path, over simulated kernels that fill queues, or repair."""

from __future__ import annotations

import random
import socket
import struct
from collections import deque

import pytest

from uservpn.links.pipe import LATE_S, LOOK_NEAR_S, TURN, TURN_GAIN, Below, Pipe
from uservpn.links.tcp import below_of
from uservpn.tunnel.bbr import CYCLE, State

STEP_S = 0.001
MSS = 1448


class Kernel:
    """A TCP below a link: a path of `rate` bytes/s behind a queue, and out-of-order delivery.

    `is_greedy`: all it gets is on its way at once, as a large CUBIC window allows. Else it paces at the rate
    it believes the path to have, as BBR does: it takes a higher one only from what it delivered while it had
    something unsent, and probes a quarter more in one of eight round trips. What gets lost is resent a round
    trip later; what came behind it is delivered, though the peer's program cannot read it.
    """

    def __init__(self, rate, rtt_s, is_greedy, loss=0.0, seed=1):
        self.rate, self.rtt_s, self.is_greedy, self.loss = rate, rtt_s, is_greedy, loss
        self.rng = random.Random(seed)
        self.now = 0.0
        self.unsent = self.inflight = self.delivered = self.resent = 0
        self.queue = 0.0
        self.acks: deque[tuple[float, int, bool]] = deque()
        self.delays: list[float] = []
        self.believed = 20 * MSS / rtt_s
        self._credit = 0.0
        self._mark = (0.0, 0)
        self._was_dry = False
        self._rates: deque[float] = deque([self.believed], maxlen=10)
        self._lost = 0

    def step(self):
        self.now += STEP_S
        self.queue = max(0.0, self.queue - self.rate * STEP_S)
        while self.acks and self.acks[0][0] <= self.now:
            _, size, is_lost = self.acks.popleft()
            self.inflight -= size
            if is_lost:
                self._lost += size
                self.resent += 1
            else:
                self.delivered += size
        gain = 1.25 if int(self.now / self.rtt_s) % 8 == 0 else 1.0
        if self.now < 1.0:
            gain = 2.9
        self._credit = min(self._credit + gain * self.believed * STEP_S, 64 * MSS)
        self._was_dry = self._was_dry or self.unsent < MSS
        while self._lost >= MSS or self.unsent >= MSS:
            if not self.is_greedy and self._credit < MSS:
                break
            self._credit -= MSS
            if self._lost >= MSS:
                self._lost -= MSS
            else:
                self.unsent -= MSS
            self._send()
        if self.now - self._mark[0] >= self.rtt_s:
            rate = (self.delivered - self._mark[1]) / (self.now - self._mark[0])
            if rate > self.believed or not self._was_dry:
                self._rates.append(rate)
                self.believed = max(self._rates)
            self._mark = (self.now, self.delivered)
            self._was_dry = False

    def _send(self):
        self.queue += MSS
        self.inflight += MSS
        delay = self.queue / self.rate
        self.delays.append(delay)
        self.acks.append((self.now + delay + self.rtt_s, MSS, self.rng.random() < self.loss))

    def below(self):
        rtt_s = self.rtt_s + self.queue / self.rate
        pace = 0.0 if self.is_greedy else self.believed
        return Below(
            self.delivered, self.inflight, self.unsent, rtt_s, self.rtt_s, pace, self.resent
        )


class SmoothingKernel(Kernel):
    """It tells the smoothed round trip of what was acknowledged, which lags behind the queue (RFC 6298)."""

    def __init__(self, *options, **named):
        super().__init__(*options, **named)
        self.smoothed_s = self.rtt_s
        self._sent: deque[tuple[float, float]] = deque()

    def step(self):
        super().step()
        while self._sent and self._sent[0][0] <= self.now:
            acked_at, sent_at = self._sent.popleft()
            self.smoothed_s += (acked_at - sent_at - self.smoothed_s) / 8

    def _send(self):
        super()._send()
        self._sent.append((self.acks[-1][0], self.now))

    def below(self):
        return super().below()._replace(rtt_s=self.smoothed_s)


def run(kernel, seconds):
    """A source fills what the pipe allows; bytes/s delivered after the first four seconds."""
    pipe = Pipe()
    began = 0
    while kernel.now < seconds:
        kernel.step()
        if pipe.is_due(kernel.now):
            pipe.look(kernel.now, kernel.below())
        size = pipe.room
        if size > 0:
            pipe.took(size)
            kernel.unsent += size
        if kernel.now <= 4.0:
            began = kernel.delivered
            kernel.delays.clear()
    return (kernel.delivered - began) / (seconds - 4.0)


@pytest.mark.parametrize("rtt_s", [0.03, 0.1, 0.3])
def test_a_kernel_that_fills_queues_gets_no_more_than_the_path_holds(rtt_s):
    kernel = Kernel(12.5e6, rtt_s, is_greedy=True)
    assert run(kernel, 12.0) > 0.93 * kernel.rate
    delays = sorted(kernel.delays)
    assert delays[len(delays) // 2] < 0.020
    assert delays[len(delays) * 95 // 100] < 0.020 + 0.3 * rtt_s


@pytest.mark.parametrize("loss", [0.01, 0.03, 0.1])
def test_what_a_kernel_repairs_is_no_queue_and_it_always_has_something_to_send(loss):
    kernel = Kernel(12.5e6, 0.1, is_greedy=False, loss=loss)
    assert run(kernel, 12.0) > 0.9 * (1 - loss) * kernel.rate
    assert kernel.unsent < 0.11 * kernel.rate


def test_a_source_with_little_to_say_does_not_make_the_path_look_slow():
    kernel = Kernel(12.5e6, 0.1, is_greedy=True)
    pipe = Pipe()
    while kernel.now < 8.0:
        kernel.step()
        if pipe.is_due(kernel.now):
            pipe.look(kernel.now, kernel.below())
        size = pipe.room if not 3.0 < kernel.now < 6.0 else 200
        if 0 < size <= pipe.room:
            pipe.took(size)
            kernel.unsent += size
        if kernel.now <= 3.0:
            window = pipe.window
        elif kernel.now <= 6.0:
            assert pipe.window > 0.5 * window
    assert pipe.window > 0.75 * window


@pytest.mark.parametrize("bulk_s", [0.0, 2.0])
@pytest.mark.parametrize("is_always", [False, True])
def test_what_little_waits_in_somebody_elses_queue_tells_nothing_of_the_rate(bulk_s, is_always):
    """Questions and reports beside bulk on another connection; then the bulk comes to this one."""
    kernel = Kernel(12.5e6, 0.1, is_greedy=True)
    pipe = Pipe(is_always)
    begun = 0
    while kernel.now < 11.0:
        kernel.step()
        is_beside = 4.0 < kernel.now < 9.0
        if is_beside:  # the other one keeps a round trip's worth in the queue
            kernel.queue = max(kernel.queue, kernel.rate * kernel.rtt_s)
        if pipe.is_due(kernel.now):
            pipe.look(kernel.now, kernel.below())
        size = pipe.room if kernel.now < bulk_s or kernel.now > 9.0 else 200
        if 0 < size <= pipe.room:
            pipe.took(size)
            kernel.unsent += size
        if kernel.now <= 10.0:
            begun = kernel.delivered
    assert kernel.delivered - begun > 0.75 * kernel.rate


def test_a_low_rate_from_a_burst_is_looked_for_anew_when_bulk_comes_and_not_while_it_flows():
    pipe = Pipe()

    def look(now):
        pipe.look(now, Below(int(now * 14e3), 1448, 0, 0.1, 0.1, 0.0, 0))

    for step in range(100):
        look(step * 0.01)
        pipe.took(20)
    bbr = pipe._bbr
    bbr.state = State.CYCLE  # a burst filled the room for a moment, in somebody else's queue
    for step in range(100, 200):
        look(step * 0.01)
        assert not bbr.is_starting
        pipe.took(20)
    for step in range(200, 210):
        pipe.took(pipe.room)
        look(step * 0.01)
        assert pipe._bbr.is_starting
    pipe._bbr.state = State.CYCLE  # the path is that slow
    for step in range(210, 300):
        pipe.took(pipe.room)
        look(step * 0.01)
        assert not pipe._bbr.is_starting


def _bursts(pipe: Pipe, kernel: Kernel, burst: int, every_ms: int, steps: int):
    """A burst now and then, and a little all the time; yields each millisecond, when it is over."""
    left = 0
    for step in range(steps):
        kernel.step()
        if step % every_ms == 0:
            left = burst
        if pipe.is_due(kernel.now):
            pipe.look(kernel.now, kernel.below())
        size = min(pipe.room, left or (100 if step % 100 == 0 else 0))
        if size > 0:
            pipe.took(size)
            kernel.unsent += size
            left = max(0, left - size)
        yield step


@pytest.mark.parametrize("is_always", [False, True])
def test_bursts_over_a_slow_path_make_a_queue_once_and_not_each_time(is_always):
    """A page every three seconds at 1 Mbit/s: its rate is looked for again from what is known on."""
    kernel = Kernel(125e3, 0.05, is_greedy=True)
    worst = 0.0
    for step in _bursts(Pipe(is_always), kernel, 125_000, 3000, 21_000):
        if step >= 6000:
            worst = max(worst, kernel.queue / kernel.rate)
    assert worst < 0.2


@pytest.mark.parametrize("rate", [16e3, 32e3])
@pytest.mark.parametrize("is_always", [False, True])
def test_small_bursts_over_a_slow_path_make_a_queue_once_though_a_start_has_room_for_more(
    is_always, rate
):
    """31 KB every four seconds, and a little all the time, at 128 and 256 kbit/s: the queue is its own."""
    kernel = SmoothingKernel(rate, 0.05, is_greedy=True)
    worst = 0.0
    for step in _bursts(Pipe(is_always), kernel, 31_000, 4000, 32_000):
        if step >= 8000:
            worst = max(worst, (kernel.queue + kernel.unsent) / kernel.rate)
    assert worst * rate < 12_000, "what it was all of: 31 KB, a second and more"


def test_a_source_that_makes_a_queue_has_enough_though_there_is_room_at_every_look():
    """Else the start would not end, and its window would be the queue."""
    kernel = Kernel(12.5e6, 0.1, is_greedy=True)
    pipe = Pipe(is_always=True)
    while kernel.now < 6.0:
        kernel.step()
        if pipe.is_due(kernel.now):
            pipe.look(kernel.now, kernel.below())
            size = max(0, pipe.room - 100)  # its last bytes do not fit
            pipe.took(size)
            kernel.unsent += size
        if kernel.now <= 4.0:
            kernel.delays.clear()
    assert sorted(kernel.delays)[len(kernel.delays) // 2] < 0.030


def test_acknowledgements_that_are_taken_late_and_many_at_once_are_no_rate():
    """A megabyte a second leaves; for 50 ms little is taken of what comes back, which takes 100 ms."""
    pipe = Pipe(is_always=True)
    for step in range(1, 120):
        now = step * 0.01
        told_at = 0.45 + (now - 0.45) / 100 if 0.45 <= now < 0.5 else now
        delivered = int(1e6 * max(0.0, told_at - 0.1))
        pipe.look(now, Below(delivered, int(1e6 * now) - delivered, 0, 0.1, 0.1, 0.0, 0))
        assert pipe._bbr.rate < 1.15e6
    assert pipe._bbr.rate > 0.9e6


@pytest.mark.parametrize("rate", [2.5e6, 12.5e6])
def test_a_late_loop_makes_no_burst_of_what_it_missed(rate):
    """For 60 ms of each 300 it takes no acknowledgements, and then all of them: room for 60 ms at once."""
    kernel = Kernel(rate, 0.1, is_greedy=True)
    pipe = Pipe(is_always=True)
    taken: deque[int] = deque(maxlen=20)
    begun = 0
    for step in range(8000):
        kernel.step()
        size = 0
        if step % 300 >= 60:
            if pipe.is_due(kernel.now):
                pipe.look(kernel.now, kernel.below())
                assert pipe.room <= TURN
            size = max(0, pipe.room)
            pipe.took(size)
            kernel.unsent += size
        taken.append(size)
        if step == 4000:
            begun = kernel.delivered
        if step > 4000:
            assert sum(taken) < rate * CYCLE[0] * TURN_GAIN * (0.020 + LATE_S) + TURN
    assert kernel.delivered - begun > 0.8 * 4 * rate


def test_a_turn_that_is_behind_its_pace_is_followed_by_the_next_without_a_pause():
    """But not within the same turn of the loop: only once others had theirs."""
    pipe = Pipe(is_always=True)
    for step in range(1, 200):
        now = step * 0.001
        pipe.look(
            now, Below(12_500 * max(0, step - 50), 12_500 * min(step, 50), 0, 0.05, 0.05, 0, 0)
        )
        pipe.took(pipe.room)
    now += 0.02
    pipe.look(now, Below(12_500 * 199, 0, 0, 0.05, 0.05, 0, 0))
    assert pipe.room == TURN and pipe.pause_s == 0.0
    pipe.took(TURN)
    assert not pipe.is_due(now)
    pipe.be_due()
    assert pipe.is_due(now)


@pytest.mark.parametrize("rate", [1.25e6, 12.5e6])
def test_turn_by_turn_the_path_is_full(rate):
    kernel = Kernel(rate, 0.1, is_greedy=True)
    pipe = Pipe(is_always=True)
    for step in range(8000):
        kernel.step()
        if pipe.is_due(kernel.now):
            pipe.look(kernel.now, kernel.below())
        size = max(0, pipe.room)
        pipe.took(size)
        kernel.unsent += size
        if step == 4000:
            begun = kernel.delivered
    assert kernel.delivered - begun > 0.93 * 4 * rate


def test_near_paths_are_not_bounded_and_seldom_looked_at():
    pipe = Pipe()
    pipe.look(5.0, Below(10**6, 10**6, 10**6, 0.004, 0.0002, 0.0, 0))
    assert not pipe.is_bounding
    assert not pipe.is_due(5.0 + 0.9 * LOOK_NEAR_S)
    assert pipe.is_due(5.0 + LOOK_NEAR_S)


def test_a_slow_path_gets_some_kilobytes_at_a_time():
    kernel = Kernel(8_000, 0.2, is_greedy=True)
    run(kernel, 90.0)
    assert kernel.unsent + kernel.inflight <= 16 * 1024


def test_tcp_info_is_read_from_the_right_places():
    fields = {16: 1000, 24: 50, 28: 20, 32: 5, 36: 3, 68: 103_000, 100: 7, 144: 4321, 148: 99_000}
    info = bytearray(280)
    for offset, value in fields.items():
        struct.pack_into("=I", info, offset, value)
    struct.pack_into("=Q", info, 104, 12_000_000)
    struct.pack_into("=Q", info, 120, 10**10)
    assert below_of(bytes(info)) == Below(
        10**10 + 20_000, 28_000, 4321, 0.103, 0.099, 12_000_000.0, 7000
    )
    struct.pack_into("=I", info, 148, 0xFFFFFFFF)
    assert below_of(bytes(info)).rtt_min_s == 0.0
    assert below_of(bytes(100)) is None


def test_this_kernel_tells_what_was_delivered():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
    ):
        far, _ = listener.accept()
        with far:
            near.sendall(bytes(5000))
            far.recv(5000, socket.MSG_WAITALL)
            far.sendall(b"!")  # takes the acknowledgement along
            near.recv(1)
            below = below_of(near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 280))
    assert below is not None
    assert 5000 <= below.delivered <= 5001 and below.unsent == 0
    assert 0.0 < below.rtt_min_s <= below.rtt_s
