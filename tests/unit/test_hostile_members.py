"""Members that hold the key and mean harm: what they say never raises, and starts nothing without an end."""

from __future__ import annotations

import random
import struct

import pytest

from uservpn.errors import PeerFault
from uservpn.mesh.claims import Claim
from uservpn.mesh.directory import packed
from uservpn.mesh.gossip import RECORDS
from uservpn.mesh.records import EndpointKind, Known, Record, Role, decode, known_of
from uservpn.node.relay import Reason
from uservpn.wire.constants import BOOT_MAX, STAMP_MASK, Kind
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session
from world import KEY, World, pair

TOP = (1 << 64) - 1


def _say(world, member, kind, payload):
    """`member` says this to its only peer."""
    (peer,) = member.node.peers.values()
    peer.outbox.append((peer.contact.links[0].link, kind, payload, 0))
    member.node.table.touch(peer)
    world.settle(member)
    world.run(2)


def _records(*records):
    return bytes((RECORDS,)) + packed([(record.encode(), 0) for record in records], 1100)[0]


VOID = ("0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.169.254")
"""Addresses where no other node can be."""


def _dialled_for(client_servers, **more):
    """What a client would dial for node 2, whose record names bad addresses beside a good one."""
    hosts = (*VOID, "127.0.0.1", "203.0.113.2")
    endpoints = tuple(Known(EndpointKind.FIXED, f"sim://{host}:9") for host in hosts)
    world = World()
    server = world.add(1)
    client = world.add(7, client_servers, **more)
    world.run(3)
    _say(
        world,
        server,
        Kind.GOSSIP,
        _records(Record(2, 1000, roles=Role.SERVER, endpoints=endpoints)),
    )
    return client, client.node.peers[2].contact.endpoints


def test_nobody_makes_a_node_dial_itself_or_an_address_of_nobody():
    client, dialled = _dialled_for({1: ("sim://10.0.0.1:1",)})
    assert dialled == ("sim://203.0.113.2:9",)
    punched = client.node.reach.order(client.node.peers[2], [Known(3, "udp://127.0.0.1:53")])
    assert not punched, "nor by a proposal to meet there"


def test_a_proxy_on_this_machine_is_no_node_on_it():
    """Whoever reaches the mesh through one dials no program of its own machine either."""
    proxy = "socks5://127.0.0.1:9050"
    client, dialled = _dialled_for({1: ("sim://10.0.0.1:1",), 3: (f"{proxy}/203.0.113.3:1",)})
    assert dialled == ("sim://203.0.113.2:9",)
    remote = f"{proxy}/203.0.113.2:9"
    client.node.link_up(99, "socks5", 1400, remote, 3.0, 2, "sim://203.0.113.2:9")
    client.node.moved([], [], 3.0)
    assert client.node.peers[2].contact.endpoints == ("sim://203.0.113.2:9",)
    _, dialled = _dialled_for({1: (f"{proxy}/127.0.0.1:1",)})
    assert dialled == ("sim://127.0.0.1:9", "sim://203.0.113.2:9"), "but behind it there is one"


def test_a_mesh_on_one_machine_uses_its_loopback():
    """Told by what the node's owner configured, by where it listens, or by a link to that peer."""
    good = ("sim://127.0.0.1:9", "sim://203.0.113.2:9")
    assert _dialled_for({1: ("sim://127.0.0.1:1",)})[1] == good
    own = Record(7, 1000, endpoints=(Known(EndpointKind.FIXED, "sim://127.0.0.1:7"),))
    assert _dialled_for({1: ("sim://10.0.0.1:1",)}, record=own)[1] == good
    client, _ = _dialled_for({1: ("sim://10.0.0.1:1",)})
    client.node.moved([], [], 3.0, is_on_loopback=True)
    assert client.node.peers[2].contact.endpoints == good
    client.node.moved([], [], 3.0)
    assert client.node.peers[2].contact.endpoints == good[1:]
    client.node.link_up(99, "sim", 1400, "sim://127.0.0.1:4000", 3.0, 2, "sim://203.0.113.2:9")
    client.node.moved([], [], 3.0)
    assert client.node.peers[2].contact.endpoints == good


ELSEWHERE = "wss://203.0.113.7:443/some/way"


def test_a_server_behind_a_web_server_dials_nobody_on_its_machine():
    """It listens on loopback for the web server alone, and others see it elsewhere."""
    own = Record(7, 1000, endpoints=(Known(EndpointKind.FIXED, ELSEWHERE),))
    client, dialled = _dialled_for({1: ("sim://10.0.0.1:1",)}, record=own)
    assert dialled == ("sim://203.0.113.2:9",)
    client.node.moved([], [], 3.0, is_on_loopback=True)
    assert client.node.peers[2].contact.endpoints == ("sim://203.0.113.2:9",)


@pytest.mark.parametrize("own", [(), (ELSEWHERE,)])
def test_a_link_that_a_web_server_handed_on_is_no_peer_on_this_machine(own):
    world = World()
    fixed = tuple(Known(EndpointKind.FIXED, endpoint) for endpoint in own)
    server = world.add(1, record=Record(1, 1000, endpoints=fixed))
    texts = ("sim://127.0.0.1:9", "sim://203.0.113.2:9")
    places = tuple(Known(EndpointKind.FIXED, text) for text in texts)
    record = Record(2, 1000, roles=Role.SERVER, endpoints=places)
    world.add(2, {1: ("sim://10.0.0.1:1",)}, record=record).address = "sim://127.0.0.1:4000"
    world.run(3)
    (state,) = server.node.peers[2].contact.links
    assert not state.dialled and server.node.links[state.link].remote == "sim://127.0.0.1:4000"
    assert server.node.peers[2].contact.endpoints == (texts[1:] if own else texts)


def test_what_the_owner_configures_is_dialled_wherever_it_is():
    client, _ = _dialled_for({1: ("sim://10.0.0.1:1",), 2: ("sim://169.254.7.7:1",)})
    assert client.node.peers[2].contact.endpoints == ("sim://169.254.7.7:1", "sim://203.0.113.2:9")


@pytest.mark.parametrize("boot", [TOP, BOOT_MAX, BOOT_MAX - (1 << 32)])
def test_a_boot_that_nothing_is_above_is_not_outdone(boot):
    world, client, server = pair()
    world.run(3)
    _say(world, server, Kind.OUTDATED, boot.to_bytes(8, "big"))
    assert client.node.peers[1].session.my_boot == 1000
    assert client.node.counters.peer_faults == 1
    stream = client.node.open(1, "site.test", 80, None, world.now)
    world.settle(client)
    world.run(1)
    assert stream.id in client.opened


def test_only_a_relay_on_the_way_is_believed_that_our_boot_is_old():
    world, client, server = pair()
    world.run(3)
    told = bytes((1, 1, Reason.OLD_BOOT)) + bytes(4) + (5000).to_bytes(8, "big")
    _say(world, server, Kind.UNREACHABLE, told)
    assert client.node.peers[1].session.my_boot == 1000


@pytest.mark.parametrize("boot", [BOOT_MAX + 1, TOP])
def test_a_record_with_an_impossible_boot_is_malformed(boot):
    world, client, server = pair()
    world.run(3)
    _say(world, server, Kind.GOSSIP, _records(Record(7, boot)))
    world.run(10)
    assert client.node.counters.peer_faults == 1 and client.node.directory.own.boot == 1000


@pytest.mark.parametrize("stamp", [(BOOT_MAX, 3), (BOOT_MAX - 1, 3), (5000, 0), (1000, 99)])
def test_a_forged_record_of_ours_is_outdone_and_not_sent_to_and_fro(stamp):
    """That of the highest boot cannot be outdone: it stays, and is left alone."""
    world, client, server = pair()
    world.run(3)
    record = Record(7, *stamp, name="forged")
    server.node.directory.merge(record, world.now)
    before = len(world.tap)
    _say(world, server, Kind.GOSSIP, _records(record))
    world.run(20)
    assert len(world.tap) - before < 40
    own = client.node.directory.own
    if stamp[0] < BOOT_MAX:
        assert own.stamp > stamp and server.node.directory.get(7) == own
    else:
        assert own.boot == 1000
    world.run(60)
    assert len(world.tap) - before < 60, "nor does it go on"


def test_endpoints_in_the_zone_of_some_machine_are_skipped():
    """Whatever stands in a zone would also stand in logs, line breaks too."""
    zone = Known(EndpointKind.LOCAL, "udp://[fe80::1%\nnode 1 is dead]:7000")
    good = Known(EndpointKind.FIXED, "tcp://[2001:db8::1]:7000/100%25")
    assert decode(Record(9, 1, endpoints=(zone, good)).encode()).endpoints == (good,)
    assert known_of(77, good.endpoint) is None
    with pytest.raises(ValueError, match="endpoint"):
        known_of(1, "nowhere")


@pytest.mark.parametrize("text", ["tcp://[::ffff:ffff:ffff]:1", "tcp://[0:0::1]:00080"])
def test_a_record_does_not_grow_when_it_is_passed_on(text):
    data = Record(9, 1, endpoints=(Known(EndpointKind.FIXED, text),) * 12).encode()
    assert len(decode(data).encode()) <= len(data)


def test_new_servers_do_not_end_streams_to_who_is_only_known_by_other_endpoints():
    """An exit behind a NAT was never configured, so it is not "no longer configured"."""
    world = World()
    seen = Known(EndpointKind.OBSERVED, "sim://198.51.100.1:7")
    server = world.add(1)
    world.add(2, record=Record(2, 1000, endpoints=(seen,)))
    client = world.add(7, {1: ("sim://10.0.0.1:1",)})
    client.node.directory.merge(Record(2, 1000, endpoints=(seen,)), world.now)
    client.node.start(world.now)
    world.run(3)
    stream = client.node.open(2, "site.test", 80, None, world.now)
    world.settle(client)
    world.run(3)
    assert stream.id in client.opened and not client.resets
    client.node.set_servers({1: ("sim://10.0.0.1:1", "sim://10.0.0.1:2")}, world.now)
    world.settle(client)
    world.run(3)
    assert not client.resets and client.node.is_linked(2) and server.id in client.node.peers


def test_an_address_in_a_claim_writes_no_line_of_its_own_into_the_log():
    claim = Claim(7, b"i" * 8, 1000, 1, 5.0, "x\nnode 1 is dead")
    with pytest.raises(PeerFault, match="printable"):
        Claim.decode(claim.encode())


# --- anything from anybody -----------------------------------------------------------------------

NODES = (0, 1, 2, 7, 8, 9, 255)
BOOTS = (0, 999, 1000, 1001, 5000, BOOT_MAX, TOP)
PLACES = ("udp://10.0.0.9:1", "tcp://[fe80::1%e]:4", "sim://10.0.0.1:1", "udp://224.0.0.1:9")


def _message(rng, node):
    """Kind and payload: well formed, or nearly, with numbers at their limits; now and then nonsense."""
    if rng.random() < 0.2:
        return rng.randrange(32), rng.randbytes(rng.randrange(4))
    known = tuple(Known(rng.choice(list(EndpointKind)), text) for text in rng.sample(PLACES, 2))
    record = Record(
        rng.choice(NODES), rng.choice(BOOTS), rng.choice((0, 2**32 - 1)), endpoints=known
    )
    claim = Claim(
        rng.choice(NODES),
        rng.randbytes(8),
        rng.choice(BOOTS),
        2**32 - 1,
        1e8,
        "ä" * rng.randrange(60),
    ).encode()
    place = rng.choice(PLACES).encode()
    tokens = [token for peer in node.peers.values() for token in peer.probes] or [bytes(8)]
    stamp = struct.pack(">BQI", rng.choice(NODES), rng.choice(BOOTS), 1)
    way = struct.pack(">BBBIQ", *rng.choices(NODES, k=2), rng.randrange(5), 9, rng.choice(BOOTS))
    reach = bytes((rng.randrange(7), rng.randrange(3), rng.randrange(5), len(place))) + place
    answer = rng.choice(tokens) + struct.pack(">Q", rng.choice((0, TOP))) + rng.randbytes(14)
    return rng.choice(
        (
            (Kind.GOSSIP, _records(record)),
            (Kind.GOSSIP, bytes((2, 0, 255)) + stamp),
            (Kind.ECHO, rng.randbytes(16) + claim),
            (Kind.CLAIM, claim),
            (Kind.DUPLICATE, claim),
            (Kind.OUTDATED, rng.choice(BOOTS).to_bytes(8, "big")),
            (Kind.UNREACHABLE, way),
            (Kind.REACH, reach),
            (Kind.ANSWER, answer),
            (Kind.CHALLENGE, rng.randbytes(16)),
            (rng.randrange(32), claim),
        )
    )


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_a_member_may_send_raises_and_tables_stay_small(seed):
    """Of any kind, in anybody's name, over any link and any relays, to a mesh with a stream over relays."""
    rng, world, ring = random.Random(seed), World(seed), KeyRing((KEY,))
    codec = HeaderCodec(ring)
    for node, home in ((1, 0), (2, 1), (7, 1), (8, 2)):
        fixed = (Known(EndpointKind.FIXED, f"sim://10.0.0.{node}:1"),) if node < 3 else ()
        roles = Role.SERVER | Role.EXIT | Role.RELAY if node < 3 else Role.EXIT
        record = Record(node, 1000, 0, roles, endpoints=fixed)
        world.add(node, {home: (f"sim://10.0.0.{home}:1",)} if home else {}, record=record)
        world.run(1)
    world.members[7].node.open(8, "site.test", 80, None, world.now)
    world.settle(world.members[7])
    world.run(2)
    for index in range(200):
        member = rng.choice(list(world.members.values()))
        links = [link for link in member.node.links if link > 0] or [0]
        link = rng.choice(links)
        entry = member.node.links.get(link)
        likely = entry.peer.id if entry is not None and entry.peer is not None else 9
        origin = rng.choice((likely, likely, likely, 1, 2, 7, 8, 9, member.id))
        peer = member.node.peers.get(origin)
        boot = peer.session.peer_boot if peer and rng.random() < 0.8 else rng.choice(BOOTS)
        to = rng.choice((member.id, member.id, member.id, 1, 2, 7, 8))
        session = Session(ring, codec, origin, boot, to, False)
        session._number = 10**6 + index
        wall_ms = int((world.now + 1e9) * 1000)
        stamp = rng.choice((bytes(3), (wall_ms & STAMP_MASK).to_bytes(3, "big")))
        bound = peer.session.my_boot if peer and rng.random() < 0.9 else 0
        hops = rng.choice((0, 0, 0, 0, 0x0100, 0x0201, 0x0102, 0x0900, 0xFFFF))
        sent_ms = rng.choice((0, wall_ms, wall_ms, TOP))
        kind, payload = _message(rng, member.node)
        head, body = session.seal(kind, payload, stamp, sent_ms, bound, hops)
        world.inject(member, link, head, body)
        world.run(rng.choice((0.0, 0.0, 0.01, 0.3)))
    world.run(10)
    for member in world.members.values():
        node = member.node
        assert len(node.relaying._ways) <= 8 * len(node.peers) and len(node.peers) < 255
        assert sum(len(peer.outbox) for peer in node.peers.values()) == 0
