"""Laws of a narrow path with a deep queue: bulk alone there fills no queue but its least window's.

A queue of two seconds, as routers of homes and mobile networks have; in simulated time.
"""

from __future__ import annotations

import pytest

from paths import Conditions, Line

DEEP_S = 2.0


@pytest.mark.parametrize(
    ("kbit", "rtt_s", "most_s"),
    [
        (128, 0.1, 0.5),
        (256, 0.02, 0.15),
        (500, 0.02, 0.15),
        (500, 0.1, 0.2),
        (1000, 0.02, 0.1),
        (2000, 0.02, 0.1),
    ],
)
def test_bulk_alone_takes_no_queue_of_its_own_for_a_rivals(kbit: int, rtt_s: float, most_s: float):
    rate = kbit * 1000 / 8
    line = Line(Conditions(rate, rtt_s, int(DEEP_S * rate)), seed=1)
    line.fill()
    line.clock.run(25.0)
    line.forth.delays.clear()
    assert line.goodput(25.0, 50.0) >= 0.88 * rate
    delays = sorted(line.forth.delays)
    assert delays[int(0.95 * len(delays))] <= most_s


def test_the_queue_of_the_start_runs_off_on_a_path_where_that_takes_many_seconds():
    rate = 64_000 / 8
    line = Line(Conditions(rate, 0.3, int(5.0 * rate)), seed=1)
    line.fill()
    line.clock.run(30.0)
    line.forth.delays.clear()
    assert line.goodput(30.0, 60.0) >= 0.8 * rate
    assert max(line.forth.delays) <= 2.0
