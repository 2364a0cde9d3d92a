"""Laws of the tunnel and of first contacts, in simulated time with the shipped `Node`."""

from __future__ import annotations

import random

import pytest

from uservpn.errors import Fault, StreamFault
from uservpn.tunnel import limits
from uservpn.wire.constants import NUMBER_MAX
from uservpn.wire.replay import ReplayWindow
from world import BASE, KEY, ROOM, World, pair, take


def _exchange(world, client, server, size, seconds=600.0):
    rng = random.Random(size)
    up, down = rng.randbytes(size), rng.randbytes(size)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, up, finish=True)
    world.settle(client)
    while not server.offered:
        world.run(0.01)
    server.send(server.offered[0][0], down, finish=True)
    world.settle(server)
    world.run(seconds)
    assert bytes(server.received.get(stream.id, b"")) == up
    assert bytes(client.received.get(stream.id, b"")) == down
    assert stream.id in client.finished and stream.id in server.finished
    assert client.opened[stream.id] is Fault.NONE
    assert not client.node.tunnel(stream).streams and not server.node.peers[7].tunnel.streams
    assert client.node.tunnel(stream).cache_size == 0


def test_bytes_arrive_both_ways_and_the_cache_empties():
    _exchange(*pair(), 3_000_000)


@pytest.mark.parametrize("seed", range(6))
def test_loss_reordering_and_duplication_lose_no_byte(seed):
    """Gaps are asked for and resent; nothing arrives twice."""
    _exchange(*pair(seed=seed, loss=0.1, dup=0.1, reorder=0.3), 400_000, 3000.0)


@pytest.mark.parametrize("seed", range(4))
def test_ten_cuts_in_the_middle_lose_no_byte(seed):
    """A link that drops and comes back resumes every connection (R19, R20)."""
    world, client, server = pair(seed=seed, delay=0.02)
    data = random.Random(seed).randbytes(20_000_000)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, data, finish=True)
    world.settle(client)
    rng = random.Random(seed)
    for _ in range(10):
        world.run(rng.random() * 0.3)
        world.cut_all()
        world.settle(client)
    world.run(60)
    assert bytes(server.received[stream.id]) == data
    assert stream.id in server.finished
    assert not client.resets


def test_the_first_message_carries_data():
    """No handshake: OPEN and the first bytes are in the first message (R24)."""
    world, client, server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"hello")
    world.settle(client)
    assert not world.tap  # the link is not up yet
    world.run(0.051)  # connected
    world.run(0.051)  # one flight
    assert bytes(server.received[stream.id]) == b"hello"


def test_a_refused_dial_is_told_and_ends_the_stream():
    world, client, _server = pair()
    stream = client.node.open(1, "refuse.test", 80, None, world.now)
    world.settle(client)
    world.run(1)
    assert client.opened[stream.id] is Fault.REFUSED
    assert not client.node.tunnel(stream).streams


def test_credit_comes_back_in_small_steps_so_that_its_source_never_stops():
    """Half a window at a time lets a long path run dry between two grants."""
    world, client, server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, bytes(200_000))
    world.settle(client)
    server.consume = False
    world.run(1)
    sink = server.offered[0][0]
    tunnel = server.node.tunnel(sink)
    kib = 1024
    for window, step in ((256, 128), (1024, 512), (2048, 512), (8192, 1024)):
        window, step = window * kib, step * kib
        sink.recv_window = window
        before = sink.recv_limit = sink.consumed + window
        tunnel.consumed(sink, step - 1, world.now)
        assert sink.recv_limit == before
        tunnel.consumed(sink, 1, world.now)
        assert sink.recv_limit == before + step
        assert tunnel.has_outgoing()
        world.settle(server)
        world.run(1)
        tunnel = server.node.tunnel(sink)


def test_a_reader_that_stopped_stalls_only_its_own_stream():
    world, client, server = pair()
    server.consume = False
    slow = client.node.open(1, "slow.test", 80, None, world.now)
    client.send(slow, bytes(5_000_000))
    world.settle(client)
    world.run(5)
    assert len(server.received[slow.id]) <= 256 * 1024
    server.consume = True
    fast = client.node.open(1, "fast.test", 80, None, world.now)
    client.send(fast, bytes(2_000_000), finish=True)
    world.settle(client)
    world.run(5)
    assert len(server.received[fast.id]) == 2_000_000
    assert len(server.received[slow.id]) <= 256 * 1024


def test_a_cancelled_download_stops_within_a_round_trip():
    world, client, server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    world.settle(client)
    world.run(0.3)
    server.send(server.offered[0][0], bytes(30_000_000))
    world.settle(server)
    world.run(0.5)
    client.node.tunnel(stream).reset(stream, Fault.CANCELLED)
    world.settle(client)
    world.run(0.051)
    assert server.resets[stream.id] is Fault.CANCELLED
    before = len(world.tap)
    world.run(2)
    assert len(world.tap) - before < 20  # reports, no data


def test_a_restarted_server_ends_its_streams_at_once():
    """A new boot is noticed with the first message after the restart (R39)."""
    world, client, _server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    world.settle(client)
    world.run(1)
    world.crash(1)
    world.members.pop(1)
    world.add(1, boot=2000)
    world.run(3)
    assert client.resets[stream.id] is Fault.EXIT_DEAD
    assert any("restarted" in text for text in client.news)
    again = client.node.open(1, "site.test", 80, None, world.now)
    client.send(again, b"again")
    world.settle(client)
    world.run(1)
    assert bytes(world.members[1].received[again.id]) == b"again"


def _boot(world, member):
    """As a real node takes it when it starts now: milliseconds by its own clock, and 16 bits of chance."""
    return int((world.now + 1e9 + member.skew_s) * 1000) << 16 | 77


@pytest.mark.parametrize("skew_s", [0.0, -3600.0, 3600.0])
@pytest.mark.parametrize("is_sent_before", [False, True])
def test_a_connection_to_an_exit_that_restarted_unnoticed_is_opened_again(skew_s, is_sent_before):
    """What the old process never saw the new one gets, once; what it may have seen ends."""
    world, client, server = pair()
    first = client.node.open(1, "site.test", 80, None, world.now)
    client.send(first, b"hello")
    world.settle(client)
    world.run(1)
    world.black_hole = True  # nobody hears of what follows
    if is_sent_before:
        stream = client.node.open(1, "late.test", 81, None, world.now)
        client.send(stream, b"early ")
        world.settle(client)
        world.run(0.5)
    server.is_up = False
    for link, (member, _) in list(world.links.items()):
        if member is server:
            del world.links[link]
    world.members.pop(1)
    world.run(1)
    server.skew_s = skew_s
    again = world.add(1, boot=_boot(world, server), skew_s=skew_s)
    world.run(0.5)
    if not is_sent_before:
        stream = client.node.open(1, "late.test", 81, None, world.now)
        client.send(stream, b"early ")
        client.send(stream, bytes(30_000))
        client.send(stream, b" late")
        client.node.tunnel(stream).finish(stream)
        world.settle(client)
    world.run(0.5)
    world.black_hole = False
    world.run(120)
    assert client.resets[first.id] is Fault.EXIT_DEAD
    if is_sent_before:
        assert client.resets[stream.id] is Fault.EXIT_DEAD
        assert not again.offered
        return
    assert stream.id not in client.resets
    assert [(offer[1], offer[2]) for offer in again.offered] == [("late.test", 81)]
    assert bytes(again.received[stream.id]) == b"early " + bytes(30_000) + b" late"
    assert stream.id in again.finished
    third = client.node.open(1, "site.test", 80, None, world.now)
    assert third.id not in (first.id, stream.id)
    client.send(third, b"more")
    world.settle(client)
    world.run(1)
    assert bytes(again.received[third.id]) == b"more"


def test_what_an_exit_confirmed_before_it_restarted_is_not_opened_again_though_its_clock_was_set():
    """By its clock the new process is ten minutes old; but the old one said that it has the OPEN."""
    world, client, server = pair()
    world.run(1)
    server.handle = lambda event: None  # it dials, and never gets to an answer
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"once")
    world.settle(client)
    world.run(2)
    server.is_up = False
    world.black_hole = True
    world.members.pop(1)
    for link, (member, _) in list(world.links.items()):
        if member is server:
            del world.links[link]
    world.run(1)
    boot = _boot(world, server)
    again = world.add(1, boot=boot, skew_s=600.0)
    world.black_hole = False
    world.run(120)
    assert not again.offered
    assert client.resets[stream.id] is Fault.EXIT_DEAD


def test_a_server_that_refuses_is_dead_at_once():
    world, client, _ = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    world.settle(client)
    world.run(1)
    world.crash(1)
    world.run(1)
    assert client.resets[stream.id] is Fault.EXIT_DEAD


def test_a_silent_server_is_dead_after_the_grace_time_not_before():
    world, client, _server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    world.settle(client)
    world.run(1)
    world.black_hole = True
    client.send(stream, b"anybody there?")
    world.settle(client)
    world.run(50)
    assert stream.id not in client.resets
    world.run(120)
    assert client.resets[stream.id] is Fault.EXIT_DEAD


def test_a_black_hole_shorter_than_the_grace_time_costs_nothing():
    world, client, server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    world.settle(client)
    world.run(1)
    world.black_hole = True
    client.send(stream, b"still here", finish=True)
    world.settle(client)
    world.run(20)
    world.black_hole = False
    world.run(40)
    assert bytes(server.received[stream.id]) == b"still here"


def test_a_clock_wrong_by_an_hour_works_one_round_trip_later_and_is_named():
    world = World()
    server = world.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)}, skew_s=3600.0)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"late", finish=True)
    world.settle(client)
    world.run(0.11)
    assert not server.offered  # held
    world.run(0.25)
    assert bytes(server.received[stream.id]) == b"late"
    assert any("60 min ahead" in text for text in server.news)


def test_a_first_contact_replayed_to_a_restarted_node_has_no_effect():
    """Captured before the restart, dead after it."""
    world, client, server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"pay 100")
    world.settle(client)
    world.run(1)
    captured = list(world.tap)
    assert bytes(server.received[stream.id]) == b"pay 100"
    world.crash(7)
    world.crash(1)
    world.members.pop(1)
    world.run(1)
    fresh = world.add(1, boot=2000)
    fresh.node.link_up(999, "sim", 70000, "sim://attacker", world.now)
    world.links[999] = (fresh, client)
    for _, head, body in captured:
        world.inject(fresh, 999, head, body)
    world.run(300)
    assert not fresh.offered and not fresh.received


def test_replays_to_a_running_node_have_no_effect_and_no_answer():
    world, client, server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"once")
    world.settle(client)
    world.run(1)
    captured = list(world.tap)
    server.node.link_up(999, "sim", 70000, "sim://attacker", world.now)
    sent = len(world.tap)
    for _, head, body in captured:
        world.inject(server, 999, head, body)
    assert bytes(server.received[stream.id]) == b"once" and len(server.offered) == 1
    assert len(world.tap) == sent
    assert server.node.links[999].peer is None


def test_keep_alives_of_both_sides_hold_an_idle_link(world_hours=2):
    """Empty data messages at most every 10 minutes, from both sides (R17, R40)."""
    world, client, _server = pair()
    world.run(300)  # gossip of the start is over
    world.tap.clear()
    world.run(3600 * world_hours)
    from_client = [t for t in world.tap if world.links[t[0]][0] is client]
    assert 6 * world_hours - 1 <= len(from_client) <= 7 * world_hours + 1
    assert 6 * world_hours - 1 <= len(world.tap) - len(from_client) <= 7 * world_hours + 1
    assert len(client.node.links) == 1


def test_a_wrong_key_is_silence_and_is_named():
    world = World()
    server = world.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)}, keys=(bytes(32),))
    world.run(9)
    assert server.codec.stranger_count > 0 and not server.node.peers
    assert "wrong key" in client.node.peers[1].contact.last_failure


def test_several_keys_the_first_seals_all_open():
    world = World()
    server = world.add(1, keys=(bytes(32), KEY))
    client = world.add(7, {1: ("sim://10.0.0.1:1",)}, keys=(KEY, bytes(32)))
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"rotated")
    world.settle(client)
    world.run(1)
    assert bytes(server.received[stream.id]) == b"rotated"


def test_an_unknown_exit_is_a_stream_fault():
    world, client, _ = pair()
    with pytest.raises(StreamFault):
        client.node.open(99, "site.test", 80, None, world.now)


@pytest.mark.parametrize("room", [None, 50])
def test_a_burst_of_connections_whose_first_messages_get_lost_is_no_fault(room, monkeypatch):
    """OPENs leave first: most of what comes is of streams nobody has heard of. What there is no room for is
    asked for again."""
    if room is not None:
        monkeypatch.setattr(limits, "HELD_EARLY_MAX", room)
    world, client, server = pair()
    world.payload_max = BASE
    first = client.node.open(1, "site.test", 80, None, world.now)
    client.send(first, b"first")
    world.settle(client)
    world.run(2.0)
    streams = [client.node.open(1, "site.test", 80, None, world.now) for _ in range(400)]
    for stream in streams:
        client.send(stream, b"hello %d" % stream.id + bytes(300), finish=True)
    carry = world.carry
    lost, early = [], []

    def lose_some(link, head, body):
        if len(lost) < 8 and world.links[link][0] is client:
            lost.append(body)
        else:
            carry(link, head, body)
        held = server.node.peers[7].tunnel.streams.values()
        early.append(sum(not stream.is_known for stream in held))

    monkeypatch.setattr(world, "carry", lose_some)
    world.settle(client)
    world.run(10.0)
    assert not client.resets and not client.news and not server.news
    assert len(lost) == 8
    assert max(early) > 256 if room is None else 0 < max(early) <= room
    for stream in streams:
        assert server.received[stream.id] == b"hello %d" % stream.id + bytes(300)
        assert stream.id in server.finished
    tunnel = server.node.peers[7].tunnel
    assert tunnel.streams.keys() == {first.id, *(stream.id for stream in streams)}
    assert not any(held.held for held in tunnel.streams.values())


def test_a_reset_that_overtakes_its_open_opens_nothing():
    """Both are known exactly once, in either order."""
    from uservpn.tunnel.tunnel import Tunnel
    from uservpn.wire.constants import Kind

    source = Tunnel(7, 1, lambda limit: 0)
    sink = Tunnel(1, 7, lambda limit: 0)
    stream = source.open("site.test", 80, None)
    ((_, opening),) = take(source, ROOM, 60_000, 0.0)
    source.reset(stream, Fault.CANCELLED)
    ((_, reset),) = take(source, ROOM, 60_000, 0.0)
    for message in (reset, opening):
        sink.receive(Kind.DATA, bytes(message), 0.0)
    assert [type(event).__name__ for event in sink.take_events()] == ["Reset"]
    assert not sink.streams


def test_the_replay_window_takes_every_number_there_is():
    window = ReplayWindow()
    for number in (0, 1, NUMBER_MAX, 63, NUMBER_MAX - 1):
        assert window.admit(number) == (number not in (63,)), number
        assert not window.admit(number)
