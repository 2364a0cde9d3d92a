"""Messages in batches do what they do one by one, whatever is among them; small chunks are joined."""

from __future__ import annotations

import random

import pytest

from uservpn.errors import Fault
from uservpn.runtime.chunks import JOIN_MAX, JOINED_COUNT, joined
from uservpn.tunnel.events import Data, Finished, Opened
from uservpn.tunnel.stream import Stream
from uservpn.wire.constants import HEADER_SIZE, Kind
from world import BASE, Member, in_runs, pair


def _messages_of_a_client() -> tuple:
    """A world, and what its client (7) said to its server (1), in order: streams, gossip, probes, an end."""
    world, client, _ = pair(delay=0.01)
    world.payload_max = 1424
    world.run(2)
    for number in range(3):
        stream = client.node.open(1, f"site{number}.test", 80, None, world.now)
        client.send(stream, bytes([number]) * 40_000, finish=True)
        world.settle(client)
        world.run(0.5)
    client.node.describe(world.now, name="another")
    world.run(3)
    sent = [
        (head, body)
        for link, head, body in world.tap
        if world.links[link][0] is client
        and client.codec.open(head).kind != Kind.SINK  # confirms what a silent server never sent
    ]
    assert len(sent) > 90
    return world, sent


def _spoiled(sent: list, seed: int) -> list:
    """Some twice, some forged, some in another order."""
    rng = random.Random(seed)
    messages = []
    for head, body in sent:
        messages.append((head, body))
        if rng.random() < 0.2:
            messages.append(rng.choice(messages))
        if rng.random() < 0.1:
            broken = bytearray(body)
            broken[rng.randrange(len(broken))] ^= 1
            messages.append((head, bytes(broken)))
    for place in range(0, len(messages) - 9, 9):
        part = messages[place : place + 9]
        rng.shuffle(part)
        messages[place : place + 9] = part
    return messages


class Sink:
    """A server that hears what another one was told, and says nothing."""

    def __init__(self, world) -> None:
        self.member = Member(world, 1, {}, 1000, (bytes(range(32)),))
        self.member.node.start(world.now)
        self.now = world.now
        self.node = self.member.node
        self.node.link_up(5, "udp", 1424, "udp://x", self.now, size_base=BASE)

    def hear(self, messages: list, batch: int) -> None:
        for start in range(0, len(messages), batch):
            opened = []
            for head, body in messages[start : start + batch]:
                header = self.member.codec.open(head)
                assert header is not None and len(head) == HEADER_SIZE
                opened.append((header, memoryview(body)))
            if batch == 1:
                self.node.receive(5, *opened[0], self.now)
            else:
                assert not [*self.node.receive_batch(5, in_runs(opened), lambda link: 0, self.now)]
            for event in self.node.take_events(self.now):
                self.member.handle(event)
            self.node.next_deadline()

    def outcome(self) -> tuple:
        peer = self.node.peers[7]
        session = peer.session
        return (
            {number: bytes(data) for number, data in self.member.received.items()},
            self.member.finished,
            self.node.counters,
            (session.replayed_count, session.forged_count, session.peer_boot),
            self.node.directory.get(7),
            peer.tunnel.opened_count,
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch", [2, 7, 500])
def test_a_batch_does_what_its_messages_do_one_by_one(seed, batch):
    world, sent = _messages_of_a_client()
    messages = _spoiled(sent, seed) if seed else sent
    singly, together = Sink(world), Sink(world)
    singly.hear(messages, 1)
    together.hear(messages, batch)
    assert together.outcome() == singly.outcome()
    received = together.member.received
    assert sorted(len(data) for data in received.values()) == [40_000] * 3
    assert together.node.forgotten() == []


def test_a_batch_of_two_boots_follows_the_newer_one():
    """A node that was restarted: its old messages in the same read have no effect any more."""
    world, sent = _messages_of_a_client()
    again, _, _ = pair(delay=0.01)
    assert again is not world
    fresh = Member(world, 7, {1: ("sim://10.0.0.1:1",)}, 2000, (bytes(range(32)),))
    fresh.node.link_up(1, "sim", 70_000, "sim://10.0.0.1:1", world.now, 1, "sim://10.0.0.1:1")
    ((_, hello),) = fresh.node.take_transmits(lambda link: 1 << 19, world.now)
    together = Sink(world)
    together.hear([*sent[:60], (hello[0], hello[1]), *sent[60:]], 500)
    assert together.node.peers[7].session.peer_boot == 2000
    assert not together.node.peers[7].tunnel.streams


def _stream(number: int) -> Stream:
    return Stream(number, 1, True, 1000)


@pytest.mark.parametrize("seed", range(20))
def test_joined_events_are_the_same_bytes_in_the_same_order(seed):
    rng = random.Random(seed)
    streams = [_stream(number) for number in range(1, 4)]
    events: list = []
    for _ in range(300):
        stream = rng.choice(streams) if rng.random() < 0.2 or not events else events[-1].stream
        kind = rng.random()
        if kind < 0.9:
            events.append(Data(stream, rng.randbytes(rng.choice((1, 1400, JOIN_MAX, 60_000)))))
        elif kind < 0.95:
            events.append(Opened(stream, Fault.NONE, b""))
        else:
            events.append(Finished(stream))
    out = joined(events)

    def flat(some: list) -> list:
        """Data split into bytes of one stream up to the next event of another kind or stream."""
        result: list = []
        for event in some:
            if type(event) is not Data:
                result.append(event)
            elif result and isinstance(result[-1], list) and result[-1][0] is event.stream:
                result[-1][1] += bytes(event.chunk)
            else:
                result.append([event.stream, bytes(event.chunk)])
        return result

    assert flat(out) == flat(events)
    assert len(out) < len(events)
    assert all(len(event.chunk) <= JOIN_MAX * JOINED_COUNT for event in out if type(event) is Data)


def test_large_chunks_are_not_copied():
    stream = _stream(1)
    events = [Data(stream, bytes(JOIN_MAX + 1)) for _ in range(10)]
    assert joined(events) == events and all(
        a is b for a, b in zip(joined(events), events, strict=True)
    )
