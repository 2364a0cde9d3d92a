"""The mesh with the shipped `Node`: who learns of whom, who dials whom, in simulated time."""

from __future__ import annotations

from uservpn.errors import Fault
from uservpn.mesh.contact import IDLE_S
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from world import World


def _record(node: int, boot: int = 1000, **more) -> Record:
    server = Known(EndpointKind.FIXED, f"sim://10.0.0.{node}:1")
    return Record(node, boot, 0, Role.SERVER | Role.EXIT, endpoints=(server,), **more)


def _mesh(count: int = 3, **options) -> World:
    """Servers 1..count; all but the first know only the first."""
    world = World(**options)
    for node in range(1, count + 1):
        servers = {} if node == 1 else {1: ("sim://10.0.0.1:1",)}
        world.add(node, servers, record=_record(node))
    return world


def _lists(world: World) -> set[bytes]:
    return {m.node.directory.digest() for m in world.members.values() if m.is_up}


def _linked(member) -> set[int]:
    return {n for n, peer in member.node.peers.items() if peer.contact.links}


def test_a_client_of_one_server_learns_of_all_and_leaves_at_any():
    """R08, R10, R13: one configured server is enough to find the others."""
    world = _mesh(4)
    client = world.add(50, {1: ("sim://10.0.0.1:1",)})
    world.run(5)
    assert len(_lists(world)) == 1 and len(client.node.directory) == 5
    assert [r.node for r in world.members[4].node.directory] == [1, 2, 3, 4, 50]
    stream = client.node.open(4, "site.test", 80, None, world.now)
    client.send(stream, b"hello", finish=True)
    world.settle(client)
    world.run(3)
    assert client.opened[stream.id] is Fault.NONE
    assert bytes(world.members[4].received[stream.id]) == b"hello"


def test_servers_link_with_each_other_and_a_client_with_three():
    world = _mesh(6)
    client = world.add(50, {1: ("sim://10.0.0.1:1",)})
    world.run(IDLE_S + 60)  # what was opened beyond that is closed when idle
    for node in range(1, 7):
        assert _linked(world.members[node]) >= {1, 2, 3, 4, 5, 6} - {node}
    assert len(_linked(client)) == 3 and 1 in _linked(client)
    pairs = [frozenset((a.id, b.id)) for a, b in world.links.values()]
    assert len(pairs) == 2 * len(set(pairs)), "one link for each pair"


def test_a_change_is_known_everywhere_within_five_seconds():
    world = _mesh(5)
    client = world.add(50, {1: ("sim://10.0.0.1:1",)})
    world.run(10)
    client.node.describe(world.now, name="renamed")
    world.settle(client)
    world.run(5)
    assert len(_lists(world)) == 1
    assert world.members[5].node.directory.get(50).name == "renamed"


def test_the_stored_list_finds_the_others_when_the_configured_server_is_gone():
    world = _mesh(4)
    client = world.add(50, {1: ("sim://10.0.0.1:1",)})
    world.run(10)
    nodes = client.node.directory.dump(world.now)
    world.crash(1)
    world.crash(50)
    world.run(1)
    client = world.add(50, {1: ("sim://10.0.0.1:1",)}, boot=2000, nodes=nodes)
    world.run(10)
    assert 1 not in _linked(client) and len(_linked(client)) == 3
    assert len(_lists(world)) == 1


def test_a_server_that_dies_is_made_up_for():
    """The client's configured server is killed while it runs: others take its place."""
    world = _mesh(5)
    client = world.add(50, {1: ("sim://10.0.0.1:1",)})
    world.run(10)
    before = _linked(client)
    world.crash(1)
    world.run(10)
    assert len(_linked(client)) >= 3 and 1 in before and 1 not in _linked(client)


def test_a_restarted_node_replaces_its_record():
    world = _mesh(3)
    world.run(5)
    world.crash(3)
    world.run(1)
    world.add(3, {1: ("sim://10.0.0.1:1",)}, boot=2000, record=_record(3, 2000, name="new"))
    world.run(5)
    assert len(_lists(world)) == 1
    assert world.members[2].node.directory.get(3).boot == 2000


def test_a_link_on_demand_is_closed_when_idle():
    world = _mesh(6)
    client = world.add(50, {1: ("sim://10.0.0.1:1",)})
    world.run(IDLE_S + 60)  # those of the start are closed
    away = next(n for n in range(2, 7) if n not in _linked(client))
    stream = client.node.open(away, "site.test", 80, None, world.now)
    client.send(stream, b"x")
    world.settle(client)
    world.run(IDLE_S + 60)
    assert away in _linked(client)  # the stream lives
    client.node.tunnel(stream).reset(stream, Fault.CANCELLED)
    world.settle(client)
    world.run(IDLE_S + 60)
    assert away not in _linked(client) and len(_linked(client)) == 3


def test_an_idle_node_sends_little():
    """Keep-alives and rare digests: bytes a second, per node, far below 200."""
    world = _mesh(6)
    world.add(50, {1: ("sim://10.0.0.1:1",)})
    world.run(IDLE_S + 60)
    world.tap.clear()
    world.run(1800, steps_max=2_000_000)
    sent: dict[int, int] = {}
    for link, head, body in world.tap:
        node = world.links[link][0].id
        sent[node] = sent.get(node, 0) + len(head) + len(body) + 40
    assert max(sent.values()) / 1800 < 20


def test_nonsense_gossip_of_a_member_closes_its_link_and_nothing_else():
    world = _mesh(2)
    rogue = world.add(9, {1: ("sim://10.0.0.1:1",)})
    world.run(5)
    link = next(iter(rogue.node.links))
    session = rogue.node.peers[1].session
    wall_ms = int((world.now + 1e9) * 1000)
    head, body = session.seal(10, b"\3\xff\xff", b"\0\0\0", wall_ms)
    world.carry(link, head, body)
    world.run(0.3)
    assert world.members[1].node.counters.peer_faults == 1
    assert any("makes no sense" in text for text in world.members[1].news)
    assert 2 in _linked(world.members[1])


def test_a_kept_neighbour_is_told_of_whichever_end_dialled_the_link_in_use():
    """Or an exit that only dials out would be lost for all who reach it over its neighbours."""
    world = _mesh(1)
    exit = world.add(60, {1: ("sim://10.0.0.1:1",)}, record=Record(60, 1000, 0, Role.EXIT))
    world.run(5)
    assert [edge.neighbour for edge in exit.node.directory.own.links] == [1]
    world.connect(world.members[1], 60, "sim://60", "other")
    world.run(5)
    assert not exit.node.peers[1].contact.direct().dialled
    exit.node.members.advertise(world.now)
    assert [edge.neighbour for edge in exit.node.directory.own.links] == [1]


def test_an_idle_link_that_the_other_end_keeps_is_not_closed():
    """Else it is dialled anew from there at once, and all the mesh is told twice."""
    world = World()
    one = world.add(1, record=_record(1))
    world.refusing.add(2)  # until its own dial has come through, one cannot dial it
    two = world.add(2, record=_record(2))
    two.node.directory.load(one.node.directory.dump(world.now), world.now)
    two.node.members.learn(two.node.directory.own)
    world.connect(two, 1, "sim://10.0.0.1:1")
    world.run(5)
    assert one.node.peers[2].contact.is_kept and not two.node.peers[1].contact.is_kept
    links = set(world.links)
    world.run(3 * IDLE_S)
    assert set(world.links) == links and one.node.directory.own.links
