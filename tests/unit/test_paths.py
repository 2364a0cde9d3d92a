"""Laws of one path that loses messages: it is filled, its queue stays short, what is lost comes soon."""

from __future__ import annotations

import random
import statistics

import pytest

from paths import SIZE_MAX, WIRE, Conditions, Line
from uservpn.errors import Fault
from uservpn.tunnel.bbr import Bbr
from uservpn.tunnel.congestion import Sample
from uservpn.tunnel.limits import RESEND_TRICKLE
from uservpn.tunnel.path import Path
from uservpn.tunnel.tunnel import Tunnel
from uservpn.types import LinkId
from world import take

MBIT = 1e6 / 8
RATE = 20 * MBIT
"""As 100 Mbit/s in everything that is asked here, in less time."""
QUEUE = int(RATE * 0.1)
BEST = (SIZE_MAX - 25) / (SIZE_MAX + WIRE)
"""Share of the path's bytes that can be a stream's."""


@pytest.mark.parametrize(("loss", "share"), [(0.0, 0.99), (0.01, 0.97), (0.03, 0.95), (0.1, 0.80)])
def test_a_long_path_is_filled_whatever_it_loses(loss, share):
    """100 ms, of what is possible after the loss; from the sixth second on."""
    line = Line(Conditions(RATE, 0.1, QUEUE, loss=loss), seed=3)
    line.fill()
    got = line.goodput(5.0, 8.0)
    assert got >= share * (1 - loss) * BEST * RATE
    assert line.path.spurious_count <= 0.01 * line.path.sent_count


@pytest.mark.parametrize(("loss", "share"), [(0.0, 0.85), (0.01, 0.85), (0.03, 0.8)])
def test_a_path_is_filled_within_two_seconds_also_behind_gaps(loss, share):
    """The stream's window has to grow while the bytes wait behind the first gaps."""
    line = Line(Conditions(100 * MBIT, 0.1, loss=loss), seed=3)
    line.fill()
    got = line.goodput(1.0, 2.5)
    assert got >= share * (1 - loss) * BEST * 100 * MBIT


@pytest.mark.parametrize(("loss", "p95"), [(0.0, 1.5), (0.03, 1.6), (0.1, 2.0)])
def test_an_interactive_stream_beside_bulk_hardly_waits(loss, p95):
    """In round trips: less than half of one more at the median; small ones leave twice if many get lost."""
    line = Line(Conditions(2 * RATE, 0.1, 2 * QUEUE, loss=loss), seed=2)
    line.fill()
    line.ask()
    line.clock.run(3.0)
    line.trips.clear()
    line.clock.run(8.5)
    trips = sorted(line.trips)
    assert len(trips) > 100
    assert statistics.median(trips) < 0.15
    assert trips[int(len(trips) * 0.95)] < p95 * 0.1
    if loss:
        copied = line.path.copied_count + line.sink.path.copied_count
        assert copied > 2 * len(trips)  # a question and an answer each
        assert line.path.spurious_count < 0.1 * len(trips)  # copies are none


def test_an_interactive_stream_alone_recovers_without_traffic_behind_it():
    """The tail of a sparse stream is lost now and then: an empty message finds it."""
    line = Line(Conditions(RATE, 0.1, QUEUE, loss=0.03), seed=5)
    line.ask(0.4)
    line.clock.run(120.0)
    trips = sorted(line.trips)
    assert len(trips) > 200
    assert trips[int(len(trips) * 0.95)] < 0.25
    assert trips[-1] < 1.5


def test_after_a_black_hole_the_path_is_full_again_within_half_a_second():
    line = Line(Conditions(RATE, 0.1, QUEUE), seed=4)
    line.fill()
    line.clock.run(4.0)
    line.forth.is_hole = line.back.is_hole = True
    line.clock.run(9.0)
    sent = line.path.sent
    line.forth.is_hole = line.back.is_hole = False
    line.clock.run(9.0 + 0.5)
    assert line.path.sent > sent + 10_000
    got = line.goodput(10.0, 12.0)
    assert got >= 0.9 * BEST * RATE


def _probes(tunnel: Tunnel, path: Path, start: float, end: float) -> list[float]:
    """When the tunnel said something over a path from which nothing comes back."""
    sent = []
    while (due := tunnel.next_deadline()) is not None and due <= end:
        start = max(start, due)
        tunnel.on_deadline(start)
        if take(tunnel, 1 << 20, 1400, start):
            sent.append(start)
    return sent


def test_a_silent_path_is_asked_often_only_while_a_stream_is_open():
    tunnel = Tunnel(1, 2, random.Random(1).randrange)
    path = Path(LinkId(1), Bbr(0.05), 0.05, True)
    tunnel.path_up(path, False)
    stream = tunnel.open("site.test", 80, None)
    take(tunnel, 1 << 20, 1400, 10.0)
    assert 30 <= len(_probes(tunnel, path, 10.0, 20.0)) <= 40
    tunnel.reset(stream, Fault.CANCELLED)
    take(tunnel, 1 << 20, 1400, 20.0)
    tunnel.take_events()
    assert not tunnel.streams
    idle = _probes(tunnel, path, 20.0, 80.0)
    assert 5 <= len(idle) <= 10, idle
    tunnel.open("site.test", 80, None)
    take(tunnel, 1 << 20, 1400, 80.0)
    again = _probes(tunnel, path, 80.0, 81.0)
    assert len(again) >= 2 and again[0] <= 80.31


def test_a_rate_that_falls_by_ten_is_followed_within_two_seconds():
    """And what was in the queue by then is gone."""
    line = Line(Conditions(RATE, 0.1, QUEUE), seed=4)
    line.fill()
    line.clock.run(4.0)
    line.forth.now_is.rate = RATE / 10
    line.forth.now_is.queue = QUEUE
    line.clock.run(8.0)
    line.forth.delays.clear()
    got = line.goodput(8.0, 14.0)
    assert got >= 0.9 * BEST * RATE / 10
    assert statistics.median(line.forth.delays) < 0.05


def test_a_third_lost_for_seconds_leaves_the_rest():
    line = Line(Conditions(RATE, 0.1, QUEUE), seed=4)
    line.fill()
    line.clock.run(3.0)
    line.forth.now_is.loss = line.back.now_is.loss = 0.3
    got = line.goodput(4.0, 8.0)
    assert got >= 0.2 * BEST * RATE
    line.forth.now_is.loss = line.back.now_is.loss = 0.0
    got = line.goodput(9.5, 10.5)
    assert got >= 0.9 * BEST * RATE


def test_reordering_is_learned_and_not_taken_for_loss():
    """Jitter of a third of the round trip: the window widens; what is resent for nothing is counted."""
    line = Line(Conditions(RATE, 0.1, QUEUE, jitter_s=0.03), seed=6)
    line.fill()
    line.clock.run(4.0)
    path = line.path
    sent, spurious = path.sent_count, path.resent_count
    got = line.goodput(4.0, 8.0)
    assert got >= 0.9 * BEST * RATE
    assert path.resent_count - spurious < 0.02 * (path.sent_count - sent)


def test_a_message_too_large_for_the_path_it_is_resent_on_is_cut_anew():
    """The path got narrower: what was lost at the old size comes in pieces, once and in order."""
    line = Line(Conditions(20 * MBIT, 0.02, loss=0.2), seed=7)
    line.source.size_max = 8000
    text = bytes(range(256)) * 4000
    got = bytearray()
    line.sink.on_data = lambda stream, chunk: got.extend(chunk)
    tunnel = line.source.tunnel
    stream = tunnel.open("bulk.test", 80, None)
    rest = memoryview(text)

    def more() -> None:
        nonlocal rest
        while len(rest):
            chunk, rest = rest[:65536], rest[65536:]
            if not tunnel.write(stream, chunk):
                break
        line.source.kick()

    stream.owner = more
    more()
    line.clock.run(0.06)
    line.source.size_max = 1200
    line.clock.run(20.0)
    assert bytes(got) == text
    assert line.source.tunnel.outbox.recut_count > 0
    assert tunnel.cache_size == 0


def test_what_is_cut_anew_counts_as_sent():
    """Else all that was on a connection that broke would be queued on the next one at once."""
    tunnel = Tunnel(7, 1, random_below=lambda limit: 0)
    old, new = Path(1), Path(2)
    tunnel.path_up(old, False)
    stream = tunnel.open("site.test", 80, None)
    stream.send_limit = 1 << 22
    for _ in range(8):
        tunnel.write(stream, bytes(65536))
        tunnel.take_messages(1 << 20, 1 << 17, old, 80.0)
    tunnel.path_up(new, False)
    tunnel.path_down(old)
    tunnel.outbox.want(1 << 40)
    tunnel.outbox.report_over(0.0, 0, 81.0)
    messages = tunnel.take_messages(16384, 4096, new, 81.0)
    assert 16384 <= sum(len(payload) for _, payload in messages) <= 16384 + 2 * 65536
    assert tunnel.outbox.resend


def test_what_is_cut_anew_counts_towards_the_budget_of_resends():
    tunnel = Tunnel(7, 1, random_below=lambda limit: 0)
    old, new = Path(1), Path(2)
    tunnel.path_up(old, False)
    tunnel.path_up(new, False)
    stream = tunnel.open("site.test", 80, None)
    tunnel.write(stream, bytes(60_000))
    tunnel.take_messages(1 << 20, 1 << 17, old, 80.0)
    tunnel.path_left(old, 81.0)
    tunnel.outbox.want(1 << 40)
    tunnel.outbox.report_over(0.0, 0, 81.0)
    left = new.resending.left
    tunnel.take_messages(1 << 20, 1400, new, 81.0)
    assert left - new.resending.left > 60_000


@pytest.mark.parametrize(("loss", "is_spent"), [(0.3, False), (0.75, True)])
def test_resends_have_a_budget_that_a_working_path_does_not_feel(loss, is_spent):
    """Bytes sent again against bytes confirmed; beyond it the path goes on by a trickle, and bulk waits."""
    line = Line(Conditions(RATE, 0.05, QUEUE), seed=4)
    line.fill()
    line.clock.run(1.0)
    line.path.resending.left = 100_000  # as after a long hole
    confirmed, sent, resent = line.path.delivered, line.path.sent, line.path.resent_count
    line.forth.now_is.loss = loss
    line.clock.run(6.0)
    path = line.path
    assert (path.resending.waits > 0) == is_spent
    if is_spent:
        assert path.resending.waits <= 5.0 / 0.05 + 1
        spent = 100_000 + (path.delivered - confirmed) + path.resending.waits * RESEND_TRICKLE
        assert (path.resent_count - resent) * SIZE_MAX <= 1.05 * spent  # no message is longer
        assert path.sent - sent < 0.5 * 5.0 * RATE
    line.forth.now_is.loss = 0.0
    assert line.goodput(8.0, 9.0) >= 0.5 * BEST * RATE  # and recovers


def test_a_tunnel_that_keeps_nothing_asks_for_nothing_when_a_path_falls_silent():
    """Else each new port of a router made an idle pair of nodes say a dozen empty messages."""
    tunnel = Tunnel(7, 1, random_below=lambda limit: 0)
    old, new = Path(1), Path(2)
    tunnel.path_up(old, False)
    tunnel.path_up(new, False)
    tunnel.path_left(old, 80.0)
    assert not tunnel.has_outgoing()
    assert tunnel.take_messages(1 << 20, 1 << 17, new, 80.0) == []
    stream = tunnel.open("site.test", 80, None)
    tunnel.write(stream, b"something")
    assert tunnel.take_messages(1 << 20, 1 << 17, old, 81.0)
    tunnel.path_left(old, 82.0)
    assert tunnel.has_outgoing()
    assert tunnel.take_messages(1 << 20, 1 << 17, new, 82.0)


def test_a_trickle_in_somebody_elses_queue_does_not_end_the_start():
    """Reports beside bulk of the other way, and one of them lost: the path may carry far more."""
    controller = Bbr(0.1)
    for step in range(200):
        rtt_s, lost = (0.1, 0) if step < 10 else (0.25, 1400 if step % 5 == 0 else 0)
        controller.on_sample(
            Sample(step * 0.1, 4000, lost, 3000, rtt_s, 40e3, is_limited=True, is_round=True)
        )
    assert controller.is_starting
    assert controller.window >= 32 * 1400
