"""What the node decides between links, boots, clocks and tunnels, in simulated time."""

from __future__ import annotations

import random

import pytest

from uservpn.errors import Fault, StreamFault
from uservpn.wire.constants import NUMBER_MAX, NUMBERS_KEPT, Kind
from world import World, pair


def _open(world, client, data=b"", exit=1, finish=False):
    stream = client.node.open(exit, "site.test", 80, None, world.now)
    if data:
        client.send(stream, data, finish)
    world.settle(client)
    return stream


def test_both_ends_of_a_link_measure_it():
    """The accepting side's windows grow too: an upload over 200 ms is not held to 256 KiB a turn."""
    world, client, server = pair(delay=0.1)
    world.run(2)
    assert abs(server.node.peers[7].tunnel.rtt_s - 0.2) < 0.01
    stream = _open(world, client, bytes(20_000_000), finish=True)
    world.run(10)
    assert stream.id in server.finished
    assert len(server.received[stream.id]) == 20_000_000


def test_the_round_trip_is_known_after_a_restart_of_the_server():
    world, client, _ = pair(delay=0.1)
    world.run(2)
    world.crash(1)
    world.members.pop(1)
    world.run(1)
    server = world.add(1, boot=2000)
    world.run(60)
    assert abs(client.node.peers[1].tunnel.rtt_s - 0.2) < 0.01
    assert abs(server.node.peers[7].tunnel.rtt_s - 0.2) < 0.01


def test_an_unproved_second_link_does_not_take_the_traffic():
    """A dial that comes late, to an endpoint that swallows everything, costs nothing."""
    world, client, server = pair()
    world.run(2)
    client.node.link_up(901, "sim", 70000, "sim://hole", world.now, 1, "sim://hole")
    world.settle(client)
    stream = _open(world, client, b"hello")
    world.run(0.2)
    assert bytes(server.received[stream.id]) == b"hello"
    world.run(10)
    assert not client.resets and stream.id in client.node.tunnel(stream).streams


def test_what_was_on_a_lost_link_is_asked_for_over_the_one_that_is_left():
    """Within a few round trips, not after the sender's patience."""
    world, client, server = pair()
    world.run(2)
    world.connect(client, 1, "sim2://1", "sim2")  # the acceptor keeps both: their protocols differ
    world.run(2)
    stream = _open(world, client)
    world.run(0.2)
    link = client.node.peers[1].contact.links[0].link
    client.send(stream, b"on its way")
    world.settle(client)
    world.run(0.01)
    world.cut(link)
    world.run(0.3)
    assert bytes(server.received.get(stream.id, b"")) == b"on its way"


def test_a_link_that_never_proves_itself_is_closed():
    """One recorded message keeps no connection open: its header is genuine, its payload is old."""
    world, client, server = pair()
    _open(world, client, b"hello")
    world.run(1)
    _, head, body = world.tap[0]
    for link in (901, 903, 905):
        server.node.link_up(link, "sim", 70000, "sim://attacker", world.now)
        world.links[link] = (server, client)
        world.inject(server, link, head, body)
    world.settle(server)
    world.run(25)
    assert len(server.node.links) == 1


def test_a_first_contact_from_before_the_start_stays_stale_when_the_clock_is_put_right():
    """The receiver started with a clock an hour slow; what was recorded then is not fresh now."""
    for skew in (-3600.0, 0.0):
        world, client, _server = pair(seed=3)
        _open(world, client, b"pay 100")
        world.run(1)
        captured = list(world.tap)
        world.crash(7)
        world.crash(1)
        world.members.pop(1)
        world.run(30)
        fresh = world.add(1, boot=2000, skew_s=skew)
        world.run(10)
        fresh.node.wall_s = 1e9 if skew else 1e9 - 20.0  # corrected, or set back a little
        fresh.node.link_up(999, "sim", 70000, "sim://attacker", world.now)
        world.links[999] = (fresh, client)
        for _, head, body in captured:
            world.inject(fresh, 999, head, body)
        world.run(10)
        assert not fresh.offered and not fresh.received


def test_wall_clocks_that_jump_disturb_nothing_that_runs():
    """Either side, hours either way, in the middle of a transfer and before a new stream."""
    for who in ("client", "server"):
        for jump in (-7200.0, 7200.0):
            world, client, server = pair(seed=4)
            member = client if who == "client" else server
            data = random.Random(1).randbytes(5_000_000)
            stream = _open(world, client, data, finish=True)
            world.run(0.4)
            member.node.wall_s += jump
            world.cut_all()
            world.settle(client)
            world.run(20)
            assert bytes(server.received[stream.id]) == data
            again = _open(world, client, b"again")
            world.run(1)
            assert bytes(server.received[again.id]) == b"again"
            world.crash(7)
            world.members.pop(7)
            late = world.add(7, {1: ("sim://10.0.0.1:1",)}, boot=2000)
            third = _open(world, late, b"third")
            world.run(3)
            assert bytes(server.received[third.id])[-5:] == b"third"


def test_numbers_that_run_out_end_the_tunnel_and_say_so():
    """No nonce repeats and nothing raises; another start gives new numbers."""
    world, client, _server = pair()
    stream = _open(world, client, b"hello")
    world.run(1)
    client.node.peers[1].session._number = NUMBER_MAX - NUMBERS_KEPT - 3
    for _ in range(20):
        client.node.tunnel(stream).write(stream, b"more")
        world.settle(client)
        world.run(0.2)
    assert client.resets[stream.id] is Fault.EXIT_DEAD
    assert any("restart" in text for text in client.news)
    with pytest.raises(StreamFault):
        _open(world, client)
    world.run(600)
    assert client.node.peers[1].session._number <= NUMBER_MAX


def test_held_first_contacts_are_bounded_in_bytes():
    """A clock an hour wrong and large first messages: held up to a limit, the rest is asked for."""
    world = World()
    server = world.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)}, skew_s=3600.0)
    data = random.Random(1).randbytes(60_000)
    streams = [_open(world, client, data) for _ in range(60)]
    most = 0
    for _ in range(300):
        world.run(0.01)
        peer = server.node.peers.get(7)
        if peer is not None:
            most = max(most, sum(len(payload) for _, payload, _ in peer.held))
    assert 0 < most <= 1 << 20
    world.run(20)
    assert all(bytes(server.received[stream.id]) == data for stream in streams)
    assert not server.node.peers[7].held


def test_a_peer_that_never_reads_costs_bounded_memory():
    """Its link is full: answers are dropped and reports wait."""
    world, client, server = pair()
    _open(world, client, b"hello")
    world.run(1)
    full = server.node.peers[7].contact.links[0].link
    sent = 0

    def carry(link, head, body):
        nonlocal sent
        if link == full:
            sent += len(head) + len(body)

    room = world.room
    world.carry = carry
    world.room = lambda link: (1 << 19) - sent if link == full else room(link)
    session = client.node.peers[1].session
    for number in range(40_000):
        kind, payload = (Kind.PROBE, bytes(8)) if number % 2 else (Kind.DATA, bytes(8))
        head, body = session.seal(kind, payload, b"\0\0\0", 0)
        world.inject(server, full, head, body)
    assert sent < 3 << 20
    assert len(server.node.peers[7].outbox) < 100


def test_a_flush_looks_only_at_peers_with_something_to_do():
    """With 30 idle peers one message costs the work of one peer."""
    world = World()
    client = world.add(254, {node: (f"sim://10.0.0.{node}:1",) for node in range(1, 31)})
    for node in range(1, 31):
        world.add(node)
    world.run(60)
    assert len(client.node.links) == 30
    node = client.node
    stream = _open(world, client, b"x")
    world.run(1)
    looked = []
    world.check_touched = lambda node: None  # it asks all of them
    for peer in node.peers.values():
        contact = peer.contact

        def next_deadline(peer=peer, ask=contact.next_deadline):
            looked.append(peer.id)
            return ask()

        contact.next_deadline = next_deadline
    node.next_deadline()
    assert looked == []
    node.tunnel(stream).write(stream, b"more")
    world.settle(client)
    assert set(looked) == {1}


def test_a_full_link_is_looked_at_until_it_has_room():
    """Nobody says when `room` has grown by a little: every flush asks again."""
    world, client, server = pair()
    stream = _open(world, client)
    world.run(1)
    world.room = lambda link: 0
    client.send(stream, b"waits")
    for _ in range(3):
        client.node.next_deadline()
        world.settle(client)
    del world.room
    client.node.next_deadline()
    world.settle(client)
    world.run(0.1)
    assert bytes(server.received[stream.id]) == b"waits"
