"""Three servers, two clients, one of them behind NAT, in namespaces (R02, R07, R09, R10, R13)."""

from __future__ import annotations

import pytest

from mesh import wait_until
from tests.netns.lab import Lab
from tests.netns.nodes import MIB, Fleet, Transfer

SERVERS = (1, 2, 3)
HOME, AWAY = 60, 7


@pytest.fixture
def fleet(tmp_path):
    """Servers 1, 2, 3; client 60 behind NAT, an exit as well; client 7 with a public address."""
    with Lab() as lab, Fleet(lab, tmp_path) as made:
        for number in SERVERS:
            made.server(made.net.host(f"s{number}"), number)
        made.home = made.net.nat("home")
        made.client(made.home.host("laptop"), HOME, knows=(1,), is_exit=True)
        made.client(made.net.host("phone"), AWAY, knows=(1,))
        made.wait_until_all_know_all()
        yield made


def _routes_are_short(fleet) -> bool:
    routes = fleet.routes()
    return bool(routes) and all(
        1 <= len(route) <= 3 and len({origin, *route}) == 1 + len(route) and route[-1] == target
        for (origin, target), route in routes.items()
    )


def test_all_five_know_all_five_and_the_one_behind_nat_is_an_exit(fleet):
    home, away = fleet.nodes[HOME], fleet.nodes[AWAY]
    for number in SERVERS:
        wait_until(lambda n=number: fleet.fetches(home, 100_000, exit=n))
    wait_until(lambda: fleet.fetches(away, MIB, exit=HOME))
    assert len(away.row(HOME)["route"]) <= 3
    assert _routes_are_short(fleet)


def test_with_the_direct_path_blocked_only_a_relay_is_left_and_carries(fleet):
    away, server = fleet.nodes[AWAY], fleet.nodes[3]
    fleet.net.block_pair(away.host, server.host)
    away.restart()
    wait_until(lambda: fleet.fetches(away, MIB, exit=3), 30)
    assert away.row(3)["route"] in ([1, 3], [2, 3])
    transfer = Transfer(fleet, away, 16 * MIB, exit=3)
    transfer.end()
    assert _routes_are_short(fleet)
