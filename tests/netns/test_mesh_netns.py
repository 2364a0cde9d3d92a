"""Three servers, two clients, one of them behind NAT, in namespaces (R02, R05, R07, R09, R10, R13)."""

from __future__ import annotations

import os

import pytest

from mesh import wait_until
from tests.netns.lab import Lab
from tests.netns.nodes import MIB, Fleet, Transfer

IS_FULL = os.environ.get("USERVPN_NETNS") == "full"
SIZE = 200 * MIB if IS_FULL else 8 * MIB
PATH = {"rate_mbit": 100 if IS_FULL else 40, "delay_ms": 10, "queue": 400_000}
LIMIT_S = 120 if IS_FULL else 60
SERVERS = (1, 2, 3)
HOME, AWAY = 60, 7


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Servers 1, 2, 3; client 60 behind NAT, an exit as well; client 7 with a public address."""
    with Lab() as lab, Fleet(lab, tmp_path_factory.mktemp("fleet")) as made:
        for number in SERVERS:
            made.server(made.net.host(f"s{number}"), number, ("tcp", "udp"))
        made.home = made.net.nat("home", **PATH)
        made.client(made.home.host("laptop"), HOME, knows=(1,), is_exit=True)
        made.client(made.net.host("phone", **PATH), AWAY, knows=(1,))
        made.wait_until_all_know_all()
        yield made


def _assert_routes_are_short(fleet) -> None:
    """At most three links, no node twice."""
    routes = fleet.routes()
    assert routes
    for (origin, target), route in routes.items():
        assert 1 <= len(route) <= 3 and route[-1] == target, (origin, target, route)
        assert len({origin, *route}) == 1 + len(route), (origin, target, route)


def _say(what: str, transfer: Transfer) -> None:
    print(
        f"{what}: longest stall {transfer.longest_stall_s:.2f} s, "
        f"{transfer.size / MIB:.0f} MiB in {transfer.took_s:.1f} s"
    )


def test_all_five_know_all_five_and_the_one_behind_nat_is_an_exit(fleet):
    home, away = fleet.nodes[HOME], fleet.nodes[AWAY]
    for number in SERVERS:
        wait_until(lambda n=number: fleet.fetches(home, 100_000, exit=n))
    wait_until(lambda: fleet.fetches(away, MIB, exit=HOME))
    assert len(away.row(HOME)["route"]) <= 3
    _assert_routes_are_short(fleet)


@pytest.mark.parametrize("number", [AWAY, HOME] if IS_FULL else [HOME])
def test_a_download_goes_on_when_the_address_changes(fleet, number):
    node = fleet.nodes[number]
    wait_until(lambda: fleet.fetches(node, 1000, exit=2))
    transfer = Transfer(fleet, node, SIZE, exit=2)
    transfer.wait_for(SIZE // 4)
    (fleet.home if number == HOME else node.host).change_address()
    transfer.end(LIMIT_S)
    _say(f"address of node {number} changed", transfer)
    _assert_routes_are_short(fleet)


def test_with_the_direct_path_blocked_a_relay_carries_and_when_it_dies_the_other(fleet):
    away, exit = fleet.nodes[AWAY], fleet.nodes[3]
    fleet.net.block_pair(away.host, exit.host)
    away.restart()
    wait_until(lambda: fleet.fetches(away, 1000, exit=3), 30)
    assert away.row(3)["route"] in ([1, 3], [2, 3])
    transfer = Transfer(fleet, away, SIZE, exit=3)
    transfer.wait_for(SIZE // 4)
    if IS_FULL:
        away.host.change_address()
    transfer.wait_for(SIZE // 2)
    relay = away.row(3)["route"][0]
    fleet.nodes[relay].kill()
    transfer.end(LIMIT_S)
    _say("direct path blocked, address changed, the relay killed", transfer)
    # the exit has moved first, as it sends; the client says so with the next thing it hears or asks
    wait_until(lambda: away.row(3)["route"] == [3 - relay, 3], 3)
    _assert_routes_are_short(fleet)
