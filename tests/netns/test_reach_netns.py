"""Nodes that move, lose their network, and hide behind NATs: what they notice by themselves, and how fast."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from mesh import wait_until
from tests.netns.lab import Lab
from tests.netns.nodes import MIB, Fleet, Node, Transfer

IS_FULL = os.environ.get("USERVPN_NETNS") == "full"
PROTOCOLS = [("tcp",), ("udp",), ("tcp", "udp")] if IS_FULL else [("tcp", "udp")]
OFFLINE_S = 30 if IS_FULL else 4
PATH = {"rate_mbit": 40, "delay_ms": 20, "queue": 400_000}
SIZE = 6 * MIB
BACK_S = 0.5
"""How soon after the network's return bytes have to come."""


@pytest.fixture
def lab(tmp_path):
    with Lab() as lab, Fleet(lab, tmp_path / "fleet") as fleet:
        lab.fleet = fleet
        yield lab


def _mobile(lab: Lab, protocols: tuple[str, ...]) -> Node:
    """A server, and a client on an emulated path."""
    fleet = lab.fleet
    fleet.server(fleet.net.host("server"), 1, protocols)
    laptop = fleet.client(fleet.net.host("laptop", **PATH), 7)
    wait_until(lambda: fleet.fetches(laptop, 1000))
    return laptop


def _switches(node: Node) -> int:
    """How often the process has gone to sleep."""
    text = Path(f"/proc/{node.process.process.pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE)[1])


@pytest.mark.parametrize("protocols", PROTOCOLS, ids="+".join)
def test_a_download_goes_on_at_once_when_the_address_changes(lab, protocols):
    laptop = _mobile(lab, protocols)
    transfer = Transfer(lab.fleet, laptop, SIZE)
    transfer.wait_for(SIZE // 3)
    began = time.monotonic()
    laptop.host.change_address()
    outage_s = time.monotonic() - began
    transfer.end(60)
    print(
        f"{protocols}: {outage_s:.2f} s without an address, stall {transfer.longest_stall_s:.2f} s"
    )
    assert transfer.longest_stall_s <= outage_s + BACK_S
    assert "the network has changed" in laptop.process.log.read_text()


@pytest.mark.parametrize("protocols", PROTOCOLS, ids="+".join)
def test_offline_it_sleeps_and_is_back_at_once(lab, protocols):
    """Unplugged in the middle of a download."""
    laptop = _mobile(lab, protocols)
    transfer = Transfer(lab.fleet, laptop, SIZE)
    transfer.wait_for(SIZE // 3)
    began = time.monotonic()
    laptop.host.unplug()
    time.sleep(1)  # what it does at once: notice, try, give up
    before = _switches(laptop)
    time.sleep(OFFLINE_S)
    woken = _switches(laptop) - before
    laptop.host.plug()
    outage_s = time.monotonic() - began
    transfer.end(60)
    late_s = transfer.longest_stall_s - outage_s
    print(f"{protocols}: {woken} wake-ups in {OFFLINE_S} s, stall {late_s:.2f} s more")
    assert woken <= 3 * OFFLINE_S + 10
    assert late_s <= BACK_S


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_two_behind_nats_meet_directly_or_stay_on_the_relay(lab, is_symmetric):
    fleet = lab.fleet
    fleet.server(fleet.net.host("server"), 1, ("tcp", "udp"))
    home = fleet.net.nat("home", is_symmetric=is_symmetric)
    away = fleet.net.nat("away", is_symmetric=is_symmetric)
    exit = fleet.client(home.host("desktop"), 60, is_exit=True)
    laptop = fleet.client(away.host("laptop"), 7)
    fleet.wait_until_all_know_all()
    wait_until(lambda: fleet.fetches(laptop, 1000, exit=60))
    transfer = Transfer(fleet, laptop, SIZE, exit=60)
    transfer.end(60)
    assert transfer.longest_stall_s < 2
    wait_until(lambda: fleet.fetches(laptop, 100_000, exit=60))
    assert laptop.row(60)["route"] == ([1, 60] if is_symmetric else [60])
    assert exit.row(7)["state"] == "up"
