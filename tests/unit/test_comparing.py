"""Two links are compared while bulk flows: throttled datagrams lose their traffic, and get it back."""

from __future__ import annotations

import pytest

from paths import Conditions
from two_links import TCP, UDP, Settled, TwoLinks, direct_links, state_of
from uservpn.node.comparing import COUNT_S, EVERY_S, FIRST_S, HURRY_S, START_S, STEADY_S, Comparing
from uservpn.node.scheduling import Schedule
from uservpn.tunnel.bbr import Bbr
from uservpn.tunnel.path import Flight, Path

STEP_S = 0.01


class Flow:
    """Bulk over a schedule: each link delivers at its rate (bytes/s) while it is used."""

    def __init__(self, links=None) -> None:
        self.links = links or direct_links()
        self.schedule = Schedule()
        self.now = 0.0
        self.alone: dict[int, float] = {}
        """Rates of a link that nothing is used beside, where they differ."""
        self.shares: list[str] = []
        """What each step was: one link's name, or two with the first one in front."""
        self.express: list[int | None] = []
        """And which link had all but bulk, if that was another one."""

    @property
    def path(self):
        return next(path for state, path in self.links if state.link == UDP)

    @property
    def comparing(self) -> Comparing:
        return self.schedule.comparing

    def run(self, seconds, rates, slow_s=0.0, busy=1.0, quiet=0.0) -> int:
        """The link in use at the end.

        For `slow_s` from its first use the one beside delivers next to nothing. `busy`: for this share of the
        time bulk waits. For `quiet` of each half second nothing is to be sent, and nobody asks.
        """
        since = None
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_S
            if self.now % 0.5 < 0.5 * quiet:
                continue
            used = self.schedule.current
            choice = self.schedule.choose(self.links, self.now % 0.1 <= 0.1 * busy, self.now)
            paths = [choice.path, *([choice.beside[1]] if choice.beside else [])]
            since = self.now if since is None and choice.beside else since
            for path in paths:
                is_slow = path.link != used and since is not None and self.now < since + slow_s
                rate = 1e4 if is_slow else rates[path.link]
                if len(paths) == 1:
                    rate = self.alone.get(path.link, rate)
                path.delivered += int(STEP_S * rate)
                path.rate = rate
            self.express.append(choice.express[0].link if choice.express else None)
            self.shares.append("+".join("udp" if p.link == UDP else "tcp" for p in paths))
        return self.schedule.current

    def compare(self, rates, **options) -> int:
        """One comparison, at once."""
        if self.comparing._at is not None:
            self.comparing._at = self.now - FIRST_S
        return self.run(FIRST_S + START_S + COUNT_S + 1.0, rates, **options)


def test_throttled_datagrams_lose_their_traffic_and_get_it_back():
    flow = Flow()
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    assert flow.compare({UDP: 5e6, TCP: 5e6}) == UDP


def test_a_link_to_come_back_is_tried_alone_where_both_share_one_bottleneck():
    """Beside the one in use it got a third; alone it does as much as both together."""
    flow = Flow()
    flow.alone = {UDP: 4.5e6}
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    flow.shares.clear()
    assert flow.compare({UDP: 1.2e6, TCP: 3.8e6}) == UDP
    first = flow.shares.index("udp+tcp")
    last = len(flow.shares) - flow.shares[::-1].index("udp+tcp")
    assert set(flow.shares[first:last]) == {"udp+tcp"}  # it goes first
    assert flow.shares[last] == "udp" and flow.shares[last:].count("tcp") <= 1


def test_only_bulk_tries_a_link_that_is_to_come_back():
    """If it is still throttled, what somebody waits for would crawl over it, or be lost."""
    flow = Flow()
    flow.alone = {UDP: 2e6}
    rates = {UDP: 1e6, TCP: 4e6}
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    assert set(flow.express) == {None}
    flow.shares.clear()
    flow.express.clear()
    assert flow.compare(rates) == TCP
    assert {share for share in flow.shares if share != "tcp"} == {"udp+tcp", "udp"}
    for share, express in zip(flow.shares, flow.express, strict=True):
        assert express == (None if share == "tcp" else TCP)


def test_a_link_that_is_still_throttled_a_little_stays_left_although_it_was_tried_alone():
    flow = Flow()
    flow.alone = {UDP: 2e6}
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    flow.shares.clear()
    assert flow.compare({UDP: 1e6, TCP: 4e6}) == TCP
    assert "udp" in flow.shares and flow.shares[-1] == "tcp"
    flow.alone = {}
    assert (
        flow.run(4.0, {UDP: 3e6, TCP: 1.5e6}) == UDP
    )  # it is the other one's rate that has fallen now


def test_a_link_that_is_still_throttled_to_next_to_nothing_is_not_tried_alone():
    flow = Flow()
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    flow.shares.clear()
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    assert "udp" not in flow.shares


def test_a_link_that_falls_silent_while_it_is_tried_alone_gives_way_at_once():
    flow = Flow()
    flow.alone = {UDP: 0.0}
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    flow.comparing._at = flow.now
    while not flow.shares or flow.shares[-1] != "udp":
        flow.run(STEP_S, {UDP: 1.2e6, TCP: 3.8e6})
    flight = Flight(flow.path, flow.now, 1, None)
    flight.size = flow.path.inflight = 1000
    flow.path.flights.append(flight)
    flow.path.silent_count = 2
    assert flow.run(3 * STEP_S, {UDP: 0, TCP: 5e6}) == TCP
    assert flow.shares[-1] == "tcp"


def test_a_link_that_was_left_is_compared_a_minute_later_and_once_more_before_that_gets_rarer():
    """One comparison may be lost by chance, as when it falls between two transfers."""
    flow = Flow()
    waits = []
    for _ in range(4):
        assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
        waits.append(flow.comparing._at - flow.now)
    assert [round(wait / 60) for wait in waits] == [1, 1, 2, 4]  # minutes


def test_a_comparison_waits_until_the_other_path_has_found_its_rate():
    """What it knew is from a time when it was throttled; its controller begins anew."""
    flow = Flow()
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    flow.path.is_lossy, flow.path.controller = True, Bbr(0.05)
    known = flow.path.controller
    assert flow.compare({UDP: 5e6, TCP: 5e6}, slow_s=0.9 * START_S) == UDP
    assert flow.path.controller is not known and flow.path.controller.is_starting


def test_short_transfers_do_not_compare_a_path_whose_rate_was_never_found():
    """What it has no room for, nearly all of each, the other one gets."""
    flow = Flow()
    flow.path.is_lossy, flow.path.controller = True, Bbr(0.05)
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == UDP
    flow.path.controller = Settled()
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP


def test_short_transfers_one_after_the_other_compare_nothing():
    assert Flow().compare({UDP: 1e5, TCP: 5e6}, busy=0.4) == UDP


def test_time_in_which_nothing_was_to_be_sent_is_none_in_which_bulk_waited():
    """Each of these transfers has ended before the next one begins, and nobody looked in between."""
    assert Flow().compare({UDP: 1e5, TCP: 5e6}, quiet=0.6) == UDP


def test_a_comparison_that_shows_nothing_new_is_made_ever_less_often():
    flow = Flow()
    for _ in range(2):
        assert flow.compare({UDP: 5e6, TCP: 1e6}) == UDP
    assert flow.comparing._at - flow.now > 100


def test_throttling_that_begins_after_long_shows_within_seconds():
    """Comparisons have become rare by then; the rate that fell tells."""
    flow = Flow()
    flow.run(600, {UDP: 5e6, TCP: 5e6})
    assert flow.schedule.current == UDP
    assert flow.comparing._at > flow.now + 60
    assert flow.run(4.0, {UDP: 1e5, TCP: 5e6}) == TCP


def test_a_path_that_became_slow_for_both_is_compared_no_more_often_than_is_good():
    flow = Flow()
    flow.run(600, {UDP: 5e6, TCP: 5e6})
    flow.shares.clear()
    flow.run(3 * HURRY_S, {UDP: 1e5, TCP: 1e5})
    steps = sum(share != "udp" for share in flow.shares)
    assert 0 < steps * STEP_S < 2 * (START_S + COUNT_S)  # once: then the rate is known to be low


def test_a_link_that_loses_nearly_all_is_compared_at_once():
    """A limiter that drops what is too much: nobody waits for the usual time."""
    flow = Flow()
    flow.path.controller = Bbr(0.1)  # it is far from having found its rate
    flow.path.choked_rounds = 3
    assert flow.run(START_S + COUNT_S + 0.1, {UDP: 1e5, TCP: 5e6}) == TCP


def test_throttling_that_begins_right_after_a_comparison_is_not_waited_out():
    flow = Flow()
    flow.run(FIRST_S + START_S + COUNT_S + 0.1, {UDP: 5e6, TCP: 5e6})
    assert flow.schedule.current == UDP and flow.comparing._at > flow.now + 0.9 * EVERY_S
    assert flow.run(4.0, {UDP: 1e5, TCP: 5e6}) == TCP


def test_a_connection_that_took_over_and_slows_down_is_compared_soon_as_well():
    """As when its path begins to lose packets, which it takes for congestion."""
    flow = Flow()
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    assert flow.run(4.0, {UDP: 5e6, TCP: 5e6}) == TCP
    assert flow.run(4.0, {UDP: 5e6, TCP: 1e6}) == UDP


@pytest.mark.parametrize("choked", [0, 3])
def test_a_link_that_lost_most_and_fell_silent_comes_back_by_a_comparison_only(choked):
    """One that only fell silent, as in a black hole, is tried again after a while."""
    flow = Flow()
    flow.run(1.0, {UDP: 5e6, TCP: 5e6})
    flow.path.choked_rounds = choked
    flow.comparing.fell_silent(flow.path, flow.links[0][1], flow.now)
    assert flow.comparing.preferred == (TCP if choked else None)
    assert flow.compare({UDP: 5e6, TCP: 5e6}) == UDP


def test_throttled_datagrams_are_compared_with_tcp_not_with_kcp_which_is_throttled_as_well():
    KCP = 8
    flow = Flow()
    state = state_of(KCP, "kcp")
    path = Path(KCP, None, 0.1)
    path.is_costly = True
    flow.links = [(state, path), *flow.links]
    assert flow.compare({UDP: 1e5, KCP: 1e5, TCP: 5e6}) == TCP


# --- what is no comparison -----------------------------------------------------------------------

AGAIN = 6


def _dialled_anew(flow: Flow) -> None:
    """The connection ended, and another one stands in its place."""
    state = state_of(AGAIN, "tcp", now=flow.now)
    datagrams = next(pair for pair in flow.links if pair[0].link == UDP)
    flow.links = [(state, Path(AGAIN, None, 0.1)), datagrams]


def test_a_connection_that_is_dialled_anew_carries_what_the_one_before_it_did():
    """It was the datagrams that were throttled: nobody has to find that out once more."""
    flow = Flow()
    rates = {UDP: 1e5, TCP: 5e6, AGAIN: 5e6}
    assert flow.compare(rates) == TCP
    _dialled_anew(flow)
    assert flow.run(STEP_S, rates) == AGAIN
    assert flow.comparing.preferred == AGAIN
    assert flow.compare({UDP: 5e6, AGAIN: 5e6}) == UDP  # and they can come back


def test_a_link_in_the_place_of_one_that_ended_is_compared_soon():
    """The network may be another one, where nothing is throttled."""
    flow = Flow()
    rates = {UDP: 1e5, TCP: 5e6, AGAIN: 5e6}
    for _ in range(4):
        assert flow.compare(rates) == TCP
    _dialled_anew(flow)
    assert flow.run(FIRST_S + START_S + COUNT_S + 1.0, {UDP: 5e6, AGAIN: 5e6}) == UDP


def test_while_the_only_connection_is_away_datagrams_carry_and_then_it_does_again():
    flow = Flow()
    rates = {UDP: 1e5, TCP: 5e6}
    assert flow.compare(rates) == TCP
    links, flow.links = flow.links, flow.links[1:]
    assert flow.run(1.0, rates) == UDP
    flow.links = links
    assert flow.run(STEP_S, rates) == TCP


def test_what_was_counted_of_a_link_that_ended_says_nothing_of_the_next_one():
    """It ended shortly before it would have been judged."""
    flow = Flow()
    flow.comparing._at = 0.0
    flow.run(1.0 + START_S + 0.9 * COUNT_S, {UDP: 5e6, TCP: 1e6})
    assert flow.shares[-1] == "udp+tcp"
    state = state_of(AGAIN, "udp", now=flow.now)
    flow.links = [flow.links[0], (state, Path(AGAIN, Settled(), 0.1))]
    assert flow.run(1.0, {AGAIN: 5e6, TCP: 1e6}) == AGAIN
    assert flow.comparing.preferred is None


def test_transfers_that_are_over_at_once_are_not_compared():
    """Throttled datagrams, which were left, would get the first bytes of each third one, and lose them."""
    flow = Flow()
    assert flow.compare({UDP: 1e5, TCP: 5e6}) == TCP
    flow.run(EVERY_S - FIRST_S, {UDP: 1e5, TCP: 5e6})
    flow.shares.clear()
    for _ in range(30):
        flow.run(0.3, {UDP: 1e5, TCP: 5e6})
        flow.now += 10.0  # nobody asks
    assert set(flow.shares) == {"tcp"}


def test_comparisons_that_there_was_too_little_for_get_rarer():
    flow = Flow()
    rates = {UDP: 1e5, TCP: 5e6}
    flow.run(2 * STEADY_S, rates, busy=0.4)
    waits = []
    for _ in range(6):
        flow.comparing._at = flow.now
        flow.run(START_S + COUNT_S + 0.2, rates, busy=0.4)
        waits.append(flow.comparing._at - flow.now)
    assert [round(wait, -1 if wait > 40 else 0) for wait in waits] == [4, 8, 16, 32, 60, 60]


# --- over one bottleneck -------------------------------------------------------------------------

RATE = 1.25e6
RTT = 0.05


@pytest.mark.parametrize(("queue", "seed"), [(1.0, 1), (3.0, 2)])
def test_bulk_over_one_bottleneck_leaves_throttled_datagrams_and_comes_back(queue, seed):
    """The first comparison after the limit's end brings it back, at next to no cost."""
    flow = TwoLinks(Conditions(RATE, RTT, int(queue * RATE * RTT)), seed)
    source, clock = flow.source, flow.clock
    comparing = source.schedule.comparing
    source.is_throttled, source.limit = True, RATE / 100
    while comparing.preferred != TCP:
        assert clock.now < 12.0
        clock.run(clock.now + 0.5)
    source.is_throttled = False
    clock.run(clock.now + 4.0)
    assert source.schedule.current == TCP and comparing._at > EVERY_S
    comparing._at = clock.now
    before = flow.sink.got
    clock.run(clock.now + 7.0)  # what the connection had taken before waits for its repairs
    assert source.schedule.current == UDP and comparing.preferred is None
    assert flow.sink.got - before > 0.75 * RATE * 7.0
