"""Relaying with the shipped `Node`: who cannot be reached directly is reached over others."""

from __future__ import annotations

import pytest

from uservpn.errors import Fault
from uservpn.mesh.contact import Contact, Probe
from uservpn.mesh.liveness import CHECK_S, HURRY_S
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.node.table import OVERHEAD
from uservpn.types import LinkId
from uservpn.wire.constants import Kind
from uservpn.wire.header import NUMBER_AT, Header
from world import World, calls_of, in_runs

PASS_CALLS_MAX = 22
HOME = {1: ("sim://10.0.0.1:1",)}


def _server(node: int) -> Record:
    here = Known(EndpointKind.FIXED, f"sim://10.0.0.{node}:1")
    return Record(node, 1000, 0, Role.SERVER | Role.EXIT | Role.RELAY, endpoints=(here,))


def _mesh(servers: int = 3, payload_max: int | None = None, **options) -> World:
    """Servers, a client 50, and 60: an exit that can only dial out, as behind a NAT."""
    world = World(**options)
    world.payload_max = payload_max
    for node in range(1, servers + 1):
        world.add(node, {} if node == 1 else HOME, record=_server(node))
    world.add(50, HOME)
    world.add(60, HOME, record=Record(60, 1000, 0, Role.EXIT | Role.RELAY))
    world.run(10)
    return world


def _fetch(world: World, size: int = 300_000, exit: int = 60, seconds: float = 10):
    """The client sends `size` bytes to a site behind the exit, which has them all in the end."""
    client = world.members[50]
    stream = client.node.open(exit, "site.test", 80, None, world.now)
    data = bytes(i * 7 & 0xFF for i in range(size))
    client.send(stream, data, finish=True)
    world.settle(client)
    world.run(seconds)
    assert client.opened[stream.id] is Fault.NONE
    assert bytes(world.members[exit].received[stream.id]) == data
    return stream


def _ways(world: World, peer: int = 60) -> list[tuple[int, ...]]:
    node = world.members[50].node
    return [node.links[state.link].hops for state in node.peers[peer].contact.links]


def test_an_exit_that_only_dials_out_is_reached_over_a_relay():
    """R13, R17: and its answers come back the same way."""
    world = _mesh()
    stream = _fetch(world)
    exit = world.members[60]
    back = exit.offered[-1][0]
    exit.send(back, b"answer" * 1000, finish=True)
    world.settle(exit)
    world.run(3)
    assert bytes(world.members[50].received[stream.id]) == b"answer" * 1000
    (way,) = _ways(world)
    assert len(way) == 1 and way[0] in (1, 2, 3)
    assert world.members[way[0]].node.relay.counters.passed > 3


def _on_the_way(world: World):
    """The relay's node, its link, and messages of the client that are about to reach it."""
    _fetch(world)
    client = world.members[50]
    client.send(client.node.open(60, "site.test", 80, None, world.now), bytes(500_000))
    ((link, batch),) = client.node.take_transmits(world.room, world.now)
    messages = [
        (client.codec.open(batch[i]), memoryview(bytearray(batch[i + 1])))
        for i in range(0, len(batch), 2)
    ]
    assert len(messages) > 1
    return world.members[_ways(world)[0][0]].node, link ^ 1, messages


def _numbered(header: Header, number: int) -> Header:
    """The same with another number."""
    associated = header.associated[:NUMBER_AT] + number.to_bytes(6, "big")
    return header._replace(number=number, associated=associated)


def test_what_need_not_wait_is_passed_on_from_the_buffer_it_came_in():
    """R17: no copy, and no flush for each read; a neighbour's contact hears of it now and then."""
    world = _mesh()
    relay, link, messages = _on_the_way(world)
    passed = relay.relay.counters.passed
    ((_, batch),) = relay.receive_batch(link, in_runs(messages), lambda link: 1 << 20, world.now)
    assert all(part is body for part, (_, body) in zip(batch[1::2], messages, strict=True))
    opened = [world.members[60].codec.open(head) for head in batch[::2]]
    assert [header.number for header in opened] == [header.number for header, _ in messages]
    assert all(header.stamp_hop1 != b"\0\0\0" for header in opened)
    assert relay.relay.counters.passed == passed + len(messages)
    assert not relay.relay.queues
    assert relay.take_transmits(lambda link: 1 << 20, world.now) == []
    relay.next_deadline()
    assert not relay.has_work(), "what passes soon after is no work for a flush"
    assert not list(
        relay.receive_batch(link, in_runs(messages), lambda link: 1 << 20, world.now)
    ), "nothing twice"


def test_what_has_to_wait_is_copied_and_nothing_overtakes_it():
    world = _mesh()
    relay, link, messages = _on_the_way(world)
    bodies = [bytes(body) for _, body in messages]
    assert not list(relay.receive_batch(link, in_runs(messages[:1]), lambda link: 0, world.now))
    assert not list(
        relay.receive_batch(link, in_runs(messages[1:]), lambda link: 1 << 20, world.now)
    )
    for _, body in messages:
        body[:] = bytes(len(body))  # the link reads into its buffer again
    ((_, batch),) = relay.take_transmits(lambda link: 1 << 20, world.now)
    assert batch[1::2] == bodies


def test_what_a_link_has_room_for_goes_on_and_the_rest_waits():
    world = _mesh()
    relay, link, messages = _on_the_way(world)
    rooms = iter((1, 0))
    ((_, batch),) = relay.receive_batch(
        link, in_runs(messages), lambda link: next(rooms), world.now
    )
    assert len(batch) == 2
    ((_, rest),) = relay.take_transmits(lambda link: 1 << 20, world.now)
    assert len(batch) + len(rest) == 2 * len(messages)


def test_a_link_that_takes_at_once_what_it_has_room_for_gets_the_rest_of_the_read():
    """Nothing is copied and queued while the kernel swallows batch after batch."""
    world = _mesh()
    relay, link, messages = _on_the_way(world)
    batches = [
        batch
        for _, batch in relay.receive_batch(link, in_runs(messages), lambda link: 1, world.now)
    ]
    assert [len(batch) for batch in batches] == [2] * len(messages)
    bodies = [batch[1] for batch in batches]
    assert all(part is body for part, (_, body) in zip(bodies, messages, strict=True))
    assert not relay.relay.queues


def test_each_of_many_alike_is_still_looked_at():
    """What was found out about one message holds for the next, but whether that is new."""
    world = _mesh()
    relay, link, messages = _on_the_way(world)
    header, body = messages[0]
    alike = [(_numbered(header, header.number + count), body) for count in range(8)]
    stale = relay.relay.counters.stale
    twice = [one for one in alike for _ in range(2)]
    ((_, batch),) = relay.receive_batch(link, in_runs(twice), lambda link: 1 << 20, world.now)
    assert len(batch) == 2 * len(alike)
    assert relay.relay.counters.stale == stale + len(alike)
    astray = _numbered(header, header.number + 9)._replace(hop1=9)
    rest = [(_numbered(header, header.number + 8), body), (astray, body)]
    misdirected = relay.counters.misdirected
    assert len([*relay.receive_batch(link, in_runs(rest), lambda link: 1 << 20, world.now)]) == 1
    assert relay.counters.misdirected == misdirected + 1


def test_nothing_of_a_boot_that_is_gone_follows_though_nothing_of_the_new_one_went_on():
    world = _mesh()
    relay, link, messages = _on_the_way(world)
    header, body = messages[0]
    fields = header.associated
    boot, length = header.boot + 1, 200_000  # more than the next link carries
    associated = fields[:3] + length.to_bytes(4, "big") + boot.to_bytes(8, "big") + fields[15:]
    newer = header._replace(length=length, boot=boot, associated=associated)
    read = [(header, body), (newer, bytes(length)), (_numbered(header, header.number + 1), body)]
    stale = relay.relay.counters.stale
    ((_, batch),) = relay.receive_batch(link, in_runs(read), lambda link: 1 << 20, world.now)
    assert len(batch) == 2
    assert relay.relay.counters.stale == stale + 1


def test_calls_per_message_passed_on_stay_within_their_budget():
    """Of Python and C functions, for each of four messages of one read; opening the header is the link's."""
    world = _mesh()
    relay, link, messages = _on_the_way(world)
    header, body = messages[0]
    reads = [
        in_runs([(_numbered(header, header.number + 4 * read + at), body) for at in range(4)])
        for read in range(64)
    ]
    sent = 0

    def work() -> None:
        nonlocal sent
        for runs in reads:
            for _, batch in relay.receive_batch(link, runs, lambda link: 1 << 20, world.now):
                sent += len(batch) // 2

    made = calls_of(work)
    print(f"{made / sent:.1f} calls to pass on")
    assert sent == 4 * len(reads) and made / sent <= PASS_CALLS_MAX


def test_with_the_direct_way_blocked_a_relay_is_left():
    """A firewall drops, or refuses, what goes from the client to server 3."""
    for blocked in ("unreachable", "refusing"):
        world = _mesh()
        client = world.members[50].node
        for link, (member, other) in list(world.links.items()):
            if {member.id, other.id} == {50, 3}:
                world.cut(link)
        getattr(world, blocked).add(3)
        _fetch(world, exit=3)
        assert _ways(world, 3)[0] in ((1,), (2,))
        assert not any("dead" in text for text in world.members[50].news)
        assert client.peers[3].relayed_bytes > 300_000


def test_a_direct_way_that_swallows_all_is_left_by_both_ends():
    """Datagram links end without a word: who dials notices, who only answers must not go on into nothing."""
    world = _mesh(payload_max=1400)
    exit = world.members[3]
    _fetch(world, 3000, exit=3)
    world.shut.add(frozenset((50, 3)))
    stream = _fetch(world, 3000, exit=3, seconds=3)
    back = exit.offered[-1][0]
    exit.send(back, b"answer" * 1000, finish=True)
    world.settle(exit)
    world.run(1)
    assert bytes(world.members[50].received[stream.id]) == b"answer" * 1000


def test_two_relays_where_one_does_not_reach():
    """60 reaches server 2 alone, 50 reaches server 1 alone."""
    world = World()
    for node in (1, 2):
        world.add(node, {} if node == 1 else HOME, record=_server(node))
    world.add(60, {2: ("sim://10.0.0.2:1",)}, record=Record(60, 1000, 0, Role.EXIT))
    world.run(5)
    for link, (member, other) in list(world.links.items()):
        if {member.id, other.id} == {60, 1}:
            world.cut(link)
    world.add(50, HOME)
    world.unreachable.update((1, 2))  # nobody dials any more; what is linked stays
    world.unreachable.discard(1)
    world.run(0.3)
    client = world.members[50]
    for link, (member, other) in list(world.links.items()):
        if {member.id, other.id} in ({60, 1}, {50, 2}):
            world.cut(link)
    world.unreachable.add(1)
    world.run(10)
    stream = client.node.open(60, "site.test", 80, None, world.now)
    client.send(stream, b"x" * 100_000, finish=True)
    world.settle(client)
    world.run(10)
    assert bytes(world.members[60].received[stream.id]) == b"x" * 100_000
    assert _ways(world) == [(1, 2)]


def test_killing_the_relay_in_use_moves_its_traffic_and_loses_nothing():
    world = _mesh()
    client = world.members[50]
    stream = client.node.open(60, "site.test", 80, None, world.now)
    data = bytes(3_000_000)
    client.send(stream, data, finish=True)
    world.settle(client)
    world.run(0.5)
    (way,) = _ways(world)
    assert not world.members[60].finished
    world.crash(way[0])
    world.run(0.2)
    assert _ways(world) and way[0] not in _ways(world)[0], "another way within a second"
    world.run(30)
    received = world.members[60].received.values()
    assert bytes(next(iter(received))) == data
    assert stream.id not in client.resets


@pytest.mark.parametrize(("is_download", "delay", "most_s"), [(False, 0.05, 0.8), (True, 0.1, 1.5)])
def test_a_relay_that_falls_silent_is_left_within_a_second(is_download, delay, most_s):
    """Its datagram links stand: nobody says that it is gone. Nor does the traffic come back to it."""
    world = _mesh(payload_max=1400, delay=delay)
    near, far = world.members[50], world.members[60]
    stream = near.node.open(60, "site.test", 80, None, world.now)
    near.send(stream, b"x")
    world.settle(near)
    world.run(1)
    back = far.offered[-1][0]
    source, out, sink, key = (near, stream, far, back.id)
    if is_download:
        source, out, sink, key = (far, back, near, stream.id)
    ((dead,),) = _ways(world)
    longest = last = 0.0
    count = 0
    for turn in range(350):
        if turn == 50:
            world.shut |= {frozenset((dead, node)) for node in world.members}
        if turn >= 50 + 2 * most_s / 0.02:
            node = source.node
            used = node.links[node.peers[sink.id].sent_over].hops
            assert used and used[0] != dead
        source.send(out, bytes(1000))
        world.settle(source)
        world.run(0.02)
        if len(sink.received.get(key, b"")) > count:
            longest, last = max(longest, world.now - last if last else 0.0), world.now
            count = len(sink.received[key])
    assert longest < most_s
    world.run(2)
    assert len(sink.received[key]) == 350_000 + (not is_download)


@pytest.mark.parametrize("is_download", [False, True])
@pytest.mark.parametrize("delay", [0.05, 0.1])
def test_a_relay_whose_connection_ends_is_left_at_once_though_its_datagram_link_stands(
    is_download, delay
):
    """A killed process: its connections are closed by its system, datagrams just get no answer."""
    world = _mesh(delay=delay)
    near, far = world.members[50], world.members[60]
    stream = near.node.open(60, "site.test", 80, None, world.now)
    near.send(stream, b"x")
    world.settle(near)
    world.run(1)
    ((dead,),) = _ways(world)
    for member in (near, far):
        world.connect(member, dead, f"udp://10.0.0.{dead}:1", "udp")
    back = far.offered[-1][0]
    source, out, sink, key = (near, stream, far, back.id)
    if is_download:
        source, out, sink, key = (far, back, near, stream.id)
    longest = last = died_at = 0.0
    count = 0
    for turn in range(250):
        if turn == 100:
            died_at = world.now
            world.members[dead].is_up = False
            world.shut |= {frozenset((dead, node)) for node in world.members}
            for link, (member, _) in list(world.links.items()):
                if member.id == dead and world.protocols[link] == "sim":
                    world.at(world.now + delay, lambda link=link: world.cut(link))
        source.send(out, bytes(1000))
        world.settle(source)
        world.run(0.02)
        if died_at and world.now > died_at + delay + 0.02:
            used = source.node.links[source.node.peers[sink.id].sent_over].hops
            assert used and used[0] != dead, "left as soon as it is noticed, for good"
        if len(sink.received.get(key, b"")) > count:
            longest, last = max(longest, world.now - last if last else 0.0), world.now
            count = len(sink.received[key])
    assert longest < 0.05 + 8 * delay, (
        "noticed, one way, the report of what is missing, and that again"
    )
    world.run(2)
    assert len(sink.received[key]) == 250_000 + (not is_download)


def test_a_way_that_is_heard_comes_first_though_a_dial_is_under_way():
    """Reports go where the newest message came from, not over a way that may be dead."""
    contact = Contact(("udp://10.0.0.1:1",), keepalive_s=600.0, grace_s=60.0, jitter=lambda s: 0.0)
    old = contact.link_up(LinkId(-1), "relay", "relay:1", True, 0.0, relayed=True)
    contact.link_up(LinkId(2), "udp", "udp://10.0.0.1:1", True, 0.0, is_lossy=True)
    contact.heard(old, 0.1)
    new = contact.link_up(LinkId(-2), "relay", "relay:2", False, 1.0, relayed=True)
    contact.heard(new, 1.0)
    assert contact.best() is new
    contact.heard(old, 1.1)
    assert contact.best() is old
    assert contact.links[-1].is_tentative


def test_a_relay_tells_that_its_neighbour_has_fallen_silent():
    """The link between them stands; after a second and a probe whoever sends over it hears of it."""
    world = _mesh(servers=1, payload_max=1400)
    near = world.members[50]
    stream = near.node.open(60, "site.test", 80, None, world.now)
    near.send(stream, b"x")
    world.settle(near)
    world.run(1)
    relay = world.members[1].node
    assert relay.relay.counters.unreachable == 0
    world.shut.add(frozenset((1, 60)))
    relay.ping(60, world.now)
    world.settle(world.members[1])
    began = world.now
    while not relay.relay.counters.unreachable and world.now < began + 5:
        near.send(stream, bytes(100))
        world.settle(near)
        world.run(0.02)
    assert 1.0 < world.now - began < 2.0
    world.shut.clear()
    world.run(15)
    assert len(world.members[60].received[world.members[60].offered[-1][0].id]) > 1000


def test_one_lost_answer_does_not_move_the_traffic_from_a_way():
    contact = Contact((), keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    way = contact.link_up(LinkId(-1), "relay", "relay:1", True, 0.0, relayed=True)
    way.measured(0.1)
    contact.heard(way, 0.2)
    contact.sent(way, True, 1.0)
    contact.on_deadline(1.39)
    assert not contact.take_plans()
    assert contact.next_deadline() == 1.0 + CHECK_S
    contact.on_deadline(1.0 + CHECK_S)
    assert contact.take_plans() == [Probe(LinkId(-1), False)]
    assert not contact.is_silent()
    contact.on_deadline(1.0 + 2 * CHECK_S)
    assert contact.take_plans() == [Probe(LinkId(-1), False)]
    assert contact.is_silent()
    contact.heard(way, 2.0)
    assert not contact.is_silent()
    contact.sent(way, True, 3.0)
    contact.on_deadline(3.0 + CHECK_S)
    assert not contact.is_silent()


def test_a_silent_link_carries_nothing_for_others_while_another_one_is_heard():
    """And one that was not heard since the way fell silent is asked; one that was, or is being asked, not."""
    udp, tcp = "udp://10.0.0.1:1", "tcp://10.0.0.1:1"
    contact = Contact((udp, tcp), keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    first = contact.link_up(LinkId(1), "tcp", tcp, True, 0.0)
    second = contact.link_up(LinkId(2), "udp", udp, True, 0.0, is_lossy=True)
    contact.heard(first, 0.1)
    contact.proved(second, 0.2)
    contact.take_plans()
    assert contact.carrier() is second
    contact.doubt(0.1, 1.0)
    assert not contact.take_plans()
    contact.doubt(0.9, 1.0)
    contact.doubt(0.9, 1.1)
    assert contact.take_plans() == [Probe(LinkId(2), False)]
    contact.on_deadline(1.0 + HURRY_S)
    assert contact.carrier() is first and contact.direct() is second
    first.probed = True
    assert contact.carrier() is second


def test_a_relay_that_lost_the_exit_says_so_and_another_one_is_taken():
    world = _mesh()
    client = world.members[50]
    _fetch(world)
    (way,) = _ways(world)
    for link, (member, other) in list(world.links.items()):
        if {member.id, other.id} == {60, way[0]}:
            world.cut(link)
    world.unreachable.add(way[0])
    _fetch(world)
    assert all(hops != way for hops in _ways(world))
    assert world.members[way[0]].node.relay.counters.unreachable + 1 > 0
    assert not client.resets


def test_a_dead_exit_behind_relays_is_dead_soon():
    world = _mesh()
    client = world.members[50]
    stream = _fetch(world)
    world.crash(60)
    late = client.node.open(60, "site.test", 80, None, world.now)
    client.send(late, b"x")
    world.settle(client)
    world.run(90)
    assert late.id in client.resets or late.id not in client.opened
    assert stream.id not in client.opened or client.opened[stream.id] is Fault.NONE


def test_a_recorded_message_has_no_second_effect_at_a_relay():
    world = _mesh()
    _fetch(world)
    (way,) = _ways(world)
    relay = world.members[way[0]]
    world.tap.clear()
    _fetch(world, size=1000)
    taken = [
        (link, head, body)
        for link, head, body in world.tap
        if link in world.links and world.links[link][1] is relay and world.links[link][0].id == 50
    ]
    passed, stale = relay.node.relay.counters.passed, relay.node.relay.counters.stale
    relayed = 0
    for link, head, body in taken:
        header = relay.codec.open(head)
        if header is not None and header.destination == 60:
            relayed += 1
            world.inject(relay, link ^ 1, head, body)
    assert relayed > 0
    assert relay.node.relay.counters.passed == passed
    assert relay.node.relay.counters.stale == stale + relayed


def test_a_message_from_who_is_not_the_hop_before_goes_nowhere():
    """Somebody else's link cannot be used to put a recorded message in."""
    world = _mesh()
    _fetch(world)
    (way,) = _ways(world)
    relay = world.members[way[0]]
    client = world.members[50].node
    session = client.peers[60].session
    wall_ms = int((world.now + 1e9) * 1000)
    head, body = session.seal(Kind.KEEPALIVE, b"", b"\0\0\0", wall_ms, hops=way[0] << 8)
    foreign = next(
        link
        for link, entry in relay.node.links.items()
        if entry.peer is not None and entry.peer.id not in (50, 60) and not entry.hops
    )
    before = relay.node.relay.counters.misrouted
    world.inject(relay, foreign, head, body)
    assert relay.node.relay.counters.misrouted == before + 1


@pytest.mark.parametrize("seed", range(10))
def test_over_relays_too_no_byte_is_lost_or_doubled(seed):
    world = _mesh(seed=seed)
    world.loss, world.dup, world.reorder = 0.02, 0.02, 0.05
    _fetch(world, size=600_000, seconds=90)


def test_when_a_direct_link_comes_it_is_used():
    world = _mesh()
    for link, (member, other) in list(world.links.items()):
        if {member.id, other.id} == {50, 3}:
            world.cut(link)
    world.refusing.add(3)
    _fetch(world, exit=3)
    assert _ways(world, 3)[0] != ()
    world.refusing.clear()
    client = world.members[50]
    stream = client.node.open(3, "site.test", 80, None, world.now)
    client.send(stream, b"x")
    world.settle(client)
    world.run(5)
    assert _ways(world, 3)[0] == ()


def test_messages_over_a_relay_are_as_small_as_its_narrower_link_needs():
    """The relay says what was too large for its second link; the origin cuts its messages anew."""
    world = _mesh(payload_max=1424)
    for relay in (1, 2, 3):
        world.narrow[frozenset((relay, 60))] = 1280 - 76
    for link, ends in list(world.links.items()):
        if 60 in {member.id for member in ends}:
            world.cut(link)  # it is dialled again, and its size searched
    world.run(30)
    stream = _fetch(world, 100_000, seconds=30)
    exit = world.members[60]
    back = exit.offered[-1][0]
    exit.send(back, bytes(100_000), finish=True)
    world.settle(exit)
    world.run(30)
    assert len(world.members[50].received[stream.id]) == 100_000
    entry = next(
        entry
        for entry in world.members[50].node.links.values()
        if entry.hops and entry.peer is not None and entry.peer.id == 60
    )
    assert entry.size_max + OVERHEAD == 1280 - 76
    relay = world.members[entry.hops[0]].node.relay
    assert 0 < relay.counters.unreachable < 200 and relay.counters.passed > 100


def test_a_relay_notices_that_its_link_became_narrower():
    """Nobody tells it that what it passes on is lost: it asks, and the origin is told the new size."""
    world = _mesh(payload_max=1424)
    world.run(20)
    _fetch(world, 50_000)
    for relay in (1, 2, 3):
        world.narrow[frozenset((relay, 60))] = 1280 - 76
    _fetch(world, 50_000, seconds=60)
