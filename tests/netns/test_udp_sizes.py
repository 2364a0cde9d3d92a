"""Datagrams on paths that are narrower than they seem (RFC 8899): nothing is lost but time."""

from __future__ import annotations

import pytest

from mesh import wait_until
from tests.netns.lab import Lab
from tests.netns.nodes import MIB, Fleet, Transfer

HEADERS = 20 + 8 + 48
"""IPv4, UDP, and a message's header, in front of each sealed payload."""


@pytest.fixture
def fleet(tmp_path):
    """A server and a client, joined over UDP alone; the client is behind an emulated path."""
    with Lab() as lab, Fleet(lab, tmp_path) as made:
        made.server(made.net.host("server"), 1, ("udp",))
        made.far = made.net.host("laptop", delay_ms=10, rate_mbit=200)
        yield made


def _client(fleet):
    client = fleet.client(fleet.far, 7)
    wait_until(lambda: client.process.is_linked())
    return client


def _sizes(fleet) -> set[int]:
    """What either end has found, as IP packets."""
    return {
        link["message_size"] + HEADERS
        for node in fleet.nodes.values()
        for link in node.status()["links"]
        if link["protocol"] == "udp"
    }


def test_both_ends_find_what_the_path_carries_and_what_is_left_when_it_narrows(fleet):
    """The path drops what is larger and says nothing; a download goes on, byte for byte."""
    fleet.far.path.set(mtu=1400)
    client = _client(fleet)
    wait_until(lambda: _sizes(fleet) == {1400}, 30)
    transfer = Transfer(fleet, client, 32 * MIB)
    transfer.wait_for(8 * MIB)
    before = fleet.far.path.stats()
    probes = 3 * 5  # all that was ever too big
    assert all(counts["too_big"] <= probes for counts in before.values()), before
    fleet.far.path.set(mtu=1280)
    transfer.end()
    print(f"longest stall {transfer.longest_stall_s:.2f} s")
    assert transfer.longest_stall_s < 10
    wait_until(lambda: 1280 in _sizes(fleet), 30)
