"""Laws of a path that others use, too: a TCP flow gets its share and leaves ours, flows of ours share alike.

10 Mbit/s, 50 ms; queues in round trips. The rival is CUBIC (tests/unit/references.py), as most TCP is.
"""

from __future__ import annotations

import statistics

import pytest

from cubic_window import BETA, CubicWindow
from paths import SIZE_MAX, WIRE, Conditions, Line
from references import TcpFlow

RATE = 10e6 / 8
RTT = 0.05
BEST = (SIZE_MAX - 25) / (SIZE_MAX + WIRE)


def _line(queue: float, seed: int = 1, **beside) -> Line:
    return Line(Conditions(RATE, RTT, int(queue * RATE * RTT)), seed=seed, **beside)


@pytest.mark.parametrize("queue", [0.5, 1.0, 4.0])
def test_a_tcp_flow_in_the_same_queue_gets_its_share_and_leaves_ours(queue):
    line = _line(queue)
    flow = TcpFlow(line.clock, line.forth, RTT)
    line.fill()
    line.clock.at(2.0, flow.start)
    line.clock.run(10.0)
    before = flow.got
    ours = line.goodput(10.0, 25.0) / BEST
    theirs = (flow.got - before) / 15.0
    assert 0.25 <= ours / (ours + theirs) <= 0.75
    assert ours + theirs >= 0.9 * RATE


@pytest.mark.parametrize("queue", [0.5, 4.0])
def test_a_second_flow_of_ours_gets_its_share_and_leaves_the_first_one_its_own(queue):
    line = _line(queue)
    other = _line(queue, 2, clock=line.clock, forth=line.forth)
    line.fill()
    line.clock.at(3.0, other.fill)
    line.clock.run(15.0)
    line.forth.delays.clear()
    before = other.sink.got
    first = line.goodput(15.0, 25.0)
    second = (other.sink.got - before) / 10.0
    assert 0.25 <= first / (first + second) <= 0.75
    assert first + second >= 0.9 * BEST * RATE
    assert statistics.median(line.forth.delays) < 0.06


@pytest.mark.parametrize("queue", [1.0, 4.0, 8.0])
def test_the_queue_is_short_again_soon_after_the_rival_left(queue):
    line = _line(queue)
    flow = TcpFlow(line.clock, line.forth, RTT)
    line.fill()
    line.clock.at(1.0, flow.start)
    line.clock.run(15.0)
    flow.is_over = True
    line.clock.run(20.0)
    line.forth.delays.clear()
    assert line.goodput(20.0, 23.0) >= 0.95 * BEST * RATE
    assert statistics.median(line.forth.delays) < 0.025


def test_a_rate_that_rises_by_ten_is_found_within_two_seconds():
    line = Line(Conditions(RATE / 4, RTT, int(2 * RATE * RTT)), seed=1)
    line.fill()
    line.clock.run(4.0)
    line.forth.now_is.rate = 2.5 * RATE
    assert line.goodput(6.0, 7.0) >= 0.95 * BEST * 2.5 * RATE


def test_a_cubic_window_comes_back_to_where_it_was_and_then_tries_more():
    """RFC 9438, 4.2: after K = cbrt(W_max (1 - beta) / C) seconds it is W_max again, and flat there."""
    message, rtt = 1000, 0.1
    window = CubicWindow(1_000_000, message)
    window.grow(200_000, rtt, 0.0)
    assert window.size == 1_200_000  # before any loss by all that comes
    window.reduce()
    assert window.size == BETA * 1_200_000
    peak = (1200 * (1 - BETA) / 0.4) ** (1 / 3)
    sizes = {}
    for step in range(int((peak + 4) / rtt)):
        window.grow(int(window.size), rtt, step * rtt)
        sizes[step] = window.size
    assert sizes[int(peak / rtt)] == pytest.approx(1_200_000, rel=0.03)
    assert sizes[int((peak + 1) / rtt)] == pytest.approx(1_200_000, rel=0.03)
    assert window.size > 1_210_000
    window.reduce()
    low = window.size
    window.reduce()  # below the last maximum: more is given up
    assert window._top == pytest.approx(low * (1 + BETA) / 2)


def test_a_small_cubic_window_grows_like_reno():
    window = CubicWindow(20_000, 1000)
    window.reduce()
    before = window.size
    for step in range(10):
        window.grow(int(window.size), 0.01, step * 0.01)
    assert window.size - before == pytest.approx(10 * 1000 * 3 * (1 - BETA) / (1 + BETA), rel=0.01)
