"""Flight times and clock offsets (R33): known delays and clocks that are wrong by up to an hour."""

from __future__ import annotations

import random

import pytest

from uservpn.mesh.flight import SAMPLES, ClockFilter, legs, offsets, unwrap
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.wire.constants import STAMP_MASK, Kind
from world import World

HOME = {1: ("sim://10.0.0.1:1",)}
MS = 0.001


def _ping(world, member, peer):
    member.pongs.clear()
    token = member.node.ping(peer, world.now)
    assert token is not None
    world.settle(member)
    world.run(2)
    (pong,) = member.pongs
    assert pong.token == token and pong.peer == peer
    return pong


def _both(world, a, b, there, here=None):
    world.delays[a, b], world.delays[b, a] = there, there if here is None else here


@pytest.mark.parametrize("seed", range(8))
def test_one_way_times_and_the_offset_of_a_neighbour(seed):
    """Within a millisecond, with either clock wrong by up to an hour."""
    rng = random.Random(seed)
    world = World(seed=seed)
    skews = [rng.uniform(-3600, 3600) for _ in range(2)]
    flight = rng.uniform(0.0005, 0.2)
    _both(world, 7, 1, flight)
    world.add(1, skew_s=skews[0])
    client = world.add(7, HOME, skew_s=skews[1])
    world.run(3)
    pong = _ping(world, client, 1)
    (leg,) = pong.legs
    assert leg.node == 1 and abs(leg.rtt_s - 2 * flight) < MS and abs(pong.rtt_s - 2 * flight) < MS
    assert abs(leg.out_s - flight) < MS and abs(leg.back_s - flight) < MS
    assert abs(leg.offset_s - (skews[0] - skews[1])) < MS
    assert abs(client.node.flights.offset(1) - (skews[0] - skews[1])) < MS


def test_a_queue_one_way_shows_as_that_ways_flight_time():
    """The clocks were compared while nothing queued: so a later delay is seen where it is."""
    world = World()
    _both(world, 7, 1, 0.02)
    world.add(1, skew_s=3600.0)
    client = world.add(7, HOME)
    world.run(3)
    world.delays[1, 7] = 0.12
    (leg,) = _ping(world, client, 1).legs
    assert abs(leg.out_s - 0.02) < MS and abs(leg.back_s - 0.12) < MS
    world.run(600)  # ordinary messages tell it too: a keep-alive's stamp
    state = client.node.peers[1].contact.links[0]
    assert state.in_s > 0.03


def test_ordinary_messages_tell_how_long_they_flew():
    """No probe: every stamp of a genuine message is a measurement, looked at once a second."""
    world = World()
    _both(world, 7, 1, 0.03)
    server = world.add(1, skew_s=-1800.0)
    client = world.add(7, HOME)
    world.run(3)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"x")
    world.settle(client)
    world.run(1)
    world.tap.clear()
    state = client.node.peers[1].contact.links[0]
    state.in_s = None
    back = server.offered[-1][0]
    for _ in range(5):
        server.send(back, bytes(1000))
        world.settle(server)
        world.run(1.1)
    kinds = {client.codec.open(head).kind for _, head, _ in world.tap}
    assert Kind.DATA in kinds and not kinds & {Kind.PROBE, Kind.ANSWER}
    assert abs(state.in_s - 0.03) < MS


@pytest.mark.parametrize("seed", range(6))
def test_every_hop_of_a_relayed_route_by_the_stamps_of_one_probe(seed):
    """50 -> 1 -> 2 -> 60: three clocks, none of them right; each hop within a millisecond."""
    rng = random.Random(seed)
    world = World(seed=seed)
    skews = {node: rng.uniform(-3600, 3600) for node in (1, 2, 50, 60)}
    flights = {(50, 1): rng.uniform(0.005, 0.1), (1, 2): rng.uniform(0.005, 0.1)}
    flights[2, 60] = rng.uniform(0.005, 0.1)
    for (a, b), flight in flights.items():
        _both(world, a, b, flight)
    for node in (1, 2):
        here = Known(EndpointKind.FIXED, f"sim://10.0.0.{node}:1")
        record = Record(node, 1000, 0, Role.SERVER | Role.RELAY, endpoints=(here,))
        world.add(node, {} if node == 1 else HOME, record=record, skew_s=skews[node])
    world.run(3)
    world.add(60, {2: ("sim://10.0.0.2:1",)}, record=Record(60, 1000), skew_s=skews[60])
    world.run(3)
    _cut(world, 60, 1)
    world.unreachable.add(2)
    client = world.add(50, HOME, skew_s=skews[50])
    world.run(1)
    world.unreachable.add(1)
    _cut(world, 60, 1)
    world.run(10)
    client.node.send_message(60, "x", b"", world.now)
    world.settle(client)
    world.run(3)
    pong = _ping(world, client, 60)
    assert [leg.node for leg in pong.legs] == [1, 2, 60]
    for leg, (a, b) in zip(pong.legs, flights, strict=True):
        flight = flights[a, b]
        assert abs(leg.rtt_s - 2 * flight) < 2 * MS, (a, b)
        assert abs(leg.out_s - flight) < MS and abs(leg.back_s - flight) < MS, (a, b)
        assert abs(leg.offset_s - (skews[b] - skews[50])) < MS, (a, b)


def _cut(world, a, b):
    for link, (member, other) in list(world.links.items()):
        if {member.id, other.id} == {a, b}:
            world.cut(link)


def test_a_clock_that_is_stepped_is_noticed_and_measured_anew():
    for step in (-300.0, 300.0, -0.5):
        world = World()
        server = world.add(1)
        client = world.add(7, HOME)
        world.run(3)
        server.node.wall_s += step
        server.node.describe(world.now, name="a message to see it by")
        world.settle(server)
        world.run(3)
        _ping(world, client, 1)
        assert abs(client.node.flights.offset(1) - step) < MS


@pytest.mark.parametrize("seed", range(4))
def test_jitter_is_not_taken_for_a_clock_that_was_stepped(seed):
    """Delays that vary by more than the shortest flight: no probe follows from that."""
    rng = random.Random(seed)
    world = World(seed=seed)
    _both(world, 7, 1, 0.001, 0.1)  # the clocks are compared while one way is slow
    server = world.add(1)
    client = world.add(7, HOME)
    world.run(3)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"x")
    world.settle(client)
    world.run(1)
    back = server.offered[-1][0]
    world.tap.clear()
    for _ in range(60):
        _both(world, 1, 7, rng.uniform(0.001, 0.1), rng.uniform(0.001, 0.1))
        server.send(back, bytes(100))
        world.settle(server)
        world.run(1.1)
    kinds = [client.codec.open(head).kind for _, head, _ in world.tap]
    assert kinds.count(Kind.PROBE) == 0 and client.node.flights.offset(1) is not None


def test_steps_of_our_own_clock_change_nothing_but_the_difference():
    world = World()
    world.add(1)
    client = world.add(7, HOME)
    world.run(3)
    client.node.wall_s += 1000.0
    (leg,) = _ping(world, client, 1).legs
    assert abs(leg.out_s - 0.05) < MS and abs(leg.offset_s + 1000.0) < MS


def test_the_filter_keeps_few_samples_and_trusts_the_shortest_round_trip():
    clock = ClockFilter()
    assert not clock.is_known
    clock.add(0.0, 5.0, 0.010)
    for index in range(1, SAMPLES):
        clock.add(float(index), 5.0 + 0.2, 0.500)
    assert clock.offset() == 5.0
    for index in range(3):  # the good one is too old to be kept
        clock.add(10.0 + index, 5.2, 0.500)
    assert clock.offset() == 5.2
    clock.add(20.0, 9.0, 0.010)
    assert clock.offset() == 9.0, "a stepped clock"
    clock.clear()
    assert not clock.is_known


def test_a_stamp_is_the_time_closest_to_what_is_expected():
    for time_s in (1e9, 1e9 + 16777.0, 1.7e9 + 0.999):
        stamp = (int(time_s * 1000) & STAMP_MASK).to_bytes(3, "big")
        for off in (-8000.0, -3600.0, 0.0, 3600.0, 8000.0):
            assert abs(unwrap(stamp, time_s + off) - time_s) <= 0.001


def test_legs_add_up_and_are_never_negative():
    rng = random.Random(1)
    for _ in range(200):
        out = [rng.uniform(0, 1) for _ in range(3)]
        back = [rng.uniform(0, 1) for _ in range(3)]
        known = [offset for offset, _ in offsets(out, back)]
        for leg in legs((1, 2), out, back, known):
            assert leg.rtt_s >= leg.out_s >= 0 and leg.back_s >= 0


def test_an_answer_that_is_cut_off_measures_nothing():
    world = World()
    server = world.add(1)
    client = world.add(7, HOME)
    world.run(3)
    token = client.node.ping(1, world.now)
    link = server.node.peers[7].contact.links[0].link
    server.node.peers[7].outbox.append((link, Kind.ANSWER, token, 0))
    server.node.table.touch(server.node.peers[7])
    world.settle(server)
    world.run(1)
    assert client.node.counters.peer_faults == 1 and not client.pongs
    assert client.node.ping(99, world.now) is None
