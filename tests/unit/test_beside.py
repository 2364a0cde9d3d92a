"""Connections beside one of their kind: when they are dialled and closed, and what goes over them."""

from __future__ import annotations

import pytest

from uservpn.mesh.beside import BESIDE_AGAIN_S, BESIDE_MAX, BESIDE_S
from uservpn.mesh.contact import Contact, Dial, GiveUp, Probe
from uservpn.mesh.liveness import LinkState
from uservpn.node.scheduling import MOVING, MOVING_COUNT, MOVING_LONG, MOVING_S, Choice, Schedule
from uservpn.tunnel.bbr import Bbr
from uservpn.tunnel.path import Path
from world import World

TCP = "tcp://192.0.2.1:7000"


def _contact(protocol: str = "tcp", dialled: bool = True) -> Contact:
    """A contact with one link (1) that was heard."""
    contact = Contact((TCP,), keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    contact.want(0.0)
    state = contact.link_up(1, protocol, TCP, dialled, 0.0)
    contact.heard(state, 0.05)
    contact.take_plans()
    contact.has_streams = True
    return contact


def _up(contact: Contact, link: int, now: float) -> LinkState:
    assert contact.takes("tcp", TCP)
    state = contact.link_up(link, "tcp", TCP, True, now)
    contact.heard(state, now + 0.1)
    return state


def _given_up(contact: Contact) -> list[int]:
    return [plan.link for plan in contact.take_plans() if isinstance(plan, GiveUp)]


# --- dialling and closing ------------------------------------------------------------------------


def test_two_links_are_dialled_where_the_first_one_leads():
    contact = _contact()
    for _ in range(3):
        contact.want_beside(1, 1.0)
    assert contact.take_plans() == [Dial(TCP)] * BESIDE_MAX
    _up(contact, 2, 1.2)
    contact.want_beside(1, 1.3)
    _up(contact, 3, 1.4)
    for link in (1, 2, 3):
        contact.want_beside(link, 1.5)
    assert not contact.takes("tcp", TCP), "and no fourth"
    assert not [plan for plan in contact.take_plans() if isinstance(plan, Dial)]


def test_only_who_dialled_the_first_one_dials_the_others():
    contact = _contact(dialled=False)
    contact.want_beside(1, 1.0)
    assert contact.take_plans() == []


def test_one_that_fails_is_no_failure_of_the_peer_and_not_soon_tried_again():
    contact = _contact()
    contact.want_beside(1, 1.0)
    contact.take_plans()
    contact.dial_failed(TCP, True, "refused", 2.0)
    _up(contact, 2, 2.0)  # the other one is none the worse
    contact.take_plans()
    contact.want_beside(1, 2.0 + 0.9 * BESIDE_AGAIN_S)
    assert contact.take_plans() == [] and contact.last_failure == ""
    contact.want_beside(1, 2.0 + BESIDE_AGAIN_S)
    assert contact.take_plans() == [Dial(TCP)]


def test_they_are_closed_when_nothing_flows_any_more_and_the_first_one_stays():
    contact = _contact()
    contact.want_beside(1, 1.0)
    _up(contact, 2, 1.2)
    _up(contact, 3, 1.3)
    contact.want_beside(1, 20.0)
    contact.on_deadline(20.0 + 0.9 * BESIDE_S)
    assert _given_up(contact) == []
    due = contact.next_deadline()
    assert due is not None and due <= 20.0 + BESIDE_S
    contact.on_deadline(20.0 + BESIDE_S)
    assert sorted(_given_up(contact)) == [2, 3]
    contact.on_deadline(20.1 + BESIDE_S)
    assert _given_up(contact) == [], "said once"


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_the_loss_of_one_leaves_the_others_and_dials_nothing(lost):
    contact = _contact()
    contact.want_beside(1, 1.0)
    _up(contact, 2, 1.2)
    _up(contact, 3, 1.2)
    contact.take_plans()
    contact.link_down(lost, 5.0)
    assert contact.take_plans() == []
    contact.want_beside(lost % 3 + 1, 5.1)
    assert contact.take_plans() == []


def test_of_accepted_links_no_more_are_kept_than_the_peer_opens():
    contact = _contact(dialled=False)
    for link in range(2, BESIDE_MAX + 3):
        state = contact.link_up(link, "tcp", f"tcp://198.51.100.9:4100{link}", False, 1.0)
        contact.take_plans()
        contact.proved(state, 1.1)
        assert _given_up(contact) == ([1] if link == BESIDE_MAX + 2 else [])


def test_an_accepted_link_beside_does_not_make_the_first_one_silent():
    contact = _contact(dialled=False)
    second = contact.link_up(2, "tcp", "tcp://198.51.100.9:41002", False, 1.0)
    for state in contact.links:
        state.endpoint = "tcp://198.51.100.9:41001"
    contact.heard(contact.links[0], 1.0)
    contact.take_plans()
    contact.proved(second, 1.1)
    assert not any(isinstance(plan, Probe | GiveUp) for plan in contact.take_plans())
    assert not any(state.probed for state in contact.links)


def test_an_accepted_link_in_the_place_of_a_silent_one_makes_it_answer():
    contact = _contact(dialled=False)
    contact.links[0].endpoint = "tcp://198.51.100.9:41001"
    second = contact.link_up(2, "tcp", "tcp://198.51.100.9:41002", False, 9.0)
    contact.take_plans()
    contact.proved(second, 9.1)
    assert Probe(1, False) in contact.take_plans()


# --- the choice ----------------------------------------------------------------------------------


def _links(rtt_s: float, is_lossy: bool = False):
    found = []
    for link in (1, 2, 3):
        state = LinkState(link, "tcp", True, TCP, 0.0, 0.0, 0.0)
        state.rtt_s = rtt_s
        found.append((state, Path(link, Bbr() if is_lossy else None, rtt_s)))
    return found


def test_bulk_stays_where_it_is_and_the_rest_takes_the_others():
    links = _links(0.05)
    schedule = Schedule(current=2)
    for order in (links, links[::-1]):
        choice = schedule.choose(order, True, 1.0)
        assert choice.state.link == 2
        assert choice.express is not None
        assert {choice.express[0].link, choice.again} == {1, 3}
    links[0][0].probed = True
    choice = schedule.choose(links, True, 1.0)
    assert choice.express is not None and choice.express[0].link == 3
    assert choice.again is None, "not over a silent one"
    links[2][0].probed = True
    assert schedule.choose(links, True, 1.0).express is None


@pytest.mark.parametrize("rtt_s, is_lossy", [(0.005, False), (0.05, True)])
def test_on_short_paths_and_datagrams_there_are_none(rtt_s, is_lossy):
    links = _links(rtt_s, is_lossy)
    schedule = Schedule(current=1)
    choice = schedule.choose(links, True, 1.0)
    assert choice.express is None
    assert not any(schedule.wants_beside(choice, step * MOVING, step * 1.0) for step in range(9))


def test_they_are_wanted_while_much_moves():
    schedule = Schedule()
    choice = Choice(*_links(0.05)[0])
    assert not schedule.wants_beside(choice, 0, 100.0)
    assert not schedule.wants_beside(choice, MOVING, 100.0 + 0.5 * MOVING_S)
    assert schedule.wants_beside(choice, MOVING, 100.0 + MOVING_S)
    assert schedule.wants_beside(choice, MOVING, 100.0 + 1.5 * MOVING_S)
    assert not schedule.wants_beside(choice, 2 * MOVING - 1, 100.0 + 2 * MOVING_S)
    assert not schedule.wants_beside(choice, 9 * MOVING, 100.0 + 60.0), "over a minute"


def test_they_are_wanted_when_little_moves_for_long():
    """A lossy path makes transfers slow, and they are in the way all the same."""
    schedule = Schedule()
    choice = Choice(*_links(0.05)[0])
    wanted = [schedule.wants_beside(choice, step * MOVING_LONG, 100.0 + step) for step in range(5)]
    assert wanted == [False] * MOVING_COUNT + [True] * (5 - MOVING_COUNT)
    assert not schedule.wants_beside(choice, 5 * MOVING_LONG - 1, 105.0)


# --- the whole -----------------------------------------------------------------------------------


class StallingWorld(World):
    """Links keep their order: while one repairs a loss, all that follows waits."""

    def __init__(self, **options):
        super().__init__(**options)
        self.stalled: dict[int, list] = {}

    def carry(self, link, head, body):
        if link in self.stalled:
            self.stalled[link].append((bytes(head), bytes(body)))
        else:
            super().carry(link, head, body)

    def go_on(self, link):
        for head, body in self.stalled.pop(link):
            super().carry(link, head, body)


def _busy_world(streams: int = 2):
    """A client that uploads without end, and the link that carries it."""
    world = StallingWorld(delay=0.05)
    server = world.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)})
    world.run(1)
    small = client.node.open(1, "small.test", 80, None, world.now) if streams > 1 else None
    bulk = client.node.open(1, "bulk.test", 80, None, world.now)
    data = bytes(range(256)) * 4096
    sent = b""
    for _ in range(6):
        client.send(bulk, data)
        sent += data
        world.settle(client)
        world.run(0.6)
    return world, client, server, small, bulk, sent


def test_while_the_first_link_repairs_a_loss_small_messages_pass_by_and_nothing_is_resent():
    world, client, server, small, bulk, sent = _busy_world()
    schedule = client.node.peers[1].schedule
    assert len(client.node.peers[1].contact.links) == len(server.node.peers[7].contact.links) == 3
    main = schedule.current
    world.stalled[main] = []
    client.send(bulk, bytes(500_000))
    world.settle(client)
    world.run(0.02)
    assert world.stalled[main]
    before = len(server.received[bulk.id])
    client.send(small, b"key stroke")
    world.settle(client)
    world.run(0.06)
    assert bytes(server.received[small.id]) == b"key stroke"
    world.run(0.3)
    assert len(server.received[bulk.id]) == before and schedule.current == main
    world.go_on(main)
    world.run(1)
    assert bytes(server.received[bulk.id]) == sent + bytes(500_000)
    assert client.node.peers[1].tunnel.resent_count == 0


@pytest.mark.parametrize("beside", [0, 1])
def test_what_is_small_leaves_over_both_beside_the_one_with_bulk(beside):
    """In the direction of the bulk, too, no lost packet makes it wait."""
    world, client, server, small, _, _ = _busy_world()
    main = client.node.peers[1].schedule.current
    links = [link for link, (member, _) in world.links.items() if member is client]
    links.remove(main)
    for link in (main, links[beside]):
        world.stalled[link] = []
    client.send(small, b"one of two")
    world.settle(client)
    world.run(0.06)
    assert bytes(server.received.pop(small.id)) == b"one of two"
    for link in list(world.stalled):
        world.go_on(link)
    world.run(0.5)
    assert client.node.peers[1].tunnel.resent_count == 0


def test_with_one_beside_it_what_is_small_leaves_over_the_first_one_as_well_if_that_is_idle():
    """A third one may be refused; this is the download's direction back."""
    world, client, server, small, _, _ = _busy_world()
    links = [link for link, (member, _) in world.links.items() if member is client]
    links.remove(client.node.peers[1].schedule.current)
    world.cut(links.pop())
    for link in [link for link, (member, _) in world.links.items() if member is client]:
        world.stalled[link] = []
        client.send(small, b"one of two")
        world.settle(client)
        world.run(0.06)
        assert bytes(server.received.pop(small.id)) == b"one of two"
        world.go_on(link)
        world.run(0.5)
    assert client.node.peers[1].tunnel.resent_count == 0


def test_a_single_stream_has_nobody_to_make_room_for():
    _, client, _, _, _, _ = _busy_world(streams=1)
    assert len(client.node.peers[1].contact.links) == 1


def test_they_go_when_the_transfer_is_over():
    world, client, server, _, _, _ = _busy_world()
    world.run(BESIDE_S + 2.0)
    assert len(client.node.peers[1].contact.links) == len(server.node.peers[7].contact.links) == 1


class RepairingWorld(World):
    """Links are connections of a path that loses packets: what came behind a lost one waits for its repair.

    A lost packet comes a round trip and `late_s` late, since those that follow it tell that it is missing.
    """

    late_s = 0.03

    def __init__(self, packet_loss, **options):
        super().__init__(**options)
        self.packet_loss = packet_loss
        self.free_at: dict[int, float] = {}

    def carry(self, link, head, body):
        at = self.now + self.delay
        for _ in range(1 + len(body) // 1448):
            sent_at = self.now
            while self.rng.random() < self.packet_loss:
                sent_at += 2 * self.delay + self.late_s
            at = max(at, sent_at + self.delay)
        at = self.free_at[link] = max(at, self.free_at.get(link, 0.0))
        self.at(at, lambda: self.arrive(link, head, body))


@pytest.mark.parametrize("is_up", [False, True])
def test_at_three_per_cent_loss_questions_beside_bulk_take_less_than_two_round_trips(is_up):
    world = RepairingWorld(0.03, delay=0.05, seed=8)
    server = world.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)})
    world.run(1)
    small = client.node.open(1, "small.test", 80, None, world.now)
    bulk = client.node.open(1, "bulk.test", 80, None, world.now)
    client.send(bulk, b"?")
    world.settle(client)
    world.run(1)
    streams = {stream.id: stream for stream, _, _ in server.offered}
    source, stream = (client, bulk) if is_up else (server, streams[bulk.id])
    took = []
    asked_at, is_answered = None, False
    ends = world.now + 30.0
    next_bulk_at = world.now
    while world.now < ends:
        if world.now >= next_bulk_at:
            source.send(stream, bytes(30_000))
            world.settle(source)
            next_bulk_at += 0.05
        if asked_at is None:
            asked_at, is_answered = world.now, False
            client.send(small, b"?")
            world.settle(client)
        if not is_answered and server.received.pop(small.id, None):
            is_answered = True
            server.send(streams[small.id], b"!")
            world.settle(server)
        if client.received.pop(small.id, None):
            if world.now > ends - 27.0:
                took.append(world.now - asked_at)
            asked_at = None
        world.run(0.002)
    assert len(client.node.peers[1].contact.links) == 3
    took.sort()
    assert len(took) > 200
    assert took[len(took) // 2] < 0.15
    assert took[len(took) * 95 // 100] < 0.2
