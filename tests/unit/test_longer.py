"""Laws of a path that becomes longer while it carries bulk: it is no rival's queue, and carries what it did.

10 Mbit/s, 50 ms, a queue of two round trips, in simulated time.
"""

from __future__ import annotations

import statistics

import pytest

from paths import SIZE_MAX, WIRE, Conditions, Line
from uservpn.tunnel.longer import LongerPath

RATE = 10e6 / 8
RTT = 0.05
BEST = (SIZE_MAX - 25) / (SIZE_MAX + WIRE)


@pytest.mark.parametrize(("factor", "loss"), [(3.0, 0.0), (3.0, 0.02), (1.5, 0.02)])
def test_a_path_that_becomes_longer_is_filled_again_without_a_queue(factor: float, loss: float):
    line = Line(Conditions(RATE, RTT, int(2 * RATE * RTT), loss), seed=2)
    line.fill()
    line.clock.run(4.0)
    for way in (line.forth, line.back):
        way.now_is.rtt_s = factor * RTT
    assert line.goodput(6.0, 9.0) >= 0.6 * (1 - loss) * BEST * RATE
    line.forth.delays.clear()
    assert line.goodput(9.0, 13.0) >= 0.93 * (1 - loss) * BEST * RATE
    assert statistics.median(line.forth.delays) < 0.05


def test_a_path_that_becomes_longer_and_wider_is_filled_too():
    line = Line(Conditions(RATE, RTT, int(2 * RATE * RTT), 0.02), seed=2)
    line.fill()
    line.clock.run(4.0)
    for way in (line.forth, line.back):
        way.now_is.rtt_s = 3 * RTT
    line.forth.now_is.rate = 4 * RATE
    assert line.goodput(7.0, 10.0) >= 0.85 * 0.98 * BEST * 4 * RATE


def test_the_same_round_trip_with_much_less_on_the_path_is_the_paths():
    longer = LongerPath()
    for inflight in (100_000, 101_000, 99_000, 60_000, 60_000):
        assert longer.note(0.150, inflight) is None
    assert longer.note(0.151, 50_000) == 0.150


def test_a_queue_that_shrinks_with_what_is_on_the_path_is_one():
    longer = LongerPath()
    for step in range(20):
        assert longer.note(0.150 - 0.005 * step, 100_000 - 5_000 * step) is None


def test_as_long_as_as_much_is_on_it_nothing_is_known():
    longer = LongerPath()
    for step in range(50):
        assert longer.note(0.150, 100_000 - 10_000 * (step % 3)) is None


def test_what_was_seen_before_another_round_trip_does_not_count():
    longer = LongerPath()
    longer.note(0.150, 100_000)
    longer.note(0.150, 60_000)
    longer.note(0.120, 60_000)
    for _ in range(10):
        assert longer.note(0.120, 60_000) is None
