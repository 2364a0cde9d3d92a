"""How long a transfer stands still when something happens to its path, in simulated time: 100 ms, 10 Mbit/s.

What the kernel adds is measured in namespaces (tests/netns/test_transfers_netns.py).
"""

from __future__ import annotations

import pytest

from stalls import Transfer, black_hole, blocked, moved, narrow, reset

BOTH = ("tcp", "udp")
WAYS = pytest.mark.parametrize("is_up", [False, True], ids=["down", "up"])


@WAYS
def test_blocked_udp_is_left_after_a_question_and_its_repetition(is_up):
    """A round trip and a report's time until it is noticed, one and a half until it is sure."""
    transfer = Transfer(BOTH, is_up)
    assert transfer.carriers() == {"udp"}
    assert transfer.stall(blocked("udp"), 1.5) <= 0.35
    assert transfer.carriers() == {"tcp"}


@pytest.mark.parametrize("seed", [1, 2])
def test_blocked_udp_is_left_as_soon_after_a_black_hole_in_which_tcp_was_silent_too(seed):
    """What carries nothing has nothing confirmed: that TCP is there again, its link has heard."""
    transfer = Transfer(BOTH, seed=seed)
    transfer.stall(black_hole(2.9), 2.2)
    assert transfer.stall(blocked("udp"), 2) <= 0.5
    assert transfer.carriers() == {"tcp"}


@WAYS
@pytest.mark.parametrize("protocols", [("udp",), BOTH], ids=",".join)
def test_a_path_that_swallows_large_messages_costs_two_round_trips(protocols, is_up):
    """And is used with smaller ones, not left."""
    transfer = Transfer(protocols, is_up)
    transfer.run(1.5)  # the path is full
    assert transfer.stall(narrow, 1.5) <= 0.35
    assert transfer.carriers() == {"udp"}


@pytest.mark.parametrize("protocols", [("udp",), BOTH], ids=",".join)
def test_after_a_black_hole_datagrams_go_on_within_half_a_second(protocols):
    transfer = Transfer(protocols)
    assert transfer.stall(black_hole(2.0), 2) - 2.0 <= 0.4


@WAYS
@pytest.mark.parametrize("seconds", [2.5, 5.0])
def test_after_a_black_hole_a_fresh_connection_goes_on(seconds, is_up):
    """The kernel's own retransmission would come after 1.1 to 2 s; a cut may also hit a dial's packets."""
    transfer = Transfer(("tcp",), is_up)
    assert transfer.stall(black_hole(seconds), 2) - seconds <= 0.7


def test_a_reset_connection_is_replaced_within_four_round_trips():
    assert Transfer(("tcp",)).stall(reset, 2) <= 0.4


@pytest.mark.parametrize("protocols", [("tcp",), ("udp",), BOTH], ids=",".join)
def test_another_address_costs_half_a_second(protocols):
    assert Transfer(protocols).stall(moved, 2) <= 0.5
