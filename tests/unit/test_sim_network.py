"""The made-up internet behaves as the real one: routers, connections, cuts, moves."""

from __future__ import annotations

import random

import pytest

from uservpn.kit.endpoint import Address
from uservpn.sim.agenda import Agenda
from uservpn.sim.geography import SITES, flight_s
from uservpn.sim.nat import Nat, NatKind
from uservpn.sim.network import Host, Network, Weather


class Ear:
    """Takes what comes, on sockets and connections."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[Address, bytes]] = []
        self.ends: list = []
        self.heard: list[bytes] = []
        self.closings: list[str] = []
        self.stalls: list[float] = []
        self.results: list = []

    def datagram(self, port, remote, head, body):
        self.datagrams.append((remote, body))

    def accepted(self, end):
        self.ends.append(end)
        return self

    def messages(self, end, batch):
        self.heard += [body for _, body in batch]

    def stalled(self, end, silent_s):
        self.stalls.append(silent_s)

    def closed(self, end, reason):
        self.closings.append(reason)

    def done(self, end, refused, reason):
        self.results.append((end, refused))


def _network(**weather):
    agenda = Agenda(0.0)
    return agenda, Network(agenda, random.Random(1), Weather(flight_s=0.1, **weather))


def _run(agenda, seconds):
    end = agenda.now + seconds
    while agenda.step(end):
        pass


def _hosts(network, kind=None):
    nat = Nat("203.0.113.9", kind, random.Random(2)) if kind else None
    inside = network.add(Host("in", "10.0.0.1", SITES[0], nat))
    out = [network.add(Host(f"out{i}", f"203.0.113.{i}", SITES[1])) for i in (1, 2)]
    ears = [Ear(), Ear(), Ear()]
    for host, ear in zip((inside, *out), ears, strict=True):
        host.sockets[7000] = ear
        host.listeners[7000] = ear
    return inside, out, ears


@pytest.mark.parametrize(
    ("kind", "stranger_port", "other_host"),
    [
        (NatKind.FULL_CONE, True, True),
        (NatKind.RESTRICTED, True, False),
        (NatKind.PORT_RESTRICTED, False, False),
        (NatKind.SYMMETRIC, False, False),
    ],
)
def test_routers_let_in_what_their_kind_lets_in(kind, stranger_port, other_host):
    agenda, network = _network()
    inside, (one, two), (inner, first, _) = _hosts(network, kind)
    network.send(inside, 7000, Address(one.ip, 7000), b"", b"out")
    _run(agenda, 1)
    ((seen, _),) = first.datagrams
    assert seen.host == "203.0.113.9"
    network.send(one, 7000, seen, b"", b"answer")
    network.send(one, 7001, seen, b"", b"port")
    network.send(two, 7000, seen, b"", b"host")
    network.send(two, 7000, Address(inside.ip, 7000), b"", b"private")
    _run(agenda, 1)
    came = {body for _, body in inner.datagrams}
    expected = {b"answer"} | ({b"port"} if stranger_port else set())
    assert came == expected | ({b"host"} if other_host else set())


def test_a_symmetric_router_shows_each_destination_another_port():
    for kind in NatKind:
        agenda, network = _network()
        inside, (one, two), (_, first, second) = _hosts(network, kind)
        for host in (one, two):
            network.send(inside, 7000, Address(host.ip, 7000), b"", b"x")
        _run(agenda, 1)
        same = first.datagrams[0][0] == second.datagrams[0][0]
        assert same == (kind is not NatKind.SYMMETRIC)


def test_a_router_forgets_after_silence():
    agenda, network = _network()
    inside, (one, _), (inner, first, _) = _hosts(network, NatKind.FULL_CONE)
    network.send(inside, 7000, Address(one.ip, 7000), b"", b"x")
    _run(agenda, 61)
    network.send(one, 7000, first.datagrams[0][0], b"", b"late")
    _run(agenda, 1)
    assert inner.datagrams == []
    network.send(inside, 7000, Address(one.ip, 7000), b"", b"x")
    _run(agenda, 1)
    assert first.datagrams[0][0].port != first.datagrams[1][0].port


def _connected(network, agenda, a, b, ear):
    network.connect(a, Address(b.ip, 7000), ear, ear.done)
    _run(agenda, 1)
    return ear.results[-1][0]


def test_a_connection_keeps_order_through_a_cut_and_ends_with_a_reset():
    agenda, network = _network(jitter_s=0.05)
    _, (one, two), (_, first, second) = _hosts(network)
    end = _connected(network, agenda, one, two, first)
    for i in range(20):
        if i == 7:
            network.split({two.name: 1})
        end.send([(b"", bytes((i,)))])
        _run(agenda, 0.03)
    _run(agenda, 10)
    assert len(second.heard) < 8 and not second.closings
    assert first.stalls == pytest.approx([1.0, 3.0, 7.0]), "the sender's link sees it"
    network.split({})
    _run(agenda, 20)
    assert second.heard == [bytes((i,)) for i in range(20)]
    assert len(first.stalls) == 3
    two.stop_process()
    _run(agenda, 1)
    assert first.closings == ["reset"]


def test_a_host_that_lost_its_power_resets_only_what_is_sent_to_it_later():
    agenda, network = _network()
    _, (one, two), (_, first, _) = _hosts(network)
    end = _connected(network, agenda, one, two, first)
    two.lose_power()
    _run(agenda, 1000)
    assert first.closings == []
    two.is_up = True
    end.send([(b"", b"x")])
    _run(agenda, 1)
    assert first.closings == ["reset"]


def test_dials_are_refused_where_nobody_listens_and_unanswered_behind_a_router():
    agenda, network = _network()
    inside, (one, two), (inner, first, _) = _hosts(network, NatKind.FULL_CONE)
    two.listeners.clear()
    network.connect(one, Address(two.ip, 7000), first, first.done)
    network.connect(one, Address("203.0.113.9", 7000), first, first.done)
    _run(agenda, 30)
    assert first.results == [(None, True)]
    network.connect(inside, Address(one.ip, 7000), inner, inner.done)
    _run(agenda, 30)
    assert inner.results[0][0].local.host == "10.0.0.1"
    assert first.ends[0].remote.host == "203.0.113.9"


def test_after_a_move_the_old_connection_is_silent_and_a_new_one_works():
    agenda, network = _network()
    _, (one, two), (_, first, second) = _hosts(network)
    end = _connected(network, agenda, one, two, first)
    network.move(one, "198.51.100.7", SITES[4], None)
    end.send([(b"", b"lost")])
    _run(agenda, 5)
    assert second.heard == []
    end = _connected(network, agenda, one, two, first)
    end.send([(b"", b"new")])
    _run(agenda, 1)
    assert second.heard == [b"new"] and second.ends[-1].remote.host == "198.51.100.7"


def test_distances_look_like_the_real_ones():
    by_name = {site.name: site for site in SITES}
    rtt_ms = 2000 * flight_s(by_name["frankfurt"], by_name["new york"])
    assert 70 < rtt_ms < 110
    rtt_ms = 2000 * flight_s(by_name["london"], by_name["sydney"])
    assert 220 < rtt_ms < 300
