"""A transfer goes on, and every byte is right, whatever happens to the path (R05, R30, R31)."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

import pytest

from mesh import wait_until
from tests.netns.lab import Lab
from tests.netns.nodes import MIB, Fleet, Transfer

IS_FULL = os.environ.get("USERVPN_NETNS") == "full"
SIZE = 64 * MIB if IS_FULL else 8 * MIB
PATH = (
    {"rate_mbit": 100, "delay_ms": 50, "queue": 1_250_000}
    if IS_FULL
    else {"rate_mbit": 40, "delay_ms": 10, "queue": 200_000}
)
OUTAGE_S = 5 if IS_FULL else 1.5
LOSS_S = 10 if IS_FULL else 2
PLAIN = PATH | {"loss": 0, "black_hole": 0, "mtu": 1500, "tell_mtu": 0}


PROTOCOLS = ["tcp", "udp", "tcp,udp"] if IS_FULL else ["tcp,udp"]
WAYS = ["down", "up"] if IS_FULL else ["down"]


@pytest.fixture(scope="module", params=PROTOCOLS)
def fleet(request, tmp_path_factory):
    """Server 1, client 7 on an emulated path; they know each other by these protocols."""
    with Lab() as lab, Fleet(lab, tmp_path_factory.mktemp("fleet")) as made:
        made.protocols = request.param
        made.server(made.net.host("server"), 1, tuple(request.param.split(",")))
        made.client(made.net.host("laptop", **PATH), 7)
        wait_until(lambda: made.fetches(made.nodes[7], 1000))
        yield made


@pytest.fixture
def laptop(fleet):
    node = fleet.nodes[7]
    node.host.path.set("both", **PLAIN)
    for host in (node.host, fleet.nodes[1].host):
        host.ip("route flush cache")  # what the kernel remembers of the path's MTU
    wait_until(lambda: fleet.fetches(node, 1000))
    return node


def _survives(fleet, what: str, trouble: Callable[[Transfer], None], way: str = "down") -> Transfer:
    """Trouble comes when a quarter is done."""
    transfer = Transfer(fleet, fleet.nodes[7], SIZE, is_upload=way == "up", limit_s=280)
    transfer.wait_for(SIZE // 4)
    before = time.monotonic()
    trouble(transfer)
    lasted = time.monotonic() - before
    transfer.end(280)
    print(
        f"{fleet.protocols}, {what}, {way}: trouble for {lasted:.1f} s, longest stall "
        f"{transfer.longest_stall_s:.2f} s, {SIZE / MIB:.0f} MiB in {transfer.took_s:.1f} s"
    )
    return transfer


@pytest.mark.parametrize("way", WAYS)
def test_a_black_hole(fleet, laptop, way):
    def trouble(transfer: Transfer) -> None:
        laptop.host.path.set("both", black_hole=1)
        time.sleep(OUTAGE_S)
        laptop.host.path.set("both", black_hole=0)

    _survives(fleet, "black hole", trouble, way)


@pytest.mark.parametrize("way", WAYS)
def test_heavy_loss_for_a_while(fleet, laptop, way):
    def trouble(transfer: Transfer) -> None:
        laptop.host.path.set("both", loss=0.3)
        time.sleep(LOSS_S)
        laptop.host.path.set("both", loss=0)

    _survives(fleet, "30 % loss", trouble, way)


@pytest.mark.parametrize("way", WAYS)
def test_another_address(fleet, laptop, way):
    _survives(fleet, "address changed", lambda transfer: laptop.host.change_address(), way)


@pytest.mark.parametrize(
    "is_told", [True, False] if IS_FULL else [True], ids=lambda told: f"told={told}"
)
def test_a_smaller_mtu(fleet, laptop, is_told):
    """Silently, nobody can expect it of the kernel's TCP alone."""
    if is_told or fleet.protocols != "tcp":
        _survives(
            fleet,
            f"MTU 1,280, {'told' if is_told else 'silent'}",
            lambda transfer: laptop.host.path.set("both", mtu=1280, tell_mtu=is_told),
        )
        laptop.restart()  # or its links would remember


def test_tcp_connections_are_reset(fleet, laptop):
    if "tcp" in fleet.protocols:
        _survives(
            fleet, "TCP reset", lambda transfer: laptop.host.reset_connections("dport = 7000")
        )


def _carrier(fleet) -> str:
    """The protocol whose links carry most of a download of 1 MiB."""
    node = fleet.nodes[7]

    def carried() -> Counter[str]:
        links = node.status()["links"]
        return Counter({f"{row['remote']} {row['local']}": row["bytes_in"] for row in links})

    before = carried()
    assert fleet.fetches(node, MIB)
    grown = carried() - before
    return grown.most_common(1)[0][0].partition("://")[0]


@pytest.mark.parametrize("way", WAYS)
def test_udp_is_blocked_and_unblocked(fleet, laptop, way):
    """It moves to TCP, and back by itself."""
    if fleet.protocols != "tcp,udp":
        return
    wait_until(lambda: _carrier(fleet) == "udp")
    carriers = []

    def trouble(transfer: Transfer) -> None:
        for chain in ("INPUT", "OUTPUT"):
            laptop.host.block("-p", "udp", chain=chain)
        transfer.wait_for(SIZE // 2)
        carriers.append(_carrier(fleet))
        for chain in ("INPUT", "OUTPUT"):
            laptop.host.unblock("-p", "udp", chain=chain)

    _survives(fleet, "UDP blocked", trouble, way)
    assert carriers == ["tcp"]
    before = time.monotonic()
    wait_until(lambda: _carrier(fleet) == "udp", 60)
    print(f"back to UDP {time.monotonic() - before:.1f} s after the transfer")


UDP_LIMIT = (
    "-p",
    "udp",
    "-m",
    "limit",
    "--limit",
    "85/second",
    "--limit-burst",
    "20",
    "-j",
    "ACCEPT",
)
"""About 1 Mbit/s in full datagrams; what is more is dropped, as by a provider's policer."""
RETURN_LIMIT_S = 150
"""Bulk is compared every minute, then every two."""


def test_throttled_udp_moves_to_tcp_and_back(fleet, laptop):
    """TCP runs at the path's full rate meanwhile; once UDP does, too, the next comparison shows it."""
    if fleet.protocols != "tcp,udp" or not IS_FULL:
        return
    wait_until(lambda: _carrier(fleet) == "udp", 60)
    for chain in ("INPUT", "OUTPUT"):
        laptop.host.block("-p", "udp", chain=chain)
        laptop.host.iptables("-I", chain, *UDP_LIMIT)
    transfer = Transfer(fleet, fleet.nodes[7], SIZE, limit_s=100)
    transfer.end(100)
    carrier = _carrier(fleet)
    for chain in ("INPUT", "OUTPUT"):
        laptop.host.iptables("-D", chain, *UDP_LIMIT)
        laptop.host.unblock("-p", "udp", chain=chain)
    print(
        f"{fleet.protocols}, UDP at 1 Mbit/s: {SIZE / MIB:.0f} MiB in {transfer.took_s:.1f} s, "
        f"longest stall {transfer.longest_stall_s:.2f} s, then over {carrier}"
    )
    assert carrier == "tcp"
    end = time.monotonic() + RETURN_LIMIT_S
    while _carrier(fleet) != "udp":
        assert time.monotonic() < end, f"still over tcp {RETURN_LIMIT_S} s after the limit's end"
        Transfer(fleet, fleet.nodes[7], SIZE, limit_s=100).end(100)
