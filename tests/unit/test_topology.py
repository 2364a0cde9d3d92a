"""Who keeps a link to whom: connected, few, spread, and stable."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from uservpn.mesh.topology import HOMES, kept_by_other, kept_by_server, linked_with_server


@pytest.mark.parametrize("count", [2, 5, 9, 10, 32, 100, 254])
def test_servers_are_connected_by_few_links(count):
    """Everybody reaches everybody in a few hops; no link is kept from both sides."""
    servers = random.Random(count).sample(range(1, 255), count)
    links = {(me, other) for me in servers for other in kept_by_server(me, servers)}
    assert all((b, a) not in links for a, b in links)
    near = {
        me: {b for a, b in links if a == me} | {a for a, b in links if b == me} for me in servers
    }
    assert near == {me: linked_with_server(me, servers) for me in servers}
    most = max(map(len, near.values()))
    assert most <= 8 if count <= 9 else most <= 2 * count.bit_length()
    seen, front, hops = {servers[0]}, {servers[0]}, 0
    while front:
        front = set().union(*(near[node] for node in front)) - seen
        seen |= front
        hops += bool(front)
    assert len(seen) == count and hops <= 5


def test_one_server_more_moves_few_links():
    servers = list(range(1, 61))
    before = {(me, other) for me in servers for other in kept_by_server(me, servers)}
    grown = [*servers, 100]
    after = {(me, other) for me in grown for other in kept_by_server(me, grown)}
    assert len(before - after) < len(before) // 4


def test_others_keep_what_is_configured_and_make_up_for_what_is_missing():
    servers = list(range(1, 11))
    assert kept_by_other(50, {1}, {1}, {1: None}) == {1}
    kept = kept_by_other(50, {1, 2, 3}, servers, dict.fromkeys((1, 2, 3)))
    assert kept == {1, 2, 3}
    kept = kept_by_other(50, {1}, servers, {1: None})
    assert 1 in kept and len(kept) == HOMES
    kept = kept_by_other(50, {1}, servers, {})
    assert len(kept) == HOMES + 1
    linked = dict.fromkeys((1, 4, 9))
    assert kept_by_other(50, {1}, servers, linked) == set(
        linked
    )  # no change where enough is linked


def test_a_crowd_of_others_spreads():
    servers = list(range(1, 11))
    chosen = Counter(
        server for me in range(50, 150) for server in kept_by_other(me, set(), servers, {})
    )
    assert set(chosen) == set(servers) and max(chosen.values()) <= 2 * min(chosen.values())


def test_of_measured_servers_the_near_ones_are_kept_and_little_is_gained_by_changing():
    servers = list(range(1, 11))
    linked = {1: 0.02, 3: 0.2, 4: 0.15, 5: 0.03, 6: None}
    assert kept_by_other(50, {1}, servers, linked) == {1, 4, 5}
    assert kept_by_other(50, {1}, servers, linked, {3, 4}) == {1, 4, 5}, "5 is much nearer than 3"
    assert kept_by_other(50, {1}, servers, {1: 0.02, 3: 0.2, 4: 0.15, 5: 0.145}, {3, 4}) == {
        1,
        3,
        4,
    }


def test_who_is_kept_and_not_yet_measured_stays():
    servers = list(range(1, 11))
    linked = {1: None, 8: None, 9: None, 2: 0.3}
    assert kept_by_other(50, {1}, servers, linked, {8, 9}) == {1, 8, 9}
