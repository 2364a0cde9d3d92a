"""When a server counts as dead for its streams, and when it must not (design: refused, silent, new boot)."""

from __future__ import annotations

import itertools

from uservpn.errors import Fault
from world import World, pair


def _open(world, client, data=b""):
    stream = client.node.open(1, "site.test", 80, None, world.now)
    if data:
        client.send(stream, data)
    world.settle(client)
    return stream


def test_a_server_that_was_never_reached_is_dead_after_the_grace_time():
    """No refusal, no link, no answer: a program must not wait for ever."""
    world = World()
    world.unreachable.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)})
    world.run(5)
    stream = _open(world, client)
    world.run(55)
    assert not client.resets
    world.run(10)
    assert client.resets == {stream.id: Fault.EXIT_DEAD}
    again = _open(world, client)
    world.run(70)
    assert client.resets[again.id] is Fault.EXIT_DEAD


def test_a_link_lost_long_ago_does_not_count_against_a_new_stream():
    """The grace time of a stream begins with the stream: the laptop was offline, now it is not."""
    world, client, server = pair()
    world.run(5)
    world.unreachable.add(1)
    world.cut_all()
    world.run(600)
    stream = _open(world, client, b"back")
    world.run(20)
    world.unreachable.clear()
    world.run(20)
    assert not client.resets
    assert bytes(server.received[stream.id]) == b"back"


def test_a_server_that_falls_silent_while_a_stream_waits_is_noticed():
    """Everything was confirmed, then the power failed: probes, ever rarer, find out."""
    world, client, _server = pair()
    stream = _open(world, client, b"request")
    world.run(5)
    assert client.node.tunnel(stream).cache_size == 0
    world.black_hole = True
    world.run(30 + 8 + 60 + 15)
    assert client.resets == {stream.id: Fault.EXIT_DEAD}


def test_probes_of_idle_streams_become_rare():
    """An open connection that says nothing costs next to nothing."""
    world, client, server = pair()
    stream = _open(world, client, b"request")
    world.run(5)
    world.tap.clear()
    world.run(3600)
    assert len(world.tap) <= 40
    assert stream.id in client.node.tunnel(stream).streams
    assert len(server.node.links) == 1


def test_a_server_added_to_the_configuration_is_dialled():
    world, client, _server = pair()
    other = world.add(2)
    world.run(1)
    client.node.set_servers({1: ("sim://10.0.0.1:1",), 2: ("sim://10.0.0.2:1",)}, world.now)
    world.settle(client)
    stream = client.node.open(2, "site.test", 80, None, world.now)
    client.send(stream, b"hello")
    world.settle(client)
    world.run(1)
    assert bytes(other.received[stream.id]) == b"hello"


def test_a_server_taken_from_the_configuration_hears_that_its_streams_ended():
    world, client, server = pair()
    stream = _open(world, client, b"hello")
    world.run(1)
    client.node.set_servers({}, world.now)
    world.settle(client)
    world.run(1)
    assert client.resets[stream.id] is Fault.EXIT_DEAD
    assert stream.id in server.resets
    assert not client.node.links and not client.node.peers[1].contact.links
    client.node.set_servers({1: ("sim://10.0.0.1:1",)}, world.now)
    world.settle(client)
    again = _open(world, client, b"again")
    world.run(1)
    assert bytes(server.received[again.id]) == b"again"


def test_a_link_that_dies_at_once_is_not_dialled_in_a_hot_loop():
    """Whoever accepts and closes at once is asked less and less often."""
    world, _client, _server = pair()
    dials = []
    connect = world.connect

    def short(member, peer, endpoint):
        dials.append(world.now)
        connect(member, peer, endpoint)
        world.cut_all()

    world.connect = short
    world.run(30)
    assert 2 <= len(dials) <= 16


def test_keep_alives_of_several_links_do_not_fall_together():
    world = World(seed=5)
    for node in range(1, 6):
        world.add(node)
    world.add(7, {node: (f"sim://10.0.0.{node}:1",) for node in range(1, 6)})
    world.run(5)
    times = []
    carry = world.carry

    def watched(link, head, body):
        times.append(world.now)
        carry(link, head, body)

    world.carry = watched
    world.run(599)
    assert len(times) >= 10
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert max(gaps) > 1.0
