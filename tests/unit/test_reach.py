"""How nodes that move, or hide behind NATs, are reached: shipped nodes on the simulated network."""

from __future__ import annotations

import contextlib
import random

import pytest

from uservpn.errors import PeerFault
from uservpn.kit.endpoint import Address, Endpoint
from uservpn.mesh.observed import Observed
from uservpn.mesh.records import EndpointKind, Role
from uservpn.sim.geography import SITES
from uservpn.sim.member import PORT, Member, Seat
from uservpn.sim.nat import Nat, NatKind
from uservpn.sim.network import Host, Weather
from uservpn.sim.world import World

KEY = bytes(range(32))
BOTH = ("tcp", "udp")


class Net:
    """Servers 1..n with fixed endpoints, and whoever is added."""

    def __init__(self, servers: int = 3, flight_s: float = 0.02, seed: int = 1, **weather) -> None:
        self.world = World(seed, Weather(flight_s=flight_s, **weather), has_story=False)
        self.home: dict = {}
        for node in range(1, servers + 1):
            roles = Role.SERVER | Role.EXIT | Role.RELAY
            self.add(node, roles, listens=BOTH)
            self.home = {1: self.world.seats[1].endpoints()}

    def add(self, node: int, roles: Role, nat: Nat | None = None, **more) -> Member:
        ip = f"10.9.{node}.2" if nat else f"203.0.113.{node}"
        host = self.world.network.add(Host(f"h{node}", ip, SITES[0], nat))
        more.setdefault("servers", self.home)
        seat = Seat(node, host, (KEY,), roles, **more)
        member = self.world.start(seat)
        interfaces = [f"{ip}/24"]
        member.node.moved([f"udp://{ip}:{PORT}"] if roles & Role.EXIT else [], interfaces, self.now)
        member.settle()
        return member

    def nat(self, kind: NatKind, number: int = 100, timeout_s: float = 60.0) -> Nat:
        return Nat(f"198.51.100.{number}", kind, random.Random(number), timeout_s)

    @property
    def now(self) -> float:
        return self.world.agenda.now

    def run(self, seconds: float) -> None:
        self.world.run(seconds)

    def direct(self, a: int, b: int) -> str:
        """The protocol of the preferred direct link between two nodes."""
        peer = self.world.members[a].node.peers.get(b)
        state = peer.contact.direct() if peer else None
        return state.protocol if state else ""

    def flow(self, client: int, exit: int, up: int = 100_000, down: int = 100_000):
        return self.world.open_flow(client, exit, up, down, 0.01, False)


def _observed(member: Member) -> list[str]:
    own = member.node.directory.own
    return [k.endpoint for k in own.endpoints if k.kind == EndpointKind.OBSERVED]


# --- what others see -----------------------------------------------------------------------------


def test_an_exit_behind_a_nat_publishes_what_others_see():
    net = Net()
    exit = net.add(60, Role.EXIT | Role.RELAY, net.nat(NatKind.PORT_RESTRICTED))
    net.run(10)
    (seen,) = _observed(exit)
    assert seen.startswith("udp://198.51.100.100:")
    for node in (1, 2, 3):
        record = net.world.members[node].node.directory.get(60)
        assert seen in [k.endpoint for k in record.endpoints]
    assert exit.node.reach.is_natted


def test_a_symmetric_nat_and_a_mere_client_publish_nothing():
    net = Net()
    exit = net.add(60, Role.EXIT, net.nat(NatKind.SYMMETRIC))
    client = net.add(50, Role.ENTRY | Role.RELAY, net.nat(NatKind.FULL_CONE, 101))
    server = net.world.members[2]
    net.run(20)
    assert _observed(exit) == _observed(client) == _observed(server) == []
    assert exit.node.reach.is_natted and not server.node.reach.is_natted


# --- holes ---------------------------------------------------------------------------------------

CONES = (NatKind.FULL_CONE, NatKind.RESTRICTED, NatKind.PORT_RESTRICTED)


@pytest.mark.parametrize("here", [None, *NatKind])
@pytest.mark.parametrize("there", NatKind)
def test_who_is_behind_a_nat_is_reached(here, there):
    """Directly wherever the two kinds allow that (RFC 5128), else over a relay, and at once."""
    net = Net()
    net.add(60, Role.EXIT | Role.RELAY, net.nat(there))
    net.add(50, Role.ENTRY, net.nat(here, 101) if here else None)
    net.run(10)
    flow = net.flow(50, 60)
    net.run(0.4)
    assert flow.far is not None, "it does not wait for a hole"
    net.run(5)
    assert flow.is_done, flow
    again = net.flow(50, 60)
    net.run(3)
    assert again.is_done
    strict = (NatKind.PORT_RESTRICTED, NatKind.SYMMETRIC)
    is_hopeless = NatKind.SYMMETRIC in (here, there) and here in strict and there in strict
    assert net.direct(50, 60) == ("" if is_hopeless else "udp")


def test_two_behind_one_router_use_their_own_network():
    """And are told apart by number: both have one public address."""
    net = Net()
    nat = net.nat(NatKind.PORT_RESTRICTED)
    net.add(60, Role.EXIT, nat)
    client = net.add(61, Role.ENTRY | Role.EXIT, nat)
    net.run(10)
    flow = net.flow(61, 60)
    net.run(3)
    assert flow.is_done
    state = client.node.peers[60].contact.direct()
    assert state is not None and state.endpoint == f"udp://10.9.60.2:{PORT}"


def test_where_no_hole_opens_it_is_tried_ever_less_often():
    net = Net()
    net.add(60, Role.EXIT, net.nat(NatKind.SYMMETRIC))
    client = net.add(50, Role.ENTRY, net.nat(NatKind.SYMMETRIC, 101))
    net.run(10)
    net.world.open_flow(50, 60, 10, 10, dial_s=1e6, refused=False)  # a program that waits
    times = []
    peer = client.node.peers[60]
    for _ in range(600):
        before = peer.meet_failures
        net.run(1)
        if peer.meet_failures != before:
            times.append(net.now)
    assert 2 <= len(times) <= 6, times


# --- moving --------------------------------------------------------------------------------------


def test_a_peer_with_a_new_address_is_followed_after_a_path_check():
    net = Net(1, rate=2e6)
    client = net.add(50, Role.ENTRY)
    net.run(5)
    flow = net.flow(50, 1, up=1000, down=5_000_000)
    net.run(1)
    client.node.table.tell(1, "moves")
    net.world.network.move(client.seat.host, "203.0.113.77", SITES[0], None)
    moved_at, got = net.now, flow.near.received
    client.node.moved([], ["203.0.113.77/24"], net.now)
    client.wake()
    while flow.near.received == got:
        net.run(0.05)
    assert net.now - moved_at <= 0.5
    net.run(15)
    assert flow.is_done


class Thief:
    """Copies datagrams of one host to another and sends them on from an address of its own."""

    HERE = Address("192.0.2.66", 666)

    def __init__(self, net: Net, victim: Member, target: Member) -> None:
        self.net = net
        self.victim, self.target = victim, target
        self.taken: list[tuple[bytes, bytes]] = []
        self.races = 0
        """So many of the next datagrams arrive from here first."""
        self.lured: list[bytes] = []
        """What was sent here."""
        self._send = net.world.network.send
        net.world.network.send = self

    def __call__(self, host, port, to, head, body, wait=0.0):
        if to == self.HERE:
            self.lured.append(body)
            return
        if host is self.victim.seat.host and to.host == self.target.seat.host.ip:
            self.taken.append((head, body))
            if self.races > 0:
                self.races -= 1
                self.net.world.agenda.after(wait, self.inject, head, body)
        self._send(host, port, to, head, body, wait)

    def inject(self, head: bytes, body: bytes) -> None:
        self.target.datagram(PORT, self.HERE, head, body)


def _bulk_over_udp(net: Net) -> tuple[Member, Member, object]:
    """A client that downloads for long, over its datagram link alone."""
    net.world.network.blocked_protocols.add(("h50", "tcp"))
    client = net.add(50, Role.ENTRY)
    net.run(5)
    flow = net.flow(50, 1, up=1000, down=2_500_000)
    net.run(0.3)
    return client, net.world.members[1], flow


def _places(server: Member) -> set[str]:
    contact = server.node.peers[50].contact
    return {state.endpoint for state in (*contact.links, *contact.unproved)}


def test_recorded_datagrams_from_another_address_have_no_effect_at_all():
    net = Net(1, rate=5e5)
    client, server, flow = _bulk_over_udp(net)
    thief = Thief(net, client, server)
    net.run(2)
    before = _places(server)
    net.run(1)
    for head, body in thief.taken[:200]:
        thief.inject(head, body)
    assert _places(server) == before and not thief.lured
    net.run(15)
    assert flow.is_done and not thief.lured


@pytest.mark.parametrize("races", [1, 1_000_000])
def test_a_forger_who_is_faster_moves_no_traffic(races):
    """One fresh message, or every single one, arrives from his address first: he gets probes, no more."""
    net = Net(1, rate=5e5)
    client, server, flow = _bulk_over_udp(net)
    thief = Thief(net, client, server)
    thief.races = races
    net.run(3)
    assert thief.lured, "his address was asked"
    assert max(map(len, thief.lured)) < 1300 and len(thief.lured) < 60
    links = server.node.peers[50].contact.links
    assert [state.endpoint for state in links] == [f"udp://203.0.113.50:{PORT}"]
    net.run(15)
    assert flow.is_done
    assert sum(map(len, thief.lured)) < 20_000


# --- messages that only pass a node ---------------------------------------------------------------


def _over_relays(seed: int) -> tuple[Net, Nat]:
    """A client and an exit that have datagram links to servers alone, each behind a symmetric router."""
    net = Net(3, seed=seed)
    router = net.nat(NatKind.SYMMETRIC, 101)
    for node in (50, 60):
        net.world.network.blocked_protocols.add((f"h{node}", "tcp"))
    net.add(60, Role.EXIT | Role.RELAY, net.nat(NatKind.SYMMETRIC, 102))
    net.add(50, Role.ENTRY, router)
    net.run(100)
    return net, router


@pytest.mark.parametrize("seed", range(3))
def test_a_way_over_a_relay_that_knows_us_by_another_port_is_opened_at_once(seed):
    """The router has forgotten the client while it was idle, and all it has to say is for the exit."""
    net, router = _over_relays(seed)
    net.run(250)
    router.forget()
    flow = net.flow(50, 60, 1000, 1000)
    net.run(0.8)
    assert flow.is_done and net.direct(50, 60) == ""


@pytest.mark.parametrize("seed", range(3))
def test_a_router_that_forgets_costs_a_relayed_way_no_connection(seed):
    """No relay knows whose messages arrive from the new port: they are for somebody else."""
    net, router = _over_relays(seed)
    first = net.flow(50, 60)
    net.run(3)
    assert first.is_done
    router.forget()
    second = net.flow(50, 60)
    net.run(4)
    assert second.is_done and net.direct(50, 60) == ""


# --- bindings ------------------------------------------------------------------------------------


def _reachable(net: Net, exit: Member) -> bool:
    """Would what a home sends now get through to the exit?"""
    nat = exit.seat.host.nat
    for node in (1, 2, 3):
        remote = Address(net.world.members[node].seat.host.ip, PORT)
        contact = net.world.members[node].node.peers[60].contact
        for state in contact.links:
            if state.protocol == "udp":
                port = int(state.endpoint.rpartition(":")[2])
                if nat.inbound(port, remote, net.now) is not None:
                    return True
    return False


@pytest.mark.parametrize(
    ("timeout_s", "least", "most"), [(20, 10, 20), (60, 25, 60), (300, 200, 300)]
)
def test_how_long_a_nat_remembers_is_found_and_used(timeout_s, least, most):
    net = Net()
    exit = net.add(
        60, Role.EXIT | Role.RELAY, net.nat(NatKind.PORT_RESTRICTED, timeout_s=timeout_s)
    )
    net.run(3 * 3600)
    assert least <= exit.node.reach.bindings.binding.interval_s <= most
    missed = 0
    for _ in range(1200):
        net.run(1)
        missed += not _reachable(net, exit)
    assert missed <= 20, missed


def test_without_a_connection_beside_nobody_is_silent_to_find_something_out():
    """Its homes would not reach it meanwhile, and nobody over them."""
    net = Net(2)
    exit = net.add(60, Role.EXIT, net.nat(NatKind.PORT_RESTRICTED, timeout_s=30))
    net.world.network.blocked_protocols.add(("h60", "tcp"))
    for end in list(exit.seat.host.ends):
        end.abort()
    net.run(600)
    missed = 0
    for _ in range(600):
        net.run(1)
        missed += not _reachable(net, exit)
    assert missed == 0


@pytest.mark.parametrize("after_s", [100, 4000], ids=["while trying", "settled"])
def test_when_the_home_with_the_binding_dies_another_one_gets_it(after_s):
    net = Net()
    exit = net.add(60, Role.EXIT | Role.RELAY, net.nat(NatKind.PORT_RESTRICTED))
    net.run(after_s)
    bindings = exit.node.reach.bindings
    while not bindings.is_kept:
        net.run(1)
    (home,) = [peer.id for peer, state in bindings.links() if state.keep_s]
    net.world.kill(home)
    net.run(60)
    assert bindings.is_kept or bindings.binding.trial
    assert home not in {peer.id for peer, _ in bindings.links()}
    net.world.network.blocked_protocols.add(("h60", "udp"))
    net.run(2000)
    assert not bindings.is_kept and exit.node.reach.snapshot()["binding_s"] is None
    sent = exit.sent_count
    net.run(1800)
    assert exit.sent_count - sent < 200, (
        "nor does it try all the time (the dead home is dialled, too)"
    )


def test_who_needs_no_binding_sends_only_the_usual_keep_alives():
    net = Net()
    client = net.add(50, Role.ENTRY, net.nat(NatKind.PORT_RESTRICTED))
    net.run(1800)
    sent = client.sent_count
    net.run(3600)
    links = len(client.links)
    # seven keep-alives on each, and while none is heard for 200 s one is asked: how they fall is chance
    assert client.sent_count - sent <= 10 * links  # a binding kept alive costs 144


def test_after_a_long_silence_a_hole_is_still_made():
    """The client's mapping is long gone, its datagram links closed: it asks where it is seen first."""
    net = Net()
    net.add(60, Role.EXIT | Role.RELAY, net.nat(NatKind.PORT_RESTRICTED))
    client = net.add(50, Role.ENTRY, net.nat(NatKind.PORT_RESTRICTED, 101))
    net.run(1500)
    assert not any(s.is_lossy for p in client.node.peers.values() for s in p.contact.links)
    flow = net.flow(50, 60)
    net.run(3)
    assert flow.is_done
    again = net.flow(50, 60)
    net.run(2)
    assert again.is_done and net.direct(50, 60) == "udp"


def test_a_machine_that_slept_or_moved_behind_another_nat_is_found_again():
    """The exit is carried home: another address inside, another one outside."""
    net = Net()
    exit = net.add(60, Role.EXIT | Role.RELAY, net.nat(NatKind.PORT_RESTRICTED))
    net.add(50, Role.ENTRY)
    net.run(20)
    net.world.network.move(exit.seat.host, "10.77.0.2", SITES[1], net.nat(NatKind.FULL_CONE, 177))
    exit.node.moved([f"udp://10.77.0.2:{PORT}"], ["10.77.0.2/24"], net.now)
    exit.wake()
    net.run(5)
    (seen,) = _observed(exit)
    assert seen.startswith("udp://198.51.100.177:")
    flow = net.flow(50, 60)
    net.run(3)
    assert flow.is_done and net.direct(50, 60) == "udp"


@pytest.mark.parametrize("seed", range(5))
def test_addresses_that_make_no_sense_are_a_fault_and_nothing_grows(seed):
    rng = random.Random(seed)
    net = Net(2)
    one = net.world.members[1].node
    net.run(2)
    peer = one.peers[2]
    state = peer.contact.direct()
    entry = one.links[state.link]
    good = b"".join(bytes((rng.choice((1, 2, 3)), 20)) + b"udp://203.0.113.9:70" for _ in range(9))
    for _ in range(400):
        body = bytes((rng.randrange(8), rng.randrange(12))) + rng.choice((good, rng.randbytes(60)))
        body = body[: rng.randrange(1, len(body))]
        with contextlib.suppress(PeerFault):
            one.reach.hear(peer, state.link, entry, body, net.now)
    assert len(one.reach.bindings._quiets) <= 1 and len(one.reach._proposals) <= 1
    assert len(one.reach.observed.newest()) <= 2
    plans = peer.contact.take_plans()
    assert len(plans) <= 12


def test_a_symmetric_nat_is_known_by_two_ports_at_once_and_not_forgotten_by_one_report():
    observed = Observed()
    first, second = (Endpoint("udp", "198.51.100.1", port) for port in (1001, 1002))
    observed.learn(1, first, 0.0)
    assert observed.usable() == [first]
    observed.learn(2, second, 5.0)
    assert observed.usable() == [] and observed.newest() == [second]
    observed.learn(2, first, 100.0)
    assert observed.usable() == []
    observed.learn(2, second, 4000.0)
    assert observed.usable() == [second], "a mapping made anew, long after"
    observed.forget()
    assert not observed.hosts()
