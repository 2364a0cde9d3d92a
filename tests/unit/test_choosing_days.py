"""The chooser over simulated days (a short form of `make sim-chooser`)."""

from __future__ import annotations

import statistics

from benchmarks.choosing import run


def test_sites_leave_at_good_exits_and_sessions_stay() -> None:
    scores, ours = run(seed=3, client="berlin", days=8, site_count=150, hours=(9.0, 19.0))
    mine = scores["uservpn"]
    share = {name: score.good / score.visits for name, score in scores.items()}
    assert share["uservpn"] >= 0.93
    assert all(share["uservpn"] > share[name] for name in share if name != "uservpn")
    assert mine.needless == 0
    assert scores["url-test"].needless > 0  # the comparison sees what it should
    extra = statistics.median(more / flight for _, more, flight in ours.waits)
    assert extra < 1
    assert max(wait for wait, _, _ in ours.waits) <= 300.5


def test_a_run_replays_exactly() -> None:
    one, _ = run(seed=1, client="tokyo", days=2, site_count=40, hours=(8.0, 23.0))
    two, _ = run(seed=1, client="tokyo", days=2, site_count=40, hours=(8.0, 23.0))
    assert one == two
