"""Two or more nodes in simulated time, joined by links that delay, lose, reorder, double and die.

The shipped `Node` runs unchanged; only links and clocks are made up. Everything is drawn from one seed.
"""

from __future__ import annotations

import heapq
import random
import sys

from uservpn.errors import Fault
from uservpn.node.node import Node
from uservpn.node.options import (
    CloseWanted,
    DialWanted,
    Message,
    MessageResult,
    NodeOptions,
    PeerNews,
    Pong,
)
from uservpn.tunnel.events import Data, Finished, Offered, Opened, Reset, Room
from uservpn.tunnel.path import Path
from uservpn.wire.header import HeaderCodec, Run
from uservpn.wire.keys import KeyRing

KEY = bytes(range(32))
ROOM = 1 << 19
BASE = 1152
"""Sealed payloads that every datagram link carries."""


def take(tunnel, room: int, size_max: int, now: float):
    """What a tunnel without a node sends over the one path it has."""
    if not tunnel.outbox.paths:
        tunnel.path_up(Path(1), False)
    return tunnel.take_messages(room, size_max, tunnel.outbox.paths[0], now)


def in_runs(messages) -> list[Run]:
    """(Header, payload)s as a link hands them on."""
    runs: list[Run] = []
    for header, body in messages:
        if runs:
            first, bodies = runs[-1]
            number = first.number + len(bodies)
            if header == first._replace(number=number, associated=header.associated):
                runs[-1] = Run(first, [*bodies, body])
                continue
        runs.append(Run(header, [body]))
    return runs


class Member:
    """A node of the world and what its owner saw."""

    def __init__(
        self, world, node, servers, boot, keys, skew_s=0.0, record=None, nodes=b"", instance=b""
    ):
        self.world = world
        self.id = node
        self.address = "sim://x"
        """Where others see its links come from."""
        self.skew_s = skew_s
        ring = KeyRing(keys)
        options = NodeOptions(node, boot, servers, record, instance=instance)
        rng = random.Random(f"{world.seed}/{node}/{boot}")
        self.codec = HeaderCodec(ring)
        self.node = Node(
            options, ring, self.codec, rng.randbytes, now=world.now, wall_s=1e9 + skew_s
        )
        if nodes:
            self.node.directory.load(nodes, world.now)
        self.is_up = True
        self.wakes_at = 0.0
        self.received: dict[int, bytearray] = {}
        self.finished: set[int] = set()
        self.resets: dict[int, Fault] = {}
        self.opened: dict[int, Fault] = {}
        self.offered: list = []
        self.news: list[str] = []
        self.messages: list[tuple[int, str, bytes]] = []
        self.results: dict[int, bool] = {}
        self.pongs: list[Pong] = []
        self.pending: dict[int, bytes] = {}
        self.consume = True

    def send(self, stream, data: bytes, finish: bool = False) -> None:
        """Writes all of `data`, waiting for room as a pump would."""
        tunnel = self.node.tunnel(stream)
        view = memoryview(data)
        while len(view):
            more = tunnel.write(stream, view[:65536])
            view = view[65536:]
            if not more:
                break
        if len(view):
            self.pending[stream.id] = (bytes(view), finish)
        elif finish:
            tunnel.finish(stream)

    def handle(self, event) -> None:
        world = self.world
        match event:
            case DialWanted(peer, endpoint):
                world.at(world.now + world.delay, lambda: world.connect(self, peer, endpoint))
            case CloseWanted(link):
                world.cut(link)
            case PeerNews(_, text, _):
                self.news.append(text)
            case Message(peer, topic, payload):
                self.messages.append((peer, topic, payload))
            case Pong():
                self.pongs.append(event)
            case MessageResult(token, delivered):
                assert token not in self.results, "one message, one result"
                self.results[token] = delivered
            case Offered(stream, host, port):
                self.offered.append((stream, host, port))
                if host == "refuse.test":
                    self.node.tunnel(stream).refuse(stream, Fault.REFUSED)
                else:
                    self.node.tunnel(stream).accept(stream)
            case Opened(stream, fault, _):
                self.opened[stream.id] = fault
            case Data(stream, chunk):
                self.received.setdefault(stream.id, bytearray()).extend(chunk)
                if self.consume:
                    self.node.tunnel(stream).consumed(stream, len(chunk), world.now)
            case Room(stream):
                data, finish = self.pending.pop(stream.id, (b"", False))
                if data or finish:
                    self.send(stream, data, finish)
            case Finished(stream):
                self.finished.add(stream.id)
            case Reset(stream, fault):
                self.resets[stream.id] = fault


class World:
    """Simulated time; links are pairs of (member, member) with one delay and a loss rate."""

    def __init__(
        self,
        seed: int = 1,
        delay: float = 0.05,
        loss: float = 0.0,
        dup: float = 0.0,
        reorder: float = 0.0,
    ):
        self.seed = seed
        self.now = 1000.0
        self.rng = random.Random(seed)
        self.delay = delay
        self.loss = loss
        self.dup = dup
        self.reorder = reorder
        self.delays: dict[tuple[int, int], float] = {}
        """One way, seconds, where it is not `delay`."""
        self.members: dict[int, Member] = {}
        self.links: dict[int, tuple[Member, Member]] = {}
        self.refusing: set[int] = set()
        self.unreachable: set[int] = set()
        self.black_hole = False
        self.shut: set[frozenset[int]] = set()
        """Pairs between which all is lost, though links stand."""
        self.dead: set[int] = set()
        """Links on which all is lost, in this direction."""
        self.payload_max: int | None = None
        """Links are datagram links from now on, and lose larger sealed payloads without a word."""
        self.narrow: dict[frozenset[int], int] = {}
        """What other paths carry, by their two ends."""
        self.blocked: set[str] = set()
        """Protocols whose messages all get lost."""
        self.protocols: dict[int, str] = {}
        self.limit = 1500 - 76
        """What the ends of datagram links themselves take."""
        self.tap: list[tuple[int, bytes, bytes]] = []
        self._heap: list = []
        self._serial = 0
        self._link = 0

    def room(self, link: int) -> int:
        return ROOM

    def add(
        self, node: int, servers=None, boot=1000, keys=(KEY,), skew_s=0.0, record=None, nodes=b"",
        instance=b"",
    ) -> Member:  # fmt: skip
        member = Member(self, node, servers or {}, boot, keys, skew_s, record, nodes, instance)
        self.members[node] = member
        member.node.start(self.now)
        self.settle(member)
        return member

    def at(self, when: float, action) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, action))

    def connect(self, member: Member, peer: int, endpoint: str, protocol: str = "sim") -> None:
        if not member.is_up or peer in self.unreachable or self.black_hole:
            return  # no answer, not even a refusal
        other = self.members.get(peer)
        if other is None or not other.is_up or peer in self.refusing:
            member.node.dial_failed(peer, endpoint, True, "refused", self.now)
            self.settle(member)
            return
        self._link += 2
        self.links[self._link] = (member, other)
        self.links[self._link + 1] = (other, member)
        self.protocols[self._link] = self.protocols[self._link + 1] = protocol
        is_datagram = self.payload_max is not None or protocol == "udp"
        size, base = (self.limit, BASE) if is_datagram else (70000, 0)
        there, here = self._link + 1, self._link
        other.node.link_up(there, protocol, size, member.address, self.now, size_base=base)
        member.node.link_up(here, protocol, size, endpoint, self.now, peer, endpoint, base)
        self.settle(member)

    def cut(self, link: int) -> None:
        for side in (link, link ^ 1):
            pair = self.links.pop(side, None)
            if pair is not None and pair[0].is_up:
                pair[0].node.link_down(side, "cut", self.now)
                self.at(self.now, lambda member=pair[0]: self.settle(member))

    def cut_all(self) -> None:
        for link in list(self.links):
            self.cut(link)

    def crash(self, node: int) -> None:
        """kill -9: its links end, nothing is said."""
        self.members[node].is_up = False
        for link, (member, _) in list(self.links.items()):
            if member.id == node:
                self.cut(link)

    def settle(self, member: Member) -> None:
        """What the driver does after every event."""
        for _ in range(50):
            batches = member.node.take_transmits(self.room, self.now)
            self.carry_all(batches)
            events = member.node.take_events(self.now)
            for event in events:
                member.handle(event)
            if not batches and not events:
                break
        deadline = member.node.next_deadline()
        self.check_touched(member.node)
        if deadline is not None:
            due = max(deadline, self.now)
            if not self.now < member.wakes_at <= due:  # else one is planned that comes in time
                member.wakes_at = due
                self.at(due, lambda: self.wake(member))

    def carry_all(self, batches) -> None:
        for link, batch in batches:
            for index in range(0, len(batch), 2):
                self.carry(link, batch[index], batch[index + 1])

    def check_touched(self, node: Node) -> None:
        """No peer waits for something that no flush would look at (a lost wake-up)."""
        assert not node.forgotten()

    def wake(self, member: Member) -> None:
        if member.is_up:
            member.node.on_deadline(self.now)
            self.settle(member)

    def carry(self, link: int, head: bytes, body: bytes) -> None:
        self.tap.append((link, head, body))
        if self.payload_max is not None:
            ends = frozenset(member.id for member in self.links.get(link, ()))
            if len(body) > self.narrow.get(ends, self.payload_max):
                return
        if self.black_hole or self.protocols.get(link) in self.blocked:
            return
        if self.rng.random() < self.loss:
            return
        pair = self.links.get(link)
        ends = (pair[0].id, pair[1].id) if pair else (0, 0)
        if link in self.dead or (self.shut and frozenset(ends) in self.shut):
            return
        delay = self.delays.get(ends, self.delay)
        copies = 2 if self.rng.random() < self.dup else 1
        for _ in range(copies):
            late = self.rng.random() * 0.1 if self.rng.random() < self.reorder else 0.0
            self.at(self.now + delay + late, lambda: self.arrive(link, head, body))

    def arrive(self, link: int, head: bytes, body: bytes) -> None:
        pair = self.links.get(link)
        if pair is None or not pair[1].is_up:
            return
        self.inject(pair[1], link ^ 1, head, body)

    def inject(self, member: Member, link: int, head: bytes, body: bytes) -> None:
        header = member.codec.open(head)
        if header is not None:
            message = (Run(header, (body,)),)
            self.carry_all(member.node.receive_batch(link, message, self.room, self.now))
            self.settle(member)

    def run(self, seconds: float, steps_max: int = 200_000) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            steps_max -= 1
            assert steps_max > 0, "the world does not come to rest"
        self.now = end


def calls_of(work) -> int:
    """How many functions, of Python and of C, `work` calls."""
    count = 0

    def count_calls(frame, event, argument):
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    sys.setprofile(count_calls)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def pair(**options):
    """A client (7) and a server (1)."""
    world = World(**options)
    server = world.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)})
    return world, client, server
