"""Links that died without a word are noticed, and the peer is dialled anew, before TCP does anything."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from uservpn.mesh.contact import HOLD_S, Contact, Dial, GiveUp, Probe
from uservpn.mesh.liveness import ANSWER_S, STALL_S, LinkState, Verdict
from uservpn.mesh.records import Role
from uservpn.mesh.redial import (
    BACKOFF_ALONE_MAX_S,
    BACKOFF_BUSY_MAX_S,
    LATELY_S,
    PACE_S,
    PROMPT_EVERY_S,
    PROMPT_S,
    Redial,
)
from uservpn.sim.geography import SITES
from uservpn.sim.member import Seat
from uservpn.sim.network import RETRY_NEW_S, Host, Weather
from uservpn.sim.world import World
from uservpn.types import NodeId
from uservpn.wire.constants import Kind
from world import pair

KEY = bytes(range(32))
TCP = "tcp://203.0.113.5:7000"


def _contact() -> tuple[Contact, LinkState]:
    """One dialled connection (1) that was heard at 0.1 s and has a round trip of 0.1 s."""
    contact = Contact((TCP,), keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    contact.want(0.0)
    state = contact.link_up(1, "tcp", TCP, True, 0.0)
    contact.heard(state, 0.1)
    state.measured(0.1)
    contact.take_plans()
    return contact, state


# --- one link ------------------------------------------------------------------------------------------


def test_a_connection_that_confirms_nothing_is_silent_and_its_peer_is_dialled_at_the_same_time():
    contact, state = _contact()
    contact.stalled(state, 1.0, 10.0)
    assert contact.take_plans() == [Probe(1, False), Dial(TCP)]
    assert state.probed and not contact.is_reached
    assert contact.takes("tcp", TCP), "the new connection is not one too many"
    new = contact.link_up(2, "tcp", TCP, True, 10.2)
    contact.heard(new, 10.4)
    assert contact.best() is new
    assert GiveUp(1) in contact.take_plans(), "the silent one goes when the new one is answered"


def test_the_patience_of_a_slow_path_is_longer():
    contact, state = _contact()
    state.rtt_s = 0.9
    contact.stalled(state, 1.0, 10.0)
    contact.stalled(state, 3.0, 12.0)
    assert contact.take_plans() == [] and not state.probed
    contact.stalled(state, 3.7, 12.7)
    assert state.probed


def test_a_stall_is_told_once_and_a_word_of_the_peer_ends_it():
    contact, state = _contact()
    contact.stalled(state, 1.0, 10.0)
    contact.take_plans()
    contact.stalled(state, 3.0, 12.0)
    assert contact.take_plans() == []
    contact.heard(state, 12.5)
    assert contact.is_reached and not state.probed


def test_who_is_not_wanted_is_asked_and_not_dialled():
    contact, state = _contact()
    contact.is_kept = False
    contact.stalled(state, 1.0, 10.0)
    assert contact.take_plans() == [Probe(1, False)]


def test_a_link_that_was_not_heard_for_the_keepalive_time_is_asked_and_lost_if_nobody_answers():
    _, state = _contact()

    def look(now):
        return state.look(now, 600.0, False, lambda span: 0.0)

    state.sent_at = 500.0  # what we say ourselves proves nothing
    assert state.due_at(600.0, False) == pytest.approx(600.1)
    assert look(600.0) is Verdict.FINE
    assert look(600.2) is Verdict.ASK
    state.owed_since = 600.2
    assert look(600.2 + ANSWER_S) is Verdict.ASK and state.probed
    assert look(600.3 + 2 * ANSWER_S) is Verdict.LOST


@pytest.mark.parametrize("kind", ["datagrams", "relayed"])
def test_a_datagram_link_of_the_peer_and_an_unused_way_are_not_asked_for(kind):
    """The one may have been closed, without a word; the other is sought again when it is needed."""
    _, state = _contact()
    if kind == "relayed":
        state.relayed = True
    else:
        state.is_lossy, state.dialled = True, False
    assert state.look(700.0, 600.0, False, lambda span: 0.0) is Verdict.FINE
    assert state.look(1501.0, 600.0, False, lambda span: 0.0) is Verdict.LOST


def _accepted() -> tuple[Contact, LinkState]:
    """A connection (1) of a peer that nobody can dial; from 10 s on it confirms nothing."""
    contact = Contact((), keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    state = contact.link_up(1, "tcp", "tcp://198.51.100.9:40000", False, 0.0)
    contact.heard(state, 0.1)
    contact.stalled(state, 1.0, 10.0)
    contact.take_plans()
    contact.sent(state, True, 10.0)
    return contact, state


def test_a_silent_connection_that_only_the_peer_could_open_anew_is_held_for_a_while():
    contact, state = _accepted()
    for now in (10.0 + ANSWER_S, 10.0 + 2 * ANSWER_S, 10.0 + HOLD_S - 0.1):
        contact.on_deadline(now)
    assert contact.take_plans() == [] and state.is_held
    assert contact.next_deadline() == pytest.approx(10.0 + HOLD_S)
    contact.on_deadline(10.0 + HOLD_S)
    assert contact.take_plans() == [GiveUp(1)]


@pytest.mark.parametrize("reason", ["streams", "another", "endpoint"])
def test_it_is_given_up_as_any_other_where_somebody_waits_or_there_is_another_way(reason):
    contact, state = _accepted()
    contact.on_deadline(30.0)
    assert state.is_held
    if reason == "streams":
        contact.has_streams = True
    elif reason == "endpoint":
        contact.endpoints = (TCP,)
    else:
        contact.heard(contact.link_up(2, "tcp", "tcp://198.51.100.9:40001", False, 30.0), 30.1)
    assert contact.next_deadline() <= 31.0
    contact.on_deadline(31.0)
    assert GiveUp(1) in contact.take_plans()


def test_a_held_connection_that_carries_again_is_as_good_as_new():
    contact, state = _accepted()
    contact.on_deadline(30.0)
    contact.heard(state, 50.0)
    assert contact.is_reached and not state.is_held
    contact.on_deadline(10.0 + HOLD_S)
    assert contact.take_plans() == []


# --- dialling anew -------------------------------------------------------------------------------------


def test_news_of_a_peer_end_the_back_off_but_not_too_often():
    redial = Redial(lambda span: span / 2)
    for _ in range(10):
        redial.failures += 1
        redial.back_off(100.0, False)
    assert redial.at is not None and redial.at > 150.0
    redial.prompt(100.0)
    assert redial.at == 100.0 + PROMPT_S / 2
    redial.failures += 1
    redial.back_off(100.5, False)
    assert redial.at < 101.0, "it begins anew"
    redial.at = 170.0
    redial.prompt(100.0 + PROMPT_EVERY_S - 0.1)
    assert redial.at == 170.0
    redial.prompt(100.0 + PROMPT_EVERY_S)
    assert redial.at < 106.0
    assert redial.is_failing, "it is not reached yet"


def test_a_node_without_any_link_tries_more_often():
    redial = Redial(lambda span: span / 2)
    redial.alone_since = 1000.0
    for _ in range(20):
        redial.back_off(1000.0 + LATELY_S, False)
    assert redial.at is not None and redial.at <= 1000.0 + LATELY_S + BACKOFF_ALONE_MAX_S
    redial.back_off(1000.0 + LATELY_S - 1.0, False)
    assert redial.at < 1000.0 + LATELY_S + 1.0, "and at first as if streams waited"


def test_a_node_whose_servers_only_refuse_since_they_start_later_tries_as_often():
    """It used to count as answered: a mesh that was switched on at once took ten seconds to find together."""
    redial = Redial(lambda span: span / 2)
    redial.alone_since = 1000.0
    for _ in range(10):
        redial.failures += 1
        redial.back_off(1010.0, False)
    assert redial.at is not None and redial.at <= 1010.0 + BACKOFF_BUSY_MAX_S


def test_who_was_lost_of_late_is_dialled_every_two_seconds_beside_dials_that_hang_too():
    contact, state = _contact()
    contact.stalled(state, 1.0, 10.0)
    contact.take_plans()
    dials = []
    now = 10.0
    while now < 10.0 + 3 * LATELY_S:
        contact.on_deadline(now)
        for plan in contact.take_plans():
            if isinstance(plan, Dial):
                dials.append(now)
            elif isinstance(plan, GiveUp):
                contact.link_down(1, now)
        now += 0.1
    lately = [at for at in dials if at < 10.0 + LATELY_S]
    gaps = [after - before for before, after in itertools.pairwise([10.0, *lately])]
    assert max(gaps) <= PACE_S + 0.2
    assert len(lately) <= LATELY_S / PACE_S * 1.2 + 5
    assert dials[-1] - dials[-2] > 20.0, "later the back-off goes on"


def test_who_waits_for_longer_than_a_minute_is_not_dialled_for_more_seldom_than_who_does_not():
    redial = Redial(lambda span: span / 2)
    redial.missed(1000.0)
    redial.began(1000.0)
    fresh = [at / 10 for at in range(10_000, 12_000) if redial.hurry(at / 10, True)]
    second_minute = [at for at in fresh if 1070.0 < at < 1000.0 + LATELY_S]
    gaps = [after - before for before, after in itertools.pairwise(second_minute)]
    assert gaps and max(gaps) <= PACE_S + 0.2 and min(gaps) > 1.0
    assert fresh[-1] < 1000.0 + LATELY_S + PACE_S


def test_beside_a_dial_that_hangs_a_fresh_one_is_made_when_there_are_news():
    contact = Contact((TCP,), keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    contact.want(0.0)
    assert contact.take_plans() == [Dial(TCP)]
    contact.heard_of(0.5)
    contact.on_deadline(0.5)
    assert contact.take_plans() == [], "that one may still come to something"
    contact.heard_of(6.0)
    contact.on_deadline(6.0)
    assert contact.take_plans() == [Dial(TCP)]


# --- the whole node ------------------------------------------------------------------------------------


class Net:
    """Four servers and a client, 50 ms apart; connections only."""

    def __init__(self, keepalive_s: float = 120.0) -> None:
        weather = Weather(flight_s=0.05, retry_max_s=RETRY_NEW_S)
        self.world = World(3, weather, has_story=False)
        home = {1: ("tcp://203.0.113.1:7000",)}
        for node in (1, 2, 3, 4):
            self._add(
                node, f"203.0.113.{node}", Role.SERVER | Role.RELAY, ("tcp",), home, keepalive_s
            )
        self.client = self._add(50, "10.0.50.1", Role.ENTRY, (), home, keepalive_s)
        self.said: list[tuple[float, int, int, str]] = []
        sent = self.world.sent

        def watched(member, link, batch, size):
            for head, _ in batch:
                fields = member.fields(head)
                kind = Kind(fields[0] & 31).name
                self.said.append((self.world.age_s, member.seat.node, fields[2], kind))
            sent(member, link, batch, size)

        self.world.sent = watched  # type: ignore[method-assign]
        self.world.run(60)

    def _add(self, node, ip, roles, listens, home, keepalive_s):
        host = self.world.network.add(Host(f"h{node}", ip, SITES[0]))
        servers = {} if node == 1 else home
        seat = Seat(node, host, (KEY,), roles, listens, servers=servers, keepalive_s=keepalive_s)
        return self.world.start(seat)

    def living(self) -> int:
        """How many connections of the client stand at both ends."""
        network = self.world.network
        return sum(
            link.end.is_open and link.end.other.is_open and network.reaches(link.end, link.end.other, "tcp")
            for link in self.client.links.values()
        )  # fmt: skip


def test_a_node_whose_network_died_unnoticed_finds_out_by_its_first_link():
    """Another address, and nobody tells: three links that take turns, so a third of the keep-alive time."""
    net = Net()
    net.world.run(600)
    assert net.living() == 3
    net.world.network.move(net.client.seat.host, "10.1.50.1", SITES[0], None)
    assert net.living() == 0
    net.world.run(120.0 / 3 + STALL_S + 1.0)
    assert net.living() == 3


def test_links_take_turns_and_together_say_no_more_than_each_for_itself_would():
    net = Net()
    net.world.run(600)
    net.said.clear()
    net.world.run(1200)
    asked = [(at, to) for at, node, to, kind in net.said if node == 50 and kind == "PROBE"]
    answered = [at for at, node, _, kind in net.said if node == 50 and kind == "ANSWER"]
    assert len(asked) + len(answered) <= 1.3 * 3 * 1200 / 120
    times = sorted([at for at, _ in asked] + answered)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps) <= 120.0 / 3 * 1.1, "nobody is heard for longer than a turn"


def test_a_peer_that_lost_its_power_costs_its_neighbours_a_few_probes():
    net = Net(keepalive_s=600.0)
    net.world.run(30)
    net.said.clear()
    net.world.kill(4, power=True)
    net.world.run(900)
    assert all(4 not in m.node.members.gossip.neighbours() for m in net.world.alive())
    probes = Counter(node for _, node, to, kind in net.said if kind == "PROBE" and to != 4)
    assert max(probes.values()) <= 12


def test_islands_that_join_are_one_mesh_within_five_seconds_though_dials_have_backed_off():
    net = Net(keepalive_s=600.0)
    world = net.world
    world.network.split({"h3": 1, "h4": 1})
    for node in (1, 3):
        world.members[node].node.describe(world.agenda.now, name=f"renamed {node}")
        world.members[node].settle()
    world.run(90)
    assert len(world.digests()) == 2
    world.network.split({})
    world.run(5)
    assert len(world.digests()) == 1


def test_a_node_that_nobody_can_dial_hears_the_news_once_its_island_without_a_server_joins():
    """It said nothing and noticed nothing: the servers hold its connections."""
    net = Net(keepalive_s=600.0)
    world = net.world
    world.run(60)
    world.network.split({"h50": 1})
    for node in (1, 2, 3, 4):
        world.members[node].node.describe(world.agenda.now, name=f"renamed {node}")
        world.members[node].settle()
    world.run(40)
    world.members[2].node.describe(world.agenda.now, name="renamed again")
    world.members[2].settle()
    world.run(5)
    assert len(world.digests()) == 2
    world.network.split({})
    world.run(5)
    assert len(world.digests()) == 1
    assert net.living() == len(net.client.links)


def test_a_server_that_others_would_dial_is_back_at_once_after_a_loss_of_power_that_nobody_noticed():
    """It has the highest number, so the others dial; their connections to its last start look alive."""
    net = Net(keepalive_s=600.0)
    world = net.world
    world.run(60)
    world.members[4].save()
    world.kill(4, power=True)
    world.run(10)
    world.start(world.seats[4])
    world.run(5)
    assert len(world.digests()) == 1
    boot = world.members[4].boot
    for node in (1, 2, 3, 50):
        peer = world.members[node].node.peers[NodeId(4)]
        assert peer.session.peer_boot == boot or not peer.contact.links, "no link to the last start"


def test_links_of_a_node_whose_record_was_contested_are_asked_once_and_not_with_each_of_its_news(
    monkeypatch,
):
    """Its record's boot stays above that of its links: asked, they count as silent for a round trip."""
    asked: list[float] = []
    ask_all = Contact.ask_all

    def noted(contact: Contact, now: float) -> None:
        asked.append(now)
        ask_all(contact, now)

    monkeypatch.setattr(Contact, "ask_all", noted)
    world, client, server = pair()
    world.run(5)
    server.node.members.supersede(server.node.directory.own.boot + 5, world.now)
    world.settle(server)
    world.run(5)
    for step in range(3):
        server.node.describe(world.now, name=f"renamed {step}")
        world.settle(server)
        world.run(5)
    record = client.node.directory.get(1)
    assert record is not None and record.name == "renamed 2"
    assert record.boot > client.node.peers[1].session.peer_boot
    assert len(asked) == 1
