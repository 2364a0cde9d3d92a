"""Routes: the shortest way over at most two relays, and around what is broken."""

from __future__ import annotations

import itertools
import random

import pytest

from uservpn.mesh.records import Edge, Record, Role
from uservpn.mesh.routes import AVOID_S, Routes

SERVER = Role.SERVER | Role.RELAY


def _map(links: dict[tuple[int, int], float], roles: dict[int, Role] | None = None, me: int = 1):
    """A map with these round trips, milliseconds; all are servers that relay, but for `roles`."""
    nodes = {node for pair in links for node in pair}
    routes = Routes(me)
    routes.learn(
        Record(
            node,
            1,
            roles=(roles or {}).get(node, SERVER),
            links=tuple(Edge(b, ms / 1000) for (a, b), ms in links.items() if a == node),
        )
        for node in nodes
    )
    return routes


def test_the_shortest_flight_wins_then_disjoint_others():
    routes = _map({(9, 2): 10, (9, 3): 80, (2, 3): 5})
    assert routes.find(9, {2: 0.1, 3: 0.01}, 0.0) == [(3, 2)]
    assert routes.find(9, {2: 0.02, 3: 0.01}, 0.0) == [(3, 2)]
    assert routes.find(9, {2: 0.01, 3: 0.01}, 0.0) == [(2,), (3,)]


def test_two_relays_reach_where_one_does_not():
    routes = _map({(9, 4): 10, (2, 4): 10})
    assert routes.find(9, {2: 0.01}, 0.0) == [(2, 4)]
    assert routes.find(9, {5: 0.01}, 0.0) == []


def test_a_third_relay_is_never_used():
    routes = _map({(9, 4): 10, (3, 4): 10, (2, 3): 10})
    assert routes.find(9, {2: 0.01}, 0.0) == []


def test_a_node_that_is_no_server_relays_only_where_there_is_nothing_else():
    links = {(9, 2): 10.0, (9, 3): 500.0}
    routes = _map(links, {2: Role.RELAY})
    assert routes.find(9, {2: 0.01, 3: 0.5}, 0.0)[0] == (3,)
    assert routes.find(9, {2: 0.01}, 0.0) == [(2,)]
    assert _map(links, {2: Role.EXIT, 3: Role.EXIT}).find(9, {2: 0.01, 3: 0.5}, 0.0) == []


def test_a_broken_link_is_avoided_until_it_is_forgiven_or_time_has_passed():
    routes = _map({(9, 2): 10, (9, 3): 80})
    linked = {2: 0.01, 3: 0.01}
    routes.avoid(9, 2, 100.0)
    assert routes.find(9, linked, 100.0) == [(3,)]
    assert routes.neighbours(9, 100.0) == [3]
    assert routes.find(9, linked, 100.0 + AVOID_S) == [(2,), (3,)]
    routes.avoid(2, 9, 200.0)
    routes.forgive(9)
    assert routes.find(9, linked, 200.0) == [(2,), (3,)]


def test_a_link_of_unknown_round_trip_counts_as_long():
    routes = _map({(9, 2): 10, (9, 3): 10})
    assert routes.find(9, {2: None, 3: 0.05}, 0.0)[0] == (3,)


@pytest.mark.parametrize("seed", range(50))
def test_on_any_map_routes_hold_no_node_twice_and_use_links_that_exist(seed):
    rng = random.Random(seed)
    nodes = range(1, 20)
    links = {
        (a, b): rng.uniform(1, 300) for a in nodes for b in nodes if a < b and rng.random() < 0.2
    }
    routes = _map(links)
    linked = {b: ms / 1000 for (a, b), ms in links.items() if a == 1}
    for destination in range(2, 20):
        used: list[int] = []
        for route in routes.find(destination, linked, 0.0):
            way = (1, *route, destination)
            assert len(way) <= 4 and len(set(way)) == len(way)
            for a, b in itertools.pairwise(way):
                assert (min(a, b), max(a, b)) in links
            used += route
        assert len(used) == len(set(used)), "a relay is on one of the ways only"
