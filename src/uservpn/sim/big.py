"""A large mesh: what it says when nothing happens, what a change costs, and how it takes trouble.

    start        everybody comes up within ten seconds, knowing one server or two
    idle         nothing happens
    one change   a node is renamed
    churn        a fifth of the nodes dies, half of them for good; islands form and join
    after        by when all lists are equal again

Links are TCP with 100 ms one way, in kernels that try at least every two seconds while a way is cut. Bytes
are those of the messages, headers and tags; what IP and TCP put around each one (40 bytes) is counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from uservpn.mesh.records import Role
from uservpn.sim.geography import SITES
from uservpn.sim.member import Member, Seat
from uservpn.sim.network import RETRY_NEW_S, Host, Weather
from uservpn.sim.world import World
from uservpn.types import NodeId

FLIGHT_S: Final = 0.1
START_S: Final = 10.0
SETTLE_S: Final = 60.0
"""After a start or a change, until all that follows from it has been said."""
IDLE_S: Final = 3600.0
CHURN_S: Final = 120.0
SHARE: Final = 0.2
"""Of the nodes that die in the churn."""
STEP_S: Final = 0.1
AGREE_S: Final = 5.0
"""By when after the last event (a start, an end, a cut, its end, a new name) lists are equal, at 100 ms."""
IDLE_BYTES_S: Final = 200.0
KEY: Final = bytes(range(32))


@dataclass(frozen=True, slots=True)
class Cost:
    """What nodes of one kind said in one phase, on the average and at most, for each node."""

    messages: float
    bytes: float
    bytes_most: float
    overhead: float
    links: float
    links_most: int


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the run."""

    name: str
    seconds: float
    servers: Cost
    clients: Cost
    agreed_s: float | None = None
    """From the last event to equal lists."""


def servers_of(count: int) -> int:
    """How many of so many nodes are servers."""
    return max(2, round(count * 30 / 254))


class Big:
    """One large mesh and its phases."""

    def __init__(self, count: int, seed: int) -> None:
        self.world = World(
            seed, Weather(flight_s=FLIGHT_S, retry_max_s=RETRY_NEW_S), has_story=False
        )
        self.rng = Random(f"{seed}/big")
        self.phases: list[Phase] = []
        self._event_at = self.world.agenda.now
        """When something last happened to the mesh from outside."""
        self._marks: dict[int, tuple[int, int, int, int]] = {}
        self._gone: list[int] = []
        self._began_at = self.world.agenda.now
        numbers = self.rng.sample(range(1, 255), count)
        self.servers = numbers[: servers_of(count)]
        for number in numbers:
            self._add(number)

    def _add(self, number: int) -> None:
        world, rng = self.world, self.rng
        is_server = number in self.servers
        ip = f"203.0.{number}.1" if is_server else f"10.0.{number}.1"
        host = world.network.add(Host(f"h{number}", ip, rng.choice(SITES)))
        roles = Role.RELAY | (Role.SERVER | Role.EXIT if is_server else Role.ENTRY)
        known = self.servers[: self.servers.index(number)] if is_server else self.servers
        chosen = rng.sample(known, min(len(known), 1 if is_server else 2))
        servers = {NodeId(n): (f"tcp://203.0.{n}.1:7000",) for n in chosen}
        listens = ("tcp",) if is_server else ()
        world.seats[number] = Seat(NodeId(number), host, (KEY,), roles, listens, servers=servers)
        world.agenda.after(rng.random() * START_S, self._start, number)

    # --- phases ----------------------------------------------------------------------------------

    def play(self, idle_s: float = IDLE_S) -> None:
        """All phases. Raises InvariantBroken."""
        world = self.world
        world.run(START_S)
        agreed_s = self.agree()
        world.run(max(0.0, START_S + SETTLE_S - world.age_s))
        self._end("start", agreed_s)
        world.run(idle_s)
        self._end("idle")
        member = self.rng.choice(world.alive())
        member.node.describe(world.agenda.now, name="renamed")
        member.settle()
        self._event_at = world.agenda.now
        agreed_s = self.agree()
        world.run(SETTLE_S)
        self._end("one change", agreed_s)
        self._churn()
        agreed_s = self.agree()
        self._end("churn", agreed_s)
        world.run(SETTLE_S)
        self._end("after")

    def agree(self) -> float:
        """Runs until all lists are equal; the time since the last event. Raises InvariantBroken.

        What follows from an event, such as new versions of records that tell of other links, is none.
        """
        world = self.world
        while not self._is_agreed():
            if world.agenda.now > self._event_at + AGREE_S:
                world.broken(f"{len(world.digests())} lists {AGREE_S:.1f} s after the last event")
            world.run(STEP_S)
        return world.agenda.now - self._event_at

    def _is_agreed(self) -> bool:
        world = self.world
        count = len(world.seats)
        return (
            len(world.members) == count
            and len(world.digests()) == 1
            and len(world.alive()[0].node.directory) == count
        )

    def _churn(self) -> None:
        world, rng = self.world, self.rng
        victims = rng.sample(list(world.seats), round(SHARE * len(world.seats)))
        for place, number in enumerate(victims):
            at = rng.random() * CHURN_S * 0.8
            world.agenda.after(at, self._die, number, rng.random() < 0.5)
            if place % 2:
                world.agenda.after(at + 1 + rng.random() * 20, self._start, number)
        for start, length in ((10.0, 20.0), (80.0, 40.0)):
            world.agenda.after(start, self._split)
            world.agenda.after(start + length, self._join)
        world.run(CHURN_S + 0.01)

    def _start(self, number: int) -> None:
        self.world.start(self.world.seats[number])
        self._event_at = self.world.agenda.now

    def _die(self, number: int, power: bool) -> None:
        self.world.members[number].save()
        self.world.kill(number, power)
        self._event_at = self.world.agenda.now

    def _split(self) -> None:
        world = self.world
        world.network.split(
            {seat.host.name: self.rng.randrange(2) for seat in world.seats.values()}
        )
        self._event_at = world.changed_at = world.agenda.now

    def _join(self) -> None:
        self.world.network.split({})
        self._event_at = self.world.changed_at = self.world.agenda.now

    # --- figures ---------------------------------------------------------------------------------

    def _end(self, name: str, agreed_s: float | None = None) -> None:
        """The phase is over: what was said in it."""
        now = self.world.agenda.now
        alive = self.world.alive()
        servers = [m for m in alive if m.seat.node in self.servers]
        others = [m for m in alive if m.seat.node not in self.servers]
        phase = Phase(name, now - self._began_at, self._cost(servers), self._cost(others), agreed_s)
        self.phases.append(phase)
        self._began_at = now
        self._marks = {m.seat.node: _counts(m) for m in alive}

    def _cost(self, members: Iterable[Member]) -> Cost:
        said = []
        for member in members:
            boot, *before = self._marks.get(member.seat.node, (member.boot, 0, 0, 0))
            if boot != member.boot:
                before = [0, 0, 0]
            _, *counts = _counts(member)
            said.append([now - then for now, then in zip(counts, before, strict=True)])
        links = [len(member.links) for member in members]
        count = max(1, len(said))
        return Cost(
            sum(row[0] for row in said) / count,
            sum(row[1] for row in said) / count,
            max((row[1] for row in said), default=0),
            sum(row[2] for row in said) / count,
            sum(links) / count,
            max(links, default=0),
        )


def _counts(member: Member) -> tuple[int, int, int, int]:
    return member.boot, member.sent_count, member.sent_size, member.overhead_size


HEAD: Final = (
    "| nodes | phase | seconds | servers: messages | bytes/s | most | links | most "
    "| clients: messages | bytes/s | most | links | equal after |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def rows(count: int, big: Big) -> str:
    """The phases as rows of a table; messages and bytes are per node."""
    lines = []
    for phase in big.phases:
        servers, clients, span = phase.servers, phase.clients, phase.seconds
        agreed = "" if phase.agreed_s is None else f"{phase.agreed_s:.1f} s"
        lines.append(
            f"| {count} | {phase.name} | {span:.0f} "
            f"| {servers.messages:.1f} | {servers.bytes / span:.1f} | {servers.bytes_most / span:.1f} "
            f"| {servers.links:.1f} | {servers.links_most} "
            f"| {clients.messages:.1f} | {clients.bytes / span:.1f} | {clients.bytes_most / span:.1f} "
            f"| {clients.links:.1f} | {agreed} |"
        )
    return "\n".join(lines)
