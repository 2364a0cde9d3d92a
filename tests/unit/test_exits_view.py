"""The mesh as the chooser sees it: from a real node's list, links and failures."""

from __future__ import annotations

from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.runtime.exits_view import ExitsView
from world import World, pair


def record(node: int, roles: Role, **more) -> Record:
    return Record(node, 2000 + node, roles=roles, **more)


def test_a_server_is_an_exit_unless_its_record_says_otherwise():
    world, client, _ = pair()
    world.run(1.0)
    view = ExitsView(client.node, (1,))
    (state,) = view.exits()
    assert state.node == 1 and state.is_linked and state.flight_ms is not None
    assert view.heard_at(1) > 0
    client.node.directory.merge(record(1, Role.RELAY), 2000.0)
    assert view.exits() == []
    assert not view.is_linked(1) and view.is_lost(1)


def test_others_are_exits_if_they_say_so_and_can_be_reached():
    world, client, _ = pair()
    world.run(1.0)
    view = ExitsView(client.node, (1,))
    directory = client.node.directory
    here = (Known(EndpointKind.FIXED, "sim://3"),)
    directory.merge(record(3, Role.EXIT, name="tyo", country="JP", endpoints=here), 2000.0)
    directory.merge(record(4, Role.RELAY, endpoints=here), 2000.0)
    assert 4 not in {state.node for state in view.exits()}
    known = {state.node: state.candidate for state in view.exits()}
    if 3 in known:
        assert (known[3].name, known[3].country) == ("tyo", "JP")
    assert not view.is_linked(3)


def test_the_owners_servers_come_first_in_their_order():
    world = World()
    client = world.add(7, {5: ("sim://5",), 2: ("sim://2",)})
    assert [state.node for state in ExitsView(client.node, (5, 2)).exits()] == [5, 2]


def test_a_server_that_cannot_be_dialled_again_and_again_is_lost():
    world = World()
    client = world.add(7, {1: ("sim://1",)})
    view = ExitsView(client.node, (1,))
    assert not view.is_lost(1)
    world.run(30)
    assert view.is_lost(1) and not view.is_linked(1)
    world.add(1)
    world.run(300)
    assert view.is_linked(1) and not view.is_lost(1)
