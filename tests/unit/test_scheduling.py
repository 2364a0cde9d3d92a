"""Several links at once: which one carries, what happens when it ends or falls silent, the relayed share."""

from __future__ import annotations

import pytest

from test_relaying import HOME, _server
from two_links import TCP, UDP, Settled, direct_links
from uservpn.mesh.liveness import LinkState
from uservpn.node.scheduling import NEAR_S, Schedule
from uservpn.node.sharing import (
    FLOWS,
    OPENING_MAX,
    OPENING_S,
    OWED_MAX,
    UNUSED_S,
    RelayedShare,
)
from uservpn.tunnel.bbr import Bbr
from uservpn.tunnel.path import Flight, Path
from world import ROOM, World, pair

KCP = 6


def _both(**options):
    """A client and a server with a reliable link and one that loses messages, both proved."""
    world, client, server = pair(**options)
    world.run(2)
    world.connect(client, 1, "udp://1", "udp")
    world.run(3)
    assert len(client.node.peers[1].contact.links) == 2
    return world, client, server


def _current(world, member, peer):
    return world.protocols[member.node.peers[peer].schedule.current]


def _send(world, client, size):
    stream = client.node.open(1, "site.test", 80, None, world.now)
    data = bytes(i * 7 & 0xFF for i in range(size))
    client.send(stream, data, finish=True)
    world.settle(client)
    return stream, data


def test_a_long_path_is_used_over_datagrams_a_short_one_over_the_reliable_link():
    for delay, protocol in ((0.05, "udp"), (0.0005, "sim")):
        world, client, server = _both(delay=delay)
        stream, data = _send(world, client, 300_000)
        world.run(3)
        assert bytes(server.received[stream.id]) == data
        assert _current(world, client, 1) == protocol


@pytest.mark.parametrize("blocked", ["udp", "sim"])
def test_a_protocol_that_gets_blocked_loses_the_traffic_within_two_seconds(blocked):
    """And what was on it comes over the other one, no byte lost or doubled; both directions."""
    world, client, server = _both(delay=0.02 if blocked == "udp" else 0.0005)
    stream, up = _send(world, client, 100_000)
    world.run(0.5)
    assert _current(world, client, 1) == blocked
    down = bytes(range(256)) * 2000
    world.blocked.add(blocked)
    back = server.offered[0][0]
    server.send(back, down, finish=True)
    world.settle(server)
    more, up_too = _send(world, client, 200_000)
    world.run(2.5)
    assert bytes(server.received[stream.id]) == up and bytes(server.received[more.id]) == up_too
    assert bytes(client.received[stream.id]) == down
    assert _current(world, client, 1) != blocked and _current(world, server, 7) != blocked


def test_a_blocked_protocol_is_used_again_when_it_works_again():
    world, client, _ = _both(delay=0.05)
    _send(world, client, 50_000)
    world.run(1)
    world.blocked.add("udp")
    _send(world, client, 50_000)
    world.run(6)
    assert _current(world, client, 1) == "sim"
    world.blocked.clear()
    for _ in range(80):
        _send(world, client, 20_000)
        world.run(1)
        if _current(world, client, 1) == "udp":
            break
    assert _current(world, client, 1) == "udp"


def test_in_a_black_hole_nothing_moves_and_all_goes_on_at_once_after_it():
    world, client, server = _both(delay=0.05)
    _send(world, client, 100_000)
    world.run(0.3)
    world.black_hole = True
    more, data_too = _send(world, client, 400_000)
    world.run(5)
    assert _current(world, client, 1) == "udp"
    world.black_hole = False
    world.run(0.5)
    assert server.received.get(more.id), "nothing came within half a second"
    world.run(3)
    assert bytes(server.received[more.id]) == data_too
    assert not client.resets


def test_what_was_on_a_link_that_was_cut_is_resent_over_the_other_one():
    world, client, server = _both(delay=0.05)
    stream, data = _send(world, client, 400_000)
    world.run(0.12)
    world.cut(client.node.peers[1].schedule.current)
    world.run(2)
    assert bytes(server.received[stream.id]) == data


# --- the choice alone ----------------------------------------------------------------------------


def test_the_choice_has_hysteresis():
    links = direct_links(2 * NEAR_S)
    schedule = Schedule()
    assert schedule.choose(links, False, 0.0).state.link == UDP
    for rtt_s, chosen in (
        (0.9 * NEAR_S, UDP),
        (0.6 * NEAR_S, TCP),
        (1.2 * NEAR_S, TCP),
        (2 * NEAR_S, UDP),
    ):
        for state, path in links:
            state.rtt_s = path.rtt_s = path.rtt_min_s = rtt_s
        assert schedule.choose(links, False, 1.0).state.link == chosen, rtt_s


def _with_kcp(rtt_s: float) -> dict[int, tuple[LinkState, Path]]:
    """TCP, UDP and a reliable link that costs work of ours."""
    state = LinkState(KCP, "kcp", True, "kcp://x", 0.0, 0.0, 0.0)
    path = Path(KCP, None, rtt_s)
    state.rtt_s, path.is_costly = rtt_s, True
    links = [*direct_links(rtt_s), (state, path)]
    return {state.link: (state, path) for state, path in links}


def test_over_a_short_path_what_costs_us_work_carries_only_where_nothing_else_does():
    """On loopback a download over KCP takes ten times as long as over TCP. Also if it was there first."""
    links = _with_kcp(NEAR_S / 100)
    schedule = Schedule()
    for present, chosen in (
        ((KCP,), KCP),
        ((KCP, TCP), TCP),
        ((KCP,), KCP),
        ((KCP, UDP), UDP),
        ((KCP, UDP, TCP), TCP),
        ((TCP, KCP), TCP),
    ):
        assert schedule.choose([links[k] for k in present], False, 1.0).state.link == chosen
    state, path = links[KCP]
    path.rtt_s = path.rtt_min_s = state.rtt_s = 10 * NEAR_S  # by its own work
    schedule.current = KCP
    assert schedule.choose([links[KCP], links[UDP]], False, 1.0).state.link == UDP
    assert schedule.choose([links[KCP], links[UDP]], False, 1.0).state.link == UDP


def test_a_link_that_was_not_measured_yet_does_not_take_over_from_one_that_costs_us_work():
    links = _with_kcp(NEAR_S / 100)
    schedule = Schedule(current=KCP)
    for state, path in (links[TCP], links[UDP]):
        state.rtt_s = path.rtt_s = None
    assert schedule.choose(list(links.values()), False, 1.0).state.link == KCP
    links[TCP][0].rtt_s = NEAR_S / 100
    assert schedule.choose(list(links.values()), False, 1.0).state.link == TCP


@pytest.mark.parametrize("other", [TCP, UDP])
def test_where_a_path_is_neither_short_nor_long_what_costs_us_work_keeps_what_it_carries(other):
    links = _with_kcp(NEAR_S)
    able = [links[other], links[KCP]]
    schedule = Schedule(current=KCP)
    chosen = []
    for factor in (0.9, 1.3, 0.7, 1.4, 0.6, 0.9, 1.3, 0.7, 1.4):
        for state, path in able:
            state.rtt_s = path.rtt_s = path.rtt_min_s = factor * NEAR_S
        chosen.append(schedule.choose(able, False, 1.0).state.link)
    assert chosen == [KCP] * 4 + [other] * 5, "and it does not come back with the next small change"


def test_over_a_long_path_what_costs_us_work_stays_where_it_carries_and_comes_after_datagrams():
    links = _with_kcp(0.05)
    for present, chosen in (((KCP, TCP), KCP), ((TCP, KCP), TCP), ((KCP, UDP), UDP)):
        schedule = Schedule()
        for k in range(1, 3):
            able = [links[link] for link in present[:k]]
            choice = schedule.choose(able, False, 1.0)
        assert choice.state.link == chosen


def test_a_link_that_falls_silent_again_and_again_is_tried_ever_less_often():
    """It is heard, and swallows what is sent. Once it has carried for long the wait is a short one again."""
    links, schedule = direct_links(), Schedule()
    (reliable, _), (state, path) = links
    now = 0.0

    def wait(carries_s: float) -> float:
        nonlocal now
        end = now + carries_s
        while now < end:
            now += 0.1
            path.heard_at = now
            schedule.choose(links, False, now)
            assert schedule.current == UDP
        flight = Flight(path, now, 1, None)
        flight.size = path.inflight = 1000
        path.flights.append(flight)
        path.silent_count = 2
        while schedule.current == UDP:
            now += 0.1
            reliable.heard(now)
            schedule.choose(links, False, now)
        path.flights.clear()
        path.inflight = 0
        left_at = now
        while schedule.current == TCP:
            now += 0.1
            state.heard(now)
            schedule.choose(links, False, now)
        return now - left_at

    waits = [wait(0.5) for _ in range(4)]
    assert [round(seconds) for seconds in waits] == [2, 4, 8, 16]
    assert wait(3.0) < 3.0


def test_where_all_links_fall_silent_in_turns_none_is_away_for_longer():
    """As while a third of all packets is lost: each is left for the other one a few times within seconds."""
    schedule = Schedule()
    for turn in range(12):
        schedule.put_away(UDP if turn % 2 else TCP, 0.1 * turn)
    assert max(record.away_until for record in schedule._records.values()) < 2.5


def test_what_a_path_beside_swallows_is_resent_over_the_one_in_use():
    """As after a trial, or a share: nobody waits for that path's own patience."""
    world, client, server = _both(delay=0.05)
    _send(world, client, 50_000)
    world.run(1)
    assert _current(world, client, 1) == "udp"
    peer = client.node.peers[1]
    ((state, path),) = [
        (state, client.node.links[state.link].path)
        for state in peer.contact.links
        if state.protocol == "sim"
    ]
    world.blocked.add("sim")
    stream, data = _send(world, client, 100_000)
    batches = []
    sender = client.node._sender
    sealing = (b"abc", int(1000 * (world.now + 1e9)))
    more, data_too = client.node.open(1, "b.test", 80, None, world.now), bytes(200_000)
    more.send_limit = 1 << 20
    more.sent_size = more.send_offset = 0
    client.send(more, data_too, finish=True)
    sender._take_path(peer, state, world.room, batches, sealing, world.now)
    assert path.inflight
    world.settle(client)
    world.run(2.5)
    assert bytes(server.received[stream.id]) == data
    assert bytes(server.received[more.id]) == data_too


# --- the relayed share ---------------------------------------------------------------------------


def _servers(share: float) -> World:
    """Three servers and a client that reaches each of them directly."""
    world = World(delay=0.02)
    for node in (1, 2, 3):
        world.add(node, {} if node == 1 else HOME, record=_server(node))
    world.add(50, {n: (f"sim://10.0.0.{n}:1",) for n in (1, 2, 3)})
    for member in world.members.values():
        member.node.table.relay_share = share
    world.run(10)
    return world


def _limit(world: World, member, rate: float) -> None:
    """What the member sends takes its time: so many bytes/s over all links, 20 ms of it at once."""
    left = [0.02 * rate, world.now]
    carry = world.carry

    def room(link: int) -> int:
        if world.links[link][0] is not member:
            return ROOM
        left[0] = min(0.02 * rate, left[0] + rate * (world.now - left[1]))
        left[1] = world.now
        return int(left[0])

    def counted(link: int, head: bytes, body: bytes) -> None:
        if world.links[link][0] is member:
            left[0] -= len(head) + len(body)
        carry(link, head, body)

    def tick() -> None:
        peer = member.node.peers[1 if member.id == 50 else 50]
        if peer.tunnel.has_outgoing():
            member.node.table.touch(peer)
            world.settle(member)
        if world.now < end:
            world.at(world.now + 0.01, tick)

    end = world.now + 12

    world.room, world.carry = room, counted
    tick()


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("is_up", [True, False])
def test_the_set_share_goes_over_relays(share, is_up):
    """Counted where it passes: within two points of what is set, once a way stands."""
    world = _servers(share)
    client, exit = world.members[50], world.members[1]
    stream = client.node.open(1, "site.test", 80, None, world.now)
    world.settle(client)
    world.run(0.5)
    source, sink, peer = (client, exit, 1) if is_up else (exit, client, 50)
    ours = stream if is_up else exit.offered[0][0]
    _limit(world, source, 2e6)
    total = 8_000_000
    source.send(ours, bytes(total))
    world.settle(source)
    world.run(7)
    assert len(sink.received[stream.id]) == total
    passed = sum(world.members[n].node.relay.counters.passed_bytes for n in (2, 3))
    assert abs(passed / total - share) < 0.02 + 0.01
    mine = source.node.peers[peer]
    assert abs(mine.relayed_bytes / (mine.relayed_bytes + mine.share.direct_bytes) - share) < 0.02
    # when nothing flows any more the way is closed
    world.run(3 * UNUSED_S)
    assert not any(state.relayed for state in mine.contact.links)


def test_without_a_share_nothing_goes_over_relays():
    world = _servers(0.0)
    client = world.members[50]
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, bytes(3_000_000))
    world.settle(client)
    world.run(10)
    assert client.node.peers[1].relayed_bytes == 0


def test_a_relay_that_dies_takes_its_share_along_and_no_byte():
    world = _servers(0.3)
    client, exit = world.members[50], world.members[1]
    _limit(world, client, 2e6)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    data = bytes(i * 7 & 0xFF for i in range(8_000_000))
    client.send(stream, data, finish=True)
    world.settle(client)
    for _ in range(100):
        world.run(0.05)
        ways = [s for s in client.node.peers[1].contact.links if s.relayed]
        if ways and client.node.peers[1].relayed_bytes:
            break
    (relay,) = client.node.links[ways[0].link].hops
    world.crash(relay)
    world.run(20)
    assert bytes(exit.received[stream.id]) == data


def _seeking() -> RelayedShare:
    """So much flows that a relayed way is sought, at 10 s."""
    owing = RelayedShare()
    owing.direct_bytes = FLOWS
    assert owing.wants_way(10.0)
    return owing


def test_what_a_way_is_owed_while_it_opens_is_paid_when_it_stands():
    """A short transfer at 10 Gbit/s is half over by then."""
    owing = _seeking()
    way, direct = Path(-1, Bbr()), Path(2)
    direct.rate = 1e9
    owing.sent_direct(32 << 20, 0.25, 10.1)
    assert owing.owed == 8 << 20 > OWED_MAX
    owing.note_way(way, direct, 0.25, 10.2)  # it stands, and gets up to speed
    assert owing.owed == 8 << 20
    owing.sent_direct(4 << 20, 0.25, 10.1 + OPENING_S)
    assert owing.owed == 9 << 20
    way.rate = 1.0
    assert owing.holds(way, direct, 0.25)
    owing.sent_relayed(12 << 20, 0.25, 11.1)
    assert owing.owed == 0


def test_a_way_that_is_far_too_slow_is_forgiven_and_one_that_never_comes_is_not_owed_much():
    owing = _seeking()
    way, direct = Path(-1, Settled()), Path(2)
    direct.rate = 30e6
    for _ in range(10):
        owing.sent_direct(32 << 20, 0.25, 10.9)
    assert owing.owed == OPENING_MAX
    way.rate = 9.5e6  # its share would be 10e6
    owing.note_way(way, direct, 0.25, 11.0)
    assert owing.owed == OPENING_MAX and owing.holds(way, direct, 0.25)
    way.rate = 6e6
    assert way.controller is not None
    way.controller.pace = 9.5e6
    assert owing.holds(way, direct, 0.25), "one slow report"
    way.controller.pace = 1e6
    owing.note_way(way, direct, 0.25, 11.0)
    assert owing.owed == OPENING_MAX and not owing.holds(way, direct, 0.25)
    way.rate = 4e6
    owing.note_way(way, direct, 0.25, 11.0)
    assert owing.owed == OWED_MAX
    owing.owed = OPENING_MAX
    owing.direct_bytes += 1 << 20  # a burst is not what the link carries: 20 MB/s did
    owing.note_way(way, direct, 0.25, 11.05)
    assert not owing.holds(way, direct, 0.25)
    owing.direct_bytes += 600_000
    owing.note_way(way, direct, 0.25, 11.11)
    assert owing.holds(way, direct, 0.25)
    never = _seeking()
    never.sent_direct(32 << 20, 0.25, 10.0 + OPENING_S)
    assert never.owed == OWED_MAX
