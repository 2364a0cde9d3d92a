"""Records, the node list, and gossip: in bytes, then between many nodes in simulated time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uservpn.errors import PeerFault
from uservpn.mesh.directory import DROP_S, STALE_S, Directory, Merge, packed, unpacked
from uservpn.mesh.gossip import MESSAGE_MAX, Gossip
from uservpn.mesh.records import (
    RECORD_SIZE_MAX,
    Edge,
    EndpointKind,
    Known,
    Record,
    Role,
    coarse,
    decode,
)

FULL = Record(
    3, 77, 5, Role.SERVER | Role.EXIT, "Frankfurt", "DE", "0.1.0",
    (Known(EndpointKind.FIXED, "tcp://203.0.113.5:7000"),
     Known(EndpointKind.LOCAL, "udp://[2001:db8::1]:7000")),
    (Edge(1, 0.0512), Edge(9, 6.5535)),
    b"later",
)  # fmt: skip


def test_a_record_survives_its_bytes():
    assert decode(FULL.encode()) == FULL
    longest = Record(
        254, 2**63 - 1, 2**32 - 1, Role(15), "n" * 64, "DE", "s" * 32,
        (Known(EndpointKind.FIXED, "quic+x://[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),) * 12,
        tuple(Edge(node, 1.0) for node in range(1, 49)),
    )  # fmt: skip
    assert decode(longest.encode()) == longest and len(longest.encode()) <= RECORD_SIZE_MAX
    cut = decode(Record(1, 1, name="ä" * 60, country="DEU").encode())
    assert cut.name == "ä" * 32 and cut.country == "DE"


def test_a_round_trip_in_a_record_follows_the_network_not_its_noise():
    assert len({coarse(0.1 + 0.001 * step) for step in range(-8, 9)}) <= 2
    for rtt_s in (0.00001, 0.0007, 0.013, 0.2, 3.0):
        assert abs(coarse(rtt_s) - rtt_s) <= max(0.0001, rtt_s / 4)
    assert coarse(60.0) == 6.5535


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_a_peer_s_fault(data):
    try:
        record = decode(data)
    except PeerFault:
        return
    assert decode(record.encode()) == record


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_record_is_a_fault_or_another_record(seed):
    rng = random.Random(seed)
    data = bytearray(FULL.encode())
    for _ in range(200):
        bad = bytearray(data)
        bad[rng.randrange(len(bad))] = rng.randrange(256)
        del bad[rng.randrange(len(bad)) + 1 :]
        try:
            decode(bytes(bad))
        except PeerFault:
            continue


def test_the_highest_boot_and_version_wins_whoever_brings_it():
    directory = Directory(Record(1, 10), 0.0)
    assert directory.merge(Record(2, 5, 3, name="a"), 1.0) is Merge.NEWS
    assert directory.merge(Record(2, 5, 3, name="a"), 2.0) is Merge.KNOWN
    assert directory.merge(Record(2, 5, 2, name="b"), 2.0) is Merge.OLDER
    assert directory.merge(Record(2, 4, 9, name="c"), 2.0) is Merge.OLDER
    assert directory.merge(Record(2, 6, 0, name="d"), 2.0) is Merge.NEWS
    assert [record.name for record in directory] == ["", "d"]


def test_our_own_record_is_ours():
    directory = Directory(Record(1, 10), 0.0)
    assert directory.merge(Record(1, 9, 99), 0.0) is Merge.OLDER
    assert directory.merge(Record(1, 11), 0.0) is Merge.CONFLICT
    assert directory.own == Record(1, 10)
    before = directory.digest()
    assert directory.update_own(name="x") and not directory.update_own(name="x")
    assert directory.own.version == 1 and directory.digest() != before


def test_what_is_not_heard_of_is_stale_then_dropped():
    directory = Directory(Record(1, 10), 0.0)
    directory.merge(Record(2, 1), 0.0)
    directory.merge(Record(3, 1), 0.0)
    directory.heard(3, STALE_S)
    assert directory.is_stale(2, STALE_S) and not directory.is_stale(3, STALE_S)
    assert directory.next_deadline() == DROP_S
    assert directory.on_deadline(DROP_S) == [2] and len(directory) == 2


def test_the_list_survives_the_disk_and_damage_is_found():
    directory = Directory(Record(1, 10), 0.0)
    directory.merge(FULL, 0.0)
    directory.merge(Record(9, 4), 50.0)
    data = directory.dump(100.0)
    again = Directory(Record(1, 11), 1000.0)
    again.load(data, 1000.0)
    assert list(again)[1:] == list(directory)[1:] and again.heard_at(3) == 900.0
    for index in range(0, len(data), 7):
        bad = bytearray(data)
        bad[index] ^= 1
        with pytest.raises(ValueError, match="damaged"):
            Directory(Record(1, 11), 0.0).load(bytes(bad), 0.0)


@given(st.sets(st.integers(1, 254)), st.sets(st.integers(1, 254)))
def test_summaries_find_every_difference_both_ways(mine, theirs):
    """Also with lists that take several messages."""
    one, two = Directory(Record(1, 1), 0.0), Directory(Record(2, 1), 0.0)
    for node in mine - {1, 2}:
        one.merge(Record(node, node % 3), 0.0)
    for node in theirs - {1, 2}:
        two.merge(Record(node, node % 5), 0.0)
    for source, sink in ((one, two), (two, one)):
        for summary in sink.summaries():
            assert len(summary) <= MESSAGE_MAX
            newer, _ = source.compare(summary)
            for piece in packed([(record.encode(), 5) for record in newer], MESSAGE_MAX):
                assert len(piece) <= MESSAGE_MAX
                for data, age_s in unpacked(piece):
                    assert age_s == 5
                    sink.merge(decode(data), 0.0, age_s)
    assert one.digest() == two.digest()


class Crowd:
    """Gossips on a topology with 100 ms links, in simulated time; bytes are counted."""

    def __init__(self, count: int, seed: int, loss: float = 0.0):
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.nodes: dict[int, Gossip] = {}
        self.links: set[tuple[int, int]] = set()
        self.wire: list[tuple[float, int, int, int, bytes]] = []
        self.sent = dict.fromkeys(range(1, count + 1), 0)
        self.boots = dict.fromkeys(range(1, count + 1), 1)
        self.servers = list(range(1, max(2, min(8, count // 4)) + 1))
        self.serial = 0
        for node in range(1, count + 1):
            self.start(node)

    def start(self, node: int) -> None:
        """A node begins, or is back with a new boot and an empty list."""
        self.boots[node] += 1
        record = Record(node, self.boots[node], name=f"node {node}", country="DE", software="0.1")
        self.nodes[node] = Gossip(
            Directory(record, self.now), lambda span: self.rng.random() * span, self.now
        )
        if node in self.servers:
            others = [server for server in self.servers if server != node]
        else:
            others = self.rng.sample(self.servers, min(3, len(self.servers)))
        for other in others:
            if other in self.nodes:
                self.link(node, other)

    def link(self, a: int, b: int) -> None:
        if (a, b) in self.links:
            return
        self.links |= {(a, b), (b, a)}
        self.nodes[a].link_up(b)
        self.nodes[b].link_up(a)

    def unlink(self, a: int, b: int) -> None:
        self.links -= {(a, b), (b, a)}
        for one, other in ((a, b), (b, a)):
            if one in self.nodes:
                self.nodes[one].link_down(other)

    def stop(self, node: int) -> None:
        for a, b in list(self.links):
            if a == node:
                self.unlink(a, b)
        del self.nodes[node]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self._collect()
            times = [g.next_deadline() for g in self.nodes.values()]
            times = [time for time in times if time is not None]
            times += [self.wire[0][0]] if self.wire else []
            if not times or min(times) > end:
                self.now = end
                return
            self.now = max(self.now, min(times))
            while self.wire and self.wire[0][0] <= self.now:
                _, _, source, sink, payload = self.wire.pop(0)
                if (source, sink) in self.links:
                    self.nodes[sink].receive(source, payload, self.now)
            for gossip in self.nodes.values():
                due = gossip.next_deadline()
                if due is not None and due <= self.now:
                    gossip.on_deadline(self.now)

    def _collect(self) -> None:
        for node, gossip in self.nodes.items():
            for peer, payload in gossip.take_messages():
                assert len(payload) <= MESSAGE_MAX
                self.sent[node] += len(payload) + 64 + 40  # header, tag, TCP/IP
                if (node, peer) in self.links and self.rng.random() >= self.loss:
                    self.serial += 1
                    self.wire.append((self.now + 0.1, self.serial, node, peer, payload))

    def lists(self) -> set[bytes]:
        return {gossip.directory.digest() for gossip in self.nodes.values()}


@pytest.mark.parametrize("count", [5, 20, 50])
def test_all_lists_are_equal_within_five_seconds_of_the_last_change(count):
    """From nothing; after a change; after 20 % churn; after a partition has healed."""
    crowd = Crowd(count, seed=count)
    crowd.run(5)
    assert len(crowd.lists()) == 1
    gossip = crowd.nodes[count]
    gossip.directory.update_own(name="renamed")
    gossip.own_changed(crowd.now)
    crowd.run(5)
    assert len(crowd.lists()) == 1
    clients = [node for node in crowd.nodes if node not in crowd.servers]
    for node in crowd.rng.sample(clients, max(1, len(clients) // 5)):
        crowd.stop(node)
        crowd.start(node)
        crowd.run(0.2)
    crowd.run(5)
    assert len(crowd.lists()) == 1
    half = set(crowd.servers[::2])
    cut = [(a, b) for a, b in crowd.links if (a in half) != (b in half) and a < b]
    for a, b in cut:
        crowd.unlink(a, b)
    for node in list(crowd.nodes)[::3]:
        crowd.nodes[node].directory.update_own(name=f"apart {node}")
        crowd.nodes[node].own_changed(crowd.now)
    crowd.run(5)
    for a, b in cut:
        crowd.link(a, b)
    crowd.run(5)
    assert len(crowd.lists()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_lost_rumours_are_repaired(seed):
    """20 % of all messages are lost: a later digest finds what is missing."""
    crowd = Crowd(12, seed, loss=0.2)
    crowd.run(200)
    crowd.nodes[12].directory.update_own(name="renamed")
    crowd.nodes[12].own_changed(crowd.now)
    crowd.run(200)
    assert len(crowd.lists()) == 1


def test_an_idle_crowd_says_next_to_nothing():
    """Gossip of an idle node: far below 200 bytes a second (with TCP/IP overhead)."""
    crowd = Crowd(40, seed=3)
    crowd.run(200)
    crowd.sent = dict.fromkeys(crowd.sent, 0)
    crowd.run(6 * 3600)
    assert max(crowd.sent.values()) / (6 * 3600) < 5


def test_who_is_there_is_never_stale_and_who_is_not_is_dropped_everywhere():
    """Nothing changes for ten days: each says once a day that it is there. The dead stay dead."""
    crowd = Crowd(6, seed=7)
    crowd.run(5)
    crowd.stop(6)
    for day in range(10):
        crowd.run(24 * 3600)
        for gossip in crowd.nodes.values():
            directory = gossip.directory
            directory.on_deadline(crowd.now)  # as the node does
            for node in crowd.nodes:
                assert not directory.is_stale(node, crowd.now), (day, node)
            assert (directory.get(6) is None) == (crowd.now >= DROP_S + 24 * 3600) or day in (6, 7)
            assert directory.get(6) is None or directory.is_stale(6, crowd.now) == (day >= 1)
        again = crowd.servers[day % 2]  # who has an empty list learns how old what it learns is
        neighbours = [b for a, b in crowd.links if a == again]
        crowd.stop(again)
        crowd.start(again)
        for other in neighbours:
            crowd.link(again, other)
        crowd.run(10)
    assert len(crowd.lists()) == 1


def test_a_record_comes_with_its_age():
    directory = Directory(Record(1, 1), 0.0)
    assert directory.merge(Record(2, 1), 1000.0, 900.0) is Merge.NEWS
    assert directory.heard_at(2) == 100.0 and directory.age(2, 1000.0) == 900
    assert directory.merge(Record(2, 1), 1000.0, 50.0) is Merge.KNOWN
    assert directory.heard_at(2) == 950.0, "the bringer has heard of it since"
    assert directory.merge(Record(3, 9), 1000.0, DROP_S) is Merge.KNOWN
    assert directory.get(3) is None, "whom everybody is about to forget"


def test_a_node_that_changes_without_end_is_passed_on_once_a_second():
    crowd = Crowd(5, seed=1)
    crowd.run(5)
    crowd.sent = dict.fromkeys(crowd.sent, 0)
    for number in range(500):
        crowd.nodes[5].directory.update_own(name=f"n{number}")
        crowd.nodes[5].own_changed(crowd.now)
        crowd.run(0.02)
    assert crowd.sent[5] / 10 < 3 * 400
    crowd.run(5)
    assert len(crowd.lists()) == 1


def test_malformed_gossip_is_a_fault():
    gossip = Gossip(Directory(Record(1, 1), 0.0), lambda span: 0.0, 0.0)
    gossip.link_up(2)
    for payload in (
        b"\1abc",
        b"\2\0",
        b"\2\0\0abc",
        b"\3\0",
        b"\3\0\5\0\0\0\0abc",
        b"\3\xff\xff" + bytes(99),
    ):
        with pytest.raises(PeerFault):
            gossip.receive(2, payload, 0.0)
    gossip.receive(2, b"\x77later", 0.0)
    gossip.receive(2, b"", 0.0)
