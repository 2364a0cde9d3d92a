"""A newcomer asks which numbers are taken, and is nobody meanwhile (R03)."""

from __future__ import annotations

import random

from uservpn.mesh.records import Record
from uservpn.node.door import pack_numbers, unpack_numbers
from uservpn.wire.constants import Kind
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session
from world import KEY, World


def _server():
    world = World()
    server = world.add(1, record=Record(1, 1000, name="fra"))
    world.add(7, {1: ("sim://10.0.0.1:1",)})
    world.run(3)
    server.node.directory.merge(Record(200, 5), world.now)
    return world, server


def _knock(world, server, skew_s=0.0, key=KEY, link=901):
    """Asks over a link of its own; the numbers that come back, or None."""
    server.node.link_up(link, "sim", 70000, "sim://newcomer", world.now)
    world.links[link] = (server, server)
    ring = KeyRing((key,))
    codec = HeaderCodec(ring)
    session = Session(ring, codec, 1, 4711, 1, False)
    head, body = session.seal(Kind.JOIN, b"", b"\0\0\0", int((world.now + 1e9 + skew_s) * 1000))
    world.tap.clear()
    world.inject(server, link, head, body)
    world.settle(server)
    answers = [(head, body) for at, head, body in world.tap if at == link]
    for head, body in answers:
        header = codec.open(head)
        assert header is not None and header.kind == Kind.JOINED
        payload = session.open_bound(header, body)
        assert payload is not None
        return unpack_numbers(payload)
    return None


def test_the_numbers_of_all_that_are_known_are_told_to_who_has_the_key():
    world, server = _server()
    before = set(server.node.peers)
    assert _knock(world, server) == {1, 7, 200}
    assert set(server.node.peers) == before, "the newcomer is nobody's peer"
    world.run(30)
    assert 901 not in server.node.links, "its link is closed like any that is nobody's"


def test_a_clock_that_is_an_hour_wrong_is_no_matter_a_recording_is():
    for skew_s, is_answered in ((3600.0, True), (-3600.0, True), (-7200.0, False), (7200.0, False)):
        world, server = _server()
        assert (_knock(world, server, skew_s) is not None) == is_answered


def test_without_the_key_there_is_no_answer_and_with_it_few():
    world, server = _server()
    assert _knock(world, server, key=bytes(32)) is None
    assert _knock(world, server, link=903) is not None
    assert _knock(world, server, link=905) is None, "a flood is not answered"
    world.run(1)
    assert _knock(world, server, link=907) is not None


def test_every_set_of_numbers_packs_to_itself():
    rng = random.Random(1)
    for count in (0, 1, 100, 254):
        numbers = set(rng.sample(range(1, 255), count))
        assert unpack_numbers(pack_numbers(numbers) + bytes(5)) == numbers
    assert unpack_numbers(bytes(31)) is None
