"""Out-of-band messages (R21): ahead of the streams, to any node, over any link, in simulated time."""

from __future__ import annotations

import pytest

from uservpn.errors import PeerFault, UsageError
from uservpn.mesh import mailbox
from uservpn.mesh.mailbox import (
    CONFIRMED_MAX,
    GIVE_UP_S,
    QUEUE_MAX,
    SPAN,
    STALE_S,
    Mailbox,
    decode,
    encode,
)
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.wire.constants import Kind
from world import World, pair

HOME = {1: ("sim://10.0.0.1:1",)}


def _send(world, member, peer, payload, confirmed=False, topic="test"):
    token = member.node.send_message(peer, topic, payload, world.now, confirmed=confirmed)
    world.settle(member)
    return token


def _mesh(**options) -> World:
    """Servers 1 and 2, client 50, and 60, which can only dial out."""
    world = World(**options)
    for node in (1, 2):
        here = Known(EndpointKind.FIXED, f"sim://10.0.0.{node}:1")
        record = Record(node, 1000, 0, Role.SERVER | Role.RELAY, endpoints=(here,))
        world.add(node, {} if node == 1 else HOME, record=record)
    world.add(50, HOME)
    world.add(60, HOME, record=Record(60, 1000, 0, Role.EXIT))
    world.run(10)
    return world


def test_a_message_takes_one_flight_and_its_confirmation_one_more():
    world, client, server = pair(delay=0.05)
    world.run(2)
    assert _send(world, client, 1, b"hello") == 0
    token = _send(world, client, 1, b"sure?", confirmed=True)
    world.run(0.051)
    assert server.messages == [(7, "test", b"hello"), (7, "test", b"sure?")]
    assert not client.results
    world.run(0.05)
    assert client.results == {token: True}
    _send(world, server, 7, b"back", topic="exit.tested")
    world.run(0.06)
    assert client.messages == [(1, "exit.tested", b"back")]


def test_a_message_is_ahead_of_what_the_streams_have_queued():
    world, client, _ = pair()
    world.run(2)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, bytes(200_000))
    client.node.send_message(1, "test", b"first", world.now)
    link = client.node.peers[1].contact.links[0].link
    batches = client.node.take_transmits(lambda _: 1 << 19, world.now)
    kinds = [client.codec.open(head).kind for at, batch in batches for head in batch[::2]]
    assert all(at == link for at, _ in batches)
    assert kinds[0] == Kind.MESSAGE and Kind.DATA in kinds


def test_messages_wait_for_room_on_the_link():
    world, client, server = pair()
    world.run(2)
    client.node.send_message(1, "test", b"later", world.now)
    assert client.node.take_transmits(lambda _: 0, world.now) == []
    world.settle(client)
    world.run(1)
    assert server.messages == [(7, "test", b"later")]


@pytest.mark.parametrize("seed", range(10))
def test_confirmed_messages_arrive_once_however_much_is_lost(seed):
    world, client, server = pair(seed=seed)
    world.run(2)
    world.loss, world.dup, world.reorder = 0.3, 0.2, 0.3
    tokens = [_send(world, client, 1, b"%d" % i, confirmed=True) for i in range(40)]
    world.run(GIVE_UP_S + 1)
    assert set(client.results) == set(tokens)
    got = [payload for _, _, payload in server.messages]
    assert len(got) == len(set(got)), "none came twice"
    for index, token in enumerate(tokens):
        assert not client.results[token] or b"%d" % index in got
    assert sum(client.results.values()) >= 36


def test_at_best_effort_nothing_is_sent_again():
    world, client, server = pair()
    world.run(2)
    world.black_hole = True
    _send(world, client, 1, b"gone")
    world.black_hole = False
    world.run(60)
    assert server.messages == []


def test_a_node_that_is_not_linked_is_dialled():
    world = _mesh()
    client, server = world.members[50], world.members[2]
    for link, (member, other) in list(world.links.items()):
        if {member.id, other.id} == {50, 2}:
            world.cut(link)
    client.node.peers[2].contact.is_kept = False
    token = _send(world, client, 2, b"hello", confirmed=True)
    world.run(1)
    assert server.messages == [(50, "test", b"hello")] and client.results == {token: True}


def test_a_node_that_only_dials_out_is_reached_over_a_relay():
    world = _mesh()
    client, hidden = world.members[50], world.members[60]
    token = _send(world, client, 60, b"knock", confirmed=True)
    world.run(1)
    assert hidden.messages == [(50, "test", b"knock")] and client.results == {token: True}
    (state,) = client.node.peers[60].contact.links
    assert state.relayed


def test_a_message_survives_the_loss_of_its_relay():
    world = _mesh()
    client, hidden = world.members[50], world.members[60]
    _send(world, client, 60, b"first", confirmed=True)
    world.run(5)
    (state,) = client.node.peers[60].contact.links
    (relay,) = client.node.links[state.link].hops
    token = _send(world, client, 60, b"second", confirmed=True)
    world.crash(relay)
    world.run(10)
    assert client.results[token]
    assert [payload for _, _, payload in hidden.messages] == [b"first", b"second"]


def test_seeking_a_way_over_relays_that_are_gone_dials_them():
    """What is done for one peer touches others, in the middle of a look at those that are due."""
    world = _mesh()
    client, hidden = world.members[50], world.members[60]
    world.crash(1)
    world.crash(2)
    world.run(200)
    for node in (1, 2):
        here = Known(EndpointKind.FIXED, f"sim://10.0.0.{node}:1")
        record = Record(node, 2000, 0, Role.SERVER | Role.RELAY, endpoints=(here,))
        world.add(node, {} if node == 1 else HOME, record=record, boot=2000)
    token = _send(world, client, 60, b"hello", confirmed=True)
    hidden.node.wake(world.now)
    world.settle(hidden)
    world.run(GIVE_UP_S)
    assert client.results[token] and hidden.messages


def test_nobody_there_is_a_result_too():
    """Within the bound, with or without anything to dial."""
    world, client, _ = pair()
    world.run(2)
    nowhere = _send(world, client, 99, b"hello?", confirmed=True)
    _send(world, client, 99, b"hello?")
    world.crash(1)
    token = _send(world, client, 1, b"hello?", confirmed=True)
    world.run(GIVE_UP_S + 1)
    assert client.results == {nowhere: False, token: False}
    assert not client.node.peers[99].is_needed() and not client.node.peers[1].is_needed()
    assert client.node.peers[99].mail.dropped_count == 1


def test_a_message_waits_for_a_peer_that_restarts():
    """What the old one had is not taken for what the new one has; numbers begin anew."""
    world, client, server = pair()
    world.run(2)
    before = _send(world, server, 7, b"from the old one", confirmed=True)
    world.run(1)
    world.crash(1)
    token = _send(world, client, 1, b"to the new one", confirmed=True)
    world.run(3)
    server = world.add(1, boot=2000)
    world.run(10)
    assert server.messages == [(7, "test", b"to the new one")] and client.results[token]
    again = _send(world, server, 7, b"from the new one", confirmed=True)
    world.run(1)
    assert again == before and server.results[again]
    assert [payload for _, _, payload in client.messages] == [
        b"from the old one",
        b"from the new one",
    ]


def test_a_message_over_a_link_that_died_without_a_word_takes_another_one():
    """A datagram link whose other end has another port now: nothing but silence tells."""
    world = World()
    world.payload_max = 1400
    server, client = world.add(1), world.add(7, HOME)
    world.run(30)
    world.dead.update(world.links)
    token = _send(world, client, 1, b"hello?", confirmed=True)
    world.run(GIVE_UP_S - 1)
    assert client.results == {token: True}
    assert server.messages == [(7, "test", b"hello?")]


def test_a_clock_that_is_wrong_by_an_hour_costs_one_round_trip():
    for skew in (-3600.0, 3600.0):
        world = World(delay=0.05)
        server = world.add(1)
        client = world.add(7, HOME, skew_s=skew)
        token = _send(world, client, 1, b"hello", confirmed=True)
        world.run(1)
        assert client.results == {token: True}
        assert server.messages == [(7, "test", b"hello")]


def test_the_queue_is_bounded_the_oldest_at_best_effort_goes_a_confirmed_one_fails():
    world = World()
    client = world.add(7)
    for index in range(QUEUE_MAX + 3):
        _send(world, client, 1, b"%d" % index)
    mail = client.node.peers[1].mail
    assert len(mail.outgoing) == QUEUE_MAX and mail.dropped_count == 3
    assert decode(mail.outgoing[0].sealed)[2] == b"3"
    tokens = [_send(world, client, 1, b"", confirmed=True) for _ in range(CONFIRMED_MAX + 2)]
    assert client.results == dict.fromkeys(tokens[-2:], False)
    world.run(STALE_S + 1)
    assert len(mail.outgoing) == CONFIRMED_MAX
    _send(world, client, 1, b"more")
    assert len(mail.outgoing) == CONFIRMED_MAX, "the new one goes where all others are confirmed"


def test_a_number_under_way_never_leaves_the_receivers_window():
    box, other = Mailbox(), Mailbox()
    first = box.post("t", b"", True, 0.0)
    payload = box.take(None, 0.0)
    failed = []
    for _ in range(SPAN + 10):
        number = box.post("t", b"", True, 0.0)
        if box.outgoing:
            other.receive(box.take(None, 0.0))
            box.confirmed(mailbox.confirmation(number))
        failed += [number for number, delivered in box.take_results() if not delivered]
    assert failed[0] - first == SPAN
    assert other.receive(payload).is_new
    assert not other.receive(payload).is_new


@pytest.mark.parametrize(
    ("topic", "payload"),
    [("", b""), ("t" * 33, b""), ("ü", b""), ("t", bytes(1001))],
)
def test_what_is_too_long_is_the_callers_mistake(topic, payload):
    _world, client, _ = pair()
    with pytest.raises(UsageError):
        client.node.send_message(1, topic, payload, 0.0)
    for node in (0, 7, 255):
        with pytest.raises(UsageError):
            client.node.send_message(node, "t", b"", 0.0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(9),
        encode(0, "t", bytes(1000))[:-1],
        bytes(8) + b"\1\xff\0\0",
        bytes(8) + b"\0\0\0",
    ],
)
def test_a_malformed_message_is_the_peers_fault_and_costs_its_link(payload):
    with pytest.raises(PeerFault):
        decode(payload)
    world, client, server = pair()
    world.run(2)
    link = next(iter(client.node.links))
    client.node.peers[1].outbox.append((link, Kind.MESSAGE, payload, 0))
    client.node.table.touch(client.node.peers[1])
    world.settle(client)
    world.run(0.06)
    assert server.node.counters.peer_faults == 1
    assert any("makes no sense" in text for text in server.news)


def test_whatever_can_be_encoded_decodes_to_itself():
    for size in (0, 1, 1000):
        assert decode(encode(5, "a.topic", bytes(size)) + bytes(63)) == (5, "a.topic", bytes(size))
