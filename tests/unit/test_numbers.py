"""Two live nodes with one number (R03): both are told, the later one stands back, the first is unharmed."""

from __future__ import annotations

import itertools
import random

import pytest

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.mesh.claims import (
    DUPLICATES_MAX,
    EVERY_S,
    OTHERS_MAX,
    OWN_S,
    RETRY_S,
    TOLD_S,
    Announce,
    Claim,
    Claims,
    Heard,
    StandBack,
    Supersede,
)
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.node.relay import Freshness
from uservpn.wire.constants import Kind
from world import World

HOME = {1: ("sim://10.0.0.1:1",)}
OTHER = {2: ("sim://10.0.0.2:1",)}


def _server(world, node, **more):
    here = Known(EndpointKind.FIXED, f"sim://10.0.0.{node}:1")
    record = Record(node, 1000, 0, Role.SERVER | Role.EXIT | Role.RELAY, endpoints=(here,))
    return world.add(node, {} if node == 1 else HOME, record=record, **more)


def _twin(world, servers, boot, address, record=None, **more):
    """Another node 7; the world dials whoever came last."""
    member = world.add(7, servers, boot=boot, record=record, **more)
    member.address = address
    return member


def _die(world, dead):
    """Killed; its links end."""
    dead.is_up = False
    for link, (member, _) in list(world.links.items()):
        if member is dead:
            world.cut(link)


class Download:
    """The site sends all the time; every byte has to arrive, in order."""

    def __init__(self, world, client, exit):
        self.world, self.client, self.exit = world, client, exit
        self.stream = client.node.open(exit.id, "site.test", 80, None, world.now)
        client.send(self.stream, b"GET")
        world.settle(client)
        world.run(1)
        self.back = exit.offered[-1][0]
        self.sent = b""

    def go_on(self, seconds):
        for _ in range(round(seconds / 0.25)):
            chunk = random.Random(len(self.sent)).randbytes(5000)
            self.sent += chunk
            self.exit.send(self.back, chunk)
            self.world.settle(self.exit)
            self.world.run(0.25)

    def check(self):
        self.world.run(2)
        assert bytes(self.client.received[self.stream.id]) == self.sent
        assert not self.client.resets and not self.exit.resets


def _told(member, address):
    return any("duplicate" in text and address in text for text in member.news)


@pytest.mark.parametrize("boot", [1500, 3000], ids=["older boot", "newer boot"])
@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
def test_at_one_server_the_first_is_not_disturbed_and_the_later_stands_back(boot, skew):
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    download = Download(world, first, server)
    later = _twin(world, HOME, boot, "sim://later", skew_s=skew)
    download.go_on(10)
    assert later.node.claims.is_back and not first.node.claims.is_back
    assert (
        _told(first, "sim://later") and _told(later, "sim://first") and _told(server, "sim://later")
    )
    assert server.node.peers[7].session.peer_boot == 2000
    with pytest.raises(StreamFault, match="duplicate"):
        later.node.open(1, "site.test", 80, None, world.now)
    assert not later.node.links and first.node.links
    world.run(RETRY_S * 2)  # and when it tries again
    download.go_on(1)
    download.check()
    assert later.node.claims.is_back
    assert sum("runs at" in text for text in first.news) == 1, "the log is not filled"
    assert sum("two nodes" in text for text in server.news) == 1


def test_what_is_repeated_to_both_does_not_keep_time_with_other_servers():
    """They may all have seen the two at the same moment."""
    world = World()
    server = _server(world, 1)
    _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    later = _twin(world, HOME, 3000, "sim://later")
    peer = server.node.peers[7]
    while peer.rival is None or not peer.rival.is_known_alive:
        world.run(0.05)
    later.is_up = False  # it hears nothing of all that
    times = [peer.rival.again_at]
    while (
        len(times) < 9
    ):  # then the known one claims its number once more, and both hear of it at once
        world.run(0.05)
        if peer.rival.again_at != times[-1]:
            times.append(peer.rival.again_at)
    waits = [after - before for before, after in itertools.pairwise(times[1:])]
    assert all(0.99 < wait < 1.31 for wait in waits)
    assert max(waits) - min(waits) > 0.1


@pytest.mark.parametrize("boot", [1500, 3000], ids=["older boot", "newer boot"])
@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_at_different_servers_too(boot, skew):
    world = World()
    one = _server(world, 1)
    _server(world, 2)
    world.run(3)
    first = _twin(world, HOME, 2000, "sim://first", Record(7, 2000, name="first"))
    world.run(20)
    download = Download(world, first, one)
    world.unreachable.add(1)
    record = Record(7, boot, name="later")
    later = _twin(world, OTHER, boot, "sim://later", record, skew_s=skew)
    download.go_on(20)
    world.unreachable.clear()
    assert later.node.claims.is_back and not first.node.claims.is_back
    assert _told(first, "sim://later") and _told(later, "sim://first")
    download.go_on(10)
    for member in (one, world.members[2], first):
        assert member.node.directory.get(7).name == "first"
    download.check()


@pytest.mark.parametrize("boot", [1500, 3000], ids=["older boot", "newer boot"])
def test_an_exit_behind_a_relay_keeps_its_client(boot):
    """The client reaches node 7 over server 1; another 7 comes by server 2 and greets the client."""
    world = World()
    _server(world, 1)
    _server(world, 2)
    world.run(3)
    first = _twin(world, HOME, 2000, "sim://first", Record(7, 2000, 0, Role.EXIT))
    client = world.add(50, {**HOME, **OTHER})
    world.run(20)
    download = Download(world, client, first)
    way = client.node.route(7)
    assert len(way) == 2
    for link, (member, other) in list(world.links.items()):
        if member is first and other.id == 2:
            world.cut(link)
    world.unreachable.add(1)
    later = _twin(world, OTHER, boot, "sim://later", Record(7, boot, 0, Role.EXIT))
    world.run(0.5)
    later.node.send_message(50, "hello", b"", world.now)
    world.settle(later)
    download.go_on(20)
    world.unreachable.clear()
    assert later.node.claims.is_back and not first.node.claims.is_back
    download.check()
    assert client.node.peers[7].session.peer_boot == 2000


@pytest.mark.parametrize("boot", [1500, 3000], ids=["older boot", "newer boot"])
def test_a_second_server_that_is_dialled_in_the_place_of_the_first_is_found_out(boot):
    """Its record is newer, so its endpoint is dialled: that it answers does not make it the first."""
    world = World()
    _server(world, 1)
    here = Known(EndpointKind.FIXED, "sim://10.0.0.7:1")
    record = Record(7, 2000, 0, Role.SERVER | Role.EXIT, name="first", endpoints=(here,))
    first = _twin(world, HOME, 2000, "sim://first", record)
    client = world.add(50, HOME)
    world.run(20)
    download = Download(world, client, first)
    there = Known(EndpointKind.FIXED, "sim2://10.0.0.77:1")
    record = Record(7, boot, 0, Role.SERVER | Role.EXIT, name="later", endpoints=(there,))
    later = _twin(world, {}, boot, "sim://later", record)
    world.connect(client, 7, "sim2://10.0.0.77:1", "sim2")
    download.go_on(12)
    assert later.node.claims.is_back and not first.node.claims.is_back
    assert _told(later, "") and _told(first, "sim2://10.0.0.77:1")
    download.check()


def test_a_restart_is_not_taken_for_another_node():
    """Killed, its link closed with it: no wait, no word of a duplicate."""
    world = World()
    server = _server(world, 1)
    _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    world.crash(7)
    again = _twin(world, HOME, 2100, "sim://first")
    world.run(0.5)
    assert server.node.peers[7].session.peer_boot == 2100
    assert not any("duplicate" in text for member in (server, again) for text in member.news)


@pytest.mark.parametrize("known", [b"same" * 2, b""])
def test_after_a_power_failure_the_restarted_node_waits_a_second(known):
    """Nobody closed the old link: the one that is back is heard as soon as that is silent for long enough."""
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first", instance=known)
    world.run(20)
    stream = first.node.open(1, "site.test", 80, None, world.now)
    first.send(stream, b"x")
    world.settle(first)
    world.run(1)
    first.is_up = False
    again = _twin(world, HOME, 2100, "sim://first", instance=known)
    world.run(1.5 if known else 6)
    assert server.node.peers[7].session.peer_boot == 2100
    second = again.node.open(1, "site.test", 80, None, world.now)
    again.send(second, b"hello")
    world.settle(again)
    world.run(1)
    assert (
        bytes(server.received[second.id])[-5:] == b"hello" and again.opened[second.id] is Fault.NONE
    )
    assert not any("duplicate" in text for member in (server, again) for text in member.news)


def test_a_restart_is_heard_though_ways_over_relays_are_sought_meanwhile():
    """Streams wait, so each way that is dropped is replaced by another: none of them is the known node's."""
    world = World()
    for node in (1, 2, 3):
        _server(world, node)
    here = Known(EndpointKind.FIXED, "sim://10.0.0.7:1")
    record = Record(7, 2000, 0, Role.SERVER | Role.EXIT, endpoints=(here,))
    first = _twin(world, HOME, 2000, "sim://first", record, instance=b"the same")
    client = world.add(50, HOME)
    world.run(20)
    stream = client.node.open(7, "site.test", 80, None, world.now)
    client.send(stream, b"x")
    world.settle(client)
    world.run(2)
    first.is_up = False  # the power fails: nobody closes anything
    world.unreachable.add(7)
    for link, (member, other) in list(world.links.items()):
        if member is client and other is first:
            world.cut(link)
    world.run(5)
    ways = client.node.peers[7].contact.links
    assert ways and all(way.relayed and way.heard_at == way.up_at for way in ways)
    world.unreachable.clear()
    record = Record(7, 2100, 0, Role.SERVER | Role.EXIT, endpoints=(here,))
    again = _twin(world, HOME, 2100, "sim://first", record, instance=b"the same")
    client.node.wake(world.now)
    world.settle(client)
    world.run(1)
    assert client.node.peers[7].session.peer_boot == 2100
    second = client.node.open(7, "site.test", 80, None, world.now)
    client.send(second, b"hello")
    world.settle(client)
    world.run(1)
    assert bytes(again.received[second.id]) == b"hello"


def test_a_rival_that_goes_again_costs_the_first_nothing():
    """The known node answers late, after patience has ended: nobody waits for its place any more."""
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    download = Download(world, first, server)
    later = _twin(world, HOME, 3000, "sim://later")
    world.run(0.3)
    assert server.node.peers[7].rival is not None
    world.delays[7, 1] = 3.0
    _die(world, later)
    download.go_on(10)
    world.delays.clear()
    download.go_on(5)
    download.check()
    assert server.node.peers[7].session.peer_boot == 2000


def test_a_newcomer_that_restarts_stands_back_again():
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    download = Download(world, first, server)
    for boot in (3000, 4000, 5000):
        later = _twin(world, HOME, boot, "sim://later")
        download.go_on(8)
        assert later.node.claims.is_back
        _die(world, later)
    download.check()


def test_when_the_first_is_gone_the_other_gets_the_number():
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    later = _twin(world, HOME, 1500, "sim://later")
    world.run(10)
    assert later.node.claims.is_back
    _die(world, first)
    world.run(RETRY_S * 1.5 + 20)
    assert not later.node.claims.is_back
    stream = later.node.open(1, "site.test", 80, None, world.now)
    later.send(stream, b"mine now")
    world.settle(later)
    world.run(2)
    assert bytes(server.received[stream.id]) == b"mine now"
    assert server.node.peers[7].session.peer_boot > 2000, "a boot above the one that was known"


def test_a_reload_tries_again_at_once():
    world = World()
    _server(world, 1)
    _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    later = _twin(world, HOME, 3000, "sim://later")
    world.run(10)
    assert later.node.claims.is_back
    later.node.retry_number(world.now)
    world.settle(later)
    assert not later.node.claims.is_back
    world.run(10)
    assert later.node.claims.is_back


def test_started_together_one_of_them_stays():
    for seed in range(6):
        world = World(seed=seed)
        _server(world, 1)
        _server(world, 2)
        world.run(3)
        twins = [
            _twin(world, HOME, 2000 + 10 * seed, "sim://a", Record(7, 2000 + 10 * seed)),
            _twin(world, OTHER, 2025, "sim://b", Record(7, 2025)),
        ]
        world.run(30)
        assert sorted(twin.node.claims.is_back for twin in twins) == [False, True], seed


def test_a_record_left_behind_with_a_higher_boot_is_superseded():
    """The state was lost, or the clock was wrong then: nobody claims the number, so ours wins."""
    world = World()
    server = _server(world, 1)
    server.node.directory.merge(Record(7, 10**15, 3, name="old"), world.now)
    node = _twin(world, HOME, 2000, "sim://x", Record(7, 2000, name="new"))
    world.run(10)
    assert server.node.directory.get(7).name == "new"
    assert not node.node.claims.is_back and not any("duplicate" in text for text in node.news)
    node.node.describe(world.now, name="newer")
    world.settle(node)
    world.run(3)
    assert server.node.directory.get(7).name == "newer"


def _a_guest_comes_and_the_first_wakes(world, server, first) -> None:
    """While the first one sleeps another takes its number, and dies; then the first is heard again."""
    guest = _twin(world, HOME, 9000, "sim://guest")
    world.run(10)
    assert server.node.peers[7].session.peer_boot == 9000
    _die(world, guest)
    world.run(1)
    first.is_up = True
    for link in list(first.node.links):
        first.node.link_down(link, "slept", world.now)
    first.node.wake(world.now)
    world.settle(first)
    world.run(130)
    assert server.node.peers[7].session.peer_boot > 9000
    download = Download(world, first, server)
    download.go_on(2)
    download.check()


def test_a_first_node_that_slept_takes_another_boot_where_its_own_is_outdated():
    """Silent for minutes, its number was used elsewhere and left again: it is heard all the same."""
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    world.unreachable.add(1)
    first.is_up = False
    world.cut_all()
    world.run(60)
    world.unreachable.clear()
    _a_guest_comes_and_the_first_wakes(world, server, first)
    assert first.node.peers[1].session.my_boot > 9000 > first.node.options.boot


def test_the_same_where_the_server_was_restarted_meanwhile():
    """What the first one sends is bound to a boot that is gone, and its own boot is an old one."""
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    world.run(20)
    first.is_up = False
    world.cut_all()
    world.crash(1)
    world.run(60)
    server = _server(world, 1, boot=5000)
    _a_guest_comes_and_the_first_wakes(world, server, first)


def test_recorded_messages_of_an_older_boot_are_not_heard_and_older_ones_not_answered():
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    stream = first.node.open(1, "site.test", 80, None, world.now)
    first.send(stream, b"pay 100")
    world.settle(first)
    world.run(2)
    captured = [(head, body) for link, head, body in world.tap if world.links[link][0] is first]
    world.crash(7)
    again = _twin(world, HOME, 2100, "sim://first")
    world.run(5)
    offered = len(server.offered)
    for wait in (10, 5000):
        world.run(wait)
        server.node.link_up(9999 + wait, "sim", 70000, "sim://attacker", world.now)
        world.links[9999 + wait] = (server, first)
        world.tap.clear()
        for head, body in captured:
            world.inject(server, 9999 + wait, head, body)
        answers = [head for link, head, _ in world.tap if link == 9999 + wait]
        assert len(answers) <= 1 if wait == 10 else not answers
        world.run(30)
    assert len(server.offered) == offered
    assert server.node.peers[7].session.peer_boot == 2100 and not again.resets
    assert not any("duplicate" in text for text in (*server.news, *again.news))


def test_recordings_cost_a_node_that_is_silent_for_a_while_no_link():
    """Messages of its boot before, played while its path stalls: nobody echoes, so nothing is given up."""
    world = World()
    server = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    world.run(2)
    captured = [(head, body) for link, head, body in world.tap if world.links[link][0] is first]
    _die(world, first)
    again = _twin(world, HOME, 2100, "sim://first")
    world.run(20)
    download = Download(world, again, server)
    (known,) = server.node.peers[7].contact.links
    world.black_hole = True
    server.node.link_up(9999, "sim", 70000, "sim://attacker", world.now)
    world.links[9999] = (server, first)
    for head, body in captured:
        world.inject(server, 9999, head, body)
    assert server.node.peers[7].rival is not None
    world.run(3)
    world.black_hole = False
    assert server.node.peers[7].contact.links == [known]
    download.go_on(5)
    download.check()
    assert server.node.peers[7].session.peer_boot == 2100


def test_a_relay_that_knows_a_higher_boot_says_so():
    world = World()
    relay = _server(world, 1)
    first = _twin(world, HOME, 2000, "sim://first")
    world.add(50, HOME)
    world.run(10)
    first.node.send_message(50, "x", b"1", world.now)
    world.settle(first)
    world.run(2)
    assert world.members[50].messages
    flow = relay.node.relay.freshness._flows[7, 50]
    flow.boot = 9000
    token = first.node.send_message(50, "x", b"2", world.now, confirmed=True)
    world.settle(first)
    world.run(10)
    assert first.results[token] and [p for _, _, p in world.members[50].messages] == [b"1", b"2"]
    assert Freshness().boot_of(7, 50) == 0


# --- the claims themselves ----------------------------------------------------------------------------


def _claims(boot=1000, instance=b"instance", now=0.0):
    return Claims(7, boot, instance, lambda span: 0.0, now)


def _other(age_s, instance=b"another!", boot=2000, serial=1):
    return Claim(7, instance, boot, serial, age_s, "sim://other")


def test_who_has_been_there_longer_stays():
    for age_s, stays in ((99.0, False), (111.0, True), (0.0, False), (1e6, True)):
        claims = _claims()
        claims.hear(_other(age_s), 105.0)
        claims.on_deadline(106.0)
        assert claims.is_back is stays
        assert any(isinstance(plan, Announce) for plan in claims.take_plans())
    for instance, stays in ((b"aaaaaaaa", False), (b"zzzzzzzz", True)):  # too close to tell
        claims = _claims()
        claims.hear(_other(104.3, instance), 105.0)
        claims.on_deadline(106.0)
        assert claims.is_back is stays


def test_our_own_claims_are_none_of_another_node():
    claims = _claims(boot=1000)
    claims.hear(_other(1e6, b"instance", 1000), 1.0)
    claims.hear(_other(1e6, b"instance", 900), 1.0)  # of the process before
    claims.on_deadline(OWN_S)
    assert not claims.is_back and not claims.take_plans()
    claims.hear(_other(1e6, b"instance", 900), OWN_S + 1)  # a copied state directory
    claims.on_deadline(OWN_S + 2)
    assert claims.is_back


def test_claims_are_seldom_and_what_is_remembered_is_bounded():
    claims = _claims()
    for index in range(200):
        claims.hear(_other(1.0, b"%8d" % index), 100.0 + index * EVERY_S / 20)
    plans = claims.take_plans()
    assert sum(isinstance(plan, Announce) for plan in plans) <= 11
    assert len(claims.duplicates(200.0)) == DUPLICATES_MAX
    assert not claims.duplicates(200.0 + TOLD_S)
    heard = Heard()
    claims = [_other(1.0, b"%8d" % index) for index in range(2 * OTHERS_MAX)]
    assert sum(heard.admit(claim, 0.0) for claim in claims) == OTHERS_MAX
    assert not heard.admit(claims[0], 1.0), "a flood of them goes round only once"
    assert all(heard.admit(claim, EVERY_S) for claim in claims[OTHERS_MAX:])
    assert len(heard._claims) == OTHERS_MAX


def test_a_claim_is_passed_on_once():
    heard = Heard()
    claim = _other(5.0)
    assert heard.admit(claim, 0.0) and not heard.admit(claim, 0.1)
    assert not heard.admit(claim._replace(serial=2), 1.0), "too often"
    assert heard.admit(claim._replace(serial=3), EVERY_S)
    assert not heard.admit(claim._replace(serial=2), 2 * EVERY_S), "an old one"
    assert heard.of(7, 2000, EVERY_S + 4).age_s == 9.0 and heard.of(7, 1, 0.0) is None


def test_a_contested_record_is_superseded_unless_somebody_claims_it():
    claims = _claims()
    claims.contradicted(5000, 10.0)
    claims.on_deadline(12.0)
    assert not any(isinstance(plan, Supersede) for plan in claims.take_plans())
    claims.on_deadline(13.0)
    assert Supersede(5000) in claims.take_plans()
    claims.contradicted(6000, 20.0)
    claims.hear(_other(1e6), 20.1)
    claims.on_deadline(24.0)
    plans = claims.take_plans()
    assert StandBack("sim://other") in plans
    assert not any(isinstance(plan, Supersede) for plan in plans)


def test_a_claim_decodes_to_itself_and_nonsense_is_a_fault():
    claim = _other(12.5)
    assert Claim.decode(claim.encode() + bytes(9)) == claim
    rng = random.Random(1)
    for _ in range(500):
        data = bytearray(claim.encode())
        data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.randrange(len(data) + 1) :]
        try:
            Claim.decode(bytes(data))
        except PeerFault:
            pass


def test_a_malformed_claim_costs_its_link():
    world = World()
    server = _server(world, 1)
    node = world.add(9, HOME)
    world.run(3)
    for kind in (Kind.CLAIM, Kind.DUPLICATE):
        link = next(iter(node.node.links))
        node.node.peers[1].outbox.append((link, kind, b"nonsense", 0))
        node.node.table.touch(node.node.peers[1])
        world.settle(node)
        world.run(5)
    assert server.node.counters.peer_faults == 2


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_lost_and_wherever_they_meet_one_stays_and_the_other_does_not(seed):
    """Loss, doubles, reordering, clocks an hour off, boots either way, one server or two."""
    _mixed(seed)


def _mixed(seed):
    rng = random.Random(seed)
    world = World(seed=seed, delay=rng.choice((0.005, 0.05, 0.2)))
    one = _server(world, 1)
    _server(world, 2)
    world.run(5)
    first = _twin(
        world, {**HOME, **OTHER}, 2000, "sim://first", Record(7, 2000, name="first"),
        skew_s=rng.uniform(-3600, 3600),
    )  # fmt: skip
    world.run(rng.uniform(5, 60))
    download = Download(world, first, one)
    world.loss, world.dup = rng.choice((0.0, 0.03)), rng.choice((0.0, 0.05))
    world.reorder = rng.choice((0.0, 0.1))
    boot = rng.choice((1500, 3000))
    later = None
    for _ in range(rng.choice((1, 2, 3))):
        if later is not None:
            _die(world, later)
        boot += rng.randrange(1, 100)
        later = _twin(
            world, rng.choice((HOME, OTHER, {**HOME, **OTHER})), boot, "sim://later",
            Record(7, boot, name="later"), skew_s=rng.uniform(-3600, 3600),
        )  # fmt: skip
        download.go_on(rng.uniform(0, 12))
    world.loss = world.dup = world.reorder = 0.0
    download.go_on(30)
    assert later.node.claims.is_back and not first.node.claims.is_back, seed
    download.check()
    world.run(30)
    assert one.node.directory.get(7).name == "first", seed
    assert one.node.peers[7].session.peer_boot == 2000, seed
