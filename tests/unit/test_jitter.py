"""Laws of paths that hold packets back and let them go together, and of those that shuffle them.

Wi-Fi and mobile networks keep the order: what would be early waits for what is late. The window has to last
for that long. 50 ms, 20 Mbit/s and a queue of one round trip if nothing else is said; simulated time.
"""

from __future__ import annotations

import pytest

from paths import SIZE_MAX, WIRE, Conditions, Line
from uservpn.tunnel.bunches import LONGEST_S, ROUNDS, Bunches

RATE = 20e6 / 8
RTT = 0.05
BEST = (SIZE_MAX - 25) / (SIZE_MAX + WIRE)


@pytest.mark.parametrize("loss", [0.0, 0.01])
@pytest.mark.parametrize(
    ("jitter_s", "keeps_order", "slot_s"),
    [(0.025, True, 0.0), (0.1, True, 0.0), (0.1, True, 0.02), (0.05, False, 0.0)],
)
def test_bulk_fills_a_path_with_jitter(jitter_s, keeps_order, slot_s, loss):
    path = Conditions(RATE, RTT, int(RATE * RTT), loss, jitter_s, keeps_order, slot_s)
    line = Line(path, seed=1)
    line.fill()
    line.ask(0.25)
    assert line.goodput(4.0, 9.0) >= 0.8 * (1 - loss) * BEST * RATE


@pytest.mark.parametrize(("fall", "jitter_s"), [(10, 0.1), (10, 0.03), (30, 0.0)])
def test_after_the_rate_fell_the_queue_runs_off(fall, jitter_s):
    """Round trips take seconds then; what is seen of them while the queue runs off is not the path's."""
    rate = 4e6 / 8
    path = Conditions(rate, RTT, int(rate * 4.0 / fall), 0.0, jitter_s, True, 0.02)
    line = Line(path, seed=1)
    line.fill()
    line.clock.run(8.0)
    line.forth.now_is.rate = rate / fall
    line.clock.run(38.0)
    line.forth.delays.clear()
    assert line.goodput(38.0, 48.0) >= 0.75 * rate / fall
    delays = sorted(line.forth.delays)
    assert delays[len(delays) // 2] <= 0.6


def test_a_path_that_delivers_evenly_has_no_bunches_to_speak_of():
    bunches = Bunches()
    for step in range(1000):
        bunches.note(step // 50, 2_500, RATE, 0.001 * step)
    assert bunches.size <= 2_501


def test_what_comes_at_once_after_a_pause_is_a_bunch_for_some_rounds():
    bunches = Bunches()
    for step in range(20):
        for _ in range(50):  # 20 ms' worth every 20 ms
            bunches.note(step, 1_000, RATE, 0.02 * step)
    assert 49_000 <= bunches.size <= 50_001
    for step in range(20 + ROUNDS + 1):
        bunches.note(20 + step, 2_500, RATE, 0.4 + 0.001 * step)
    assert bunches.size <= 2_501


def test_a_bunch_is_never_larger_than_the_path_is_long():
    bunches = Bunches()
    bunches.note(0, 1 << 30, RATE, 1.0)
    assert bunches.size == LONGEST_S * RATE
