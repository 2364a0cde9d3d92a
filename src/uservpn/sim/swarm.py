"""Scenarios: a mesh, its trouble and its work, drawn from a seed, and what must hold in the end.

Each seed draws its own parameters (how many nodes, which protocols, how bad the weather, which faults), so
that a campaign sees combinations that nobody thought of (swarm testing: Groce et al., 2012). In
the first part things break; then everything that can be whole is made whole, and within the stated
time all lists are equal and all connections done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from uservpn.mesh import liveness, redial
from uservpn.mesh.addresses import DIAL_LIMIT_S
from uservpn.mesh.mailbox import GIVE_UP_S
from uservpn.mesh.records import Role
from uservpn.sim.checkers import MINUTE_S, QUIET_S
from uservpn.sim.geography import SITES, Site
from uservpn.sim.letters import Letter
from uservpn.sim.member import Seat
from uservpn.sim.nat import TIMEOUTS_S, Nat, NatKind
from uservpn.sim.network import RETRY_MAX_S, Host, Weather
from uservpn.sim.twin import Twin
from uservpn.sim.world import World
from uservpn.types import NodeId

OLD_KEY: Final = bytes(range(32))
NEW_KEY: Final = bytes(range(32, 64))
NODES_MIN: Final = 3
NODES_MAX: Final = 20
LETTERS_LAST: Final = 5
TWIN_NODES_MIN: Final = 4
TWIN_S: Final = 30.0
"""By when a second node with one number stands back."""
SKEWS_S: Final = (-3600.0, -600.0, -200.0, 200.0, 1200.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed has drawn."""

    seed: int
    servers: int
    clients: int
    exits_behind: int
    """Exits that only dial out, behind routers where there are some."""
    protocols: tuple[str, ...]
    weather: Weather
    keepalive_s: float
    grace_s: float
    trouble_s: float
    """How long things break."""
    faults: int
    flows: int
    flow_size_max: int
    is_skewed: bool
    is_natted: bool
    is_replayed: bool
    has_key_change: bool
    is_plain: bool
    letters: int
    """Out-of-band messages during the trouble."""
    has_twin: bool
    """A second node with a number that is taken comes when all is whole."""

    def __str__(self) -> str:
        """One line."""
        weather = self.weather
        return (
            f"{self.servers} servers, {self.clients} clients, {self.exits_behind} exits that dial out; "
            f"{'+'.join(self.protocols)}; loss {weather.loss:.0%}, doubled {weather.doubled:.0%}, "
            f"late {weather.late:.0%}; keep-alive {self.keepalive_s:.0f} s, grace {self.grace_s:.0f} s; "
            f"{self.faults} faults in {self.trouble_s:.0f} s, {self.flows} flows up to "
            f"{self.flow_size_max} bytes"
            f"{', clocks skewed' if self.is_skewed else ''}{', routers' if self.is_natted else ''}"
            f"{', replays' if self.is_replayed else ''}{', new key' if self.has_key_change else ''}"
            f"{f', {self.letters} letters' if self.letters else ''}{', a twin' if self.has_twin else ''}"
            f"{'' if self.is_plain else ', real ciphers'}"
        )


def draw(seed: int, nodes: int | None = None) -> Scenario:
    """The scenario of a seed; `nodes` fixes its size."""
    rng = Random(f"{seed}/scenario")
    count = nodes or round(NODES_MIN * (NODES_MAX / NODES_MIN) ** rng.random())
    servers = max(1, min(count - 1, round(count * rng.uniform(0.15, 0.6))))
    behind = round((count - servers) * rng.choice((0.0, 0.2, 0.5)))
    is_rough = rng.random() < 0.6
    weather = Weather(
        loss=rng.choice((0.0, 0.01, 0.05, 0.2)) if is_rough else 0.0,
        doubled=rng.choice((0.0, 0.02, 0.1)) if is_rough else 0.0,
        late=rng.choice((0.0, 0.05, 0.3)) if is_rough else 0.0,
        late_s=rng.choice((0.02, 0.2, 1.0)),
        jitter_s=rng.choice((0.0, 0.005, 0.05)),
        rate=rng.choice((125e3, 1.25e6, 12.5e6)),
    )
    return Scenario(
        seed=seed,
        servers=servers,
        clients=count - servers - behind,
        exits_behind=behind,
        protocols=rng.choice((("tcp",), ("tcp",), ("udp",), ("tcp", "udp"), ("udp", "tcp"))),
        weather=weather,
        keepalive_s=rng.choice((30.0, 120.0, 600.0)),
        grace_s=rng.choice((10.0, 60.0)),
        trouble_s=rng.choice((20.0, 60.0, 200.0)),
        faults=rng.choice((0, 2, 5, 12)),
        flows=rng.choice((1, 3, 8)),
        flow_size_max=rng.choice((2_000, 30_000, 200_000)),
        is_skewed=rng.random() < 0.4,
        is_natted=rng.random() < 0.5,
        is_replayed=rng.random() < 0.3,
        has_key_change=rng.random() < 0.15,
        is_plain=rng.random() < 0.95,
        letters=rng.choice((0, 5, 40)),
        has_twin=count >= TWIN_NODES_MIN and servers > 1 and rng.random() < 0.2,
    )


class Run:
    """One scenario, played."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.world = World(scenario.seed, scenario.weather, is_plain=scenario.is_plain)
        self.rng = Random(f"{scenario.seed}/run")
        self.agreed_s: float | None = None
        """How long after the end of trouble all lists were equal."""
        self._moves = 0
        self._cut: set[frozenset[str]] = set()
        self._build()

    # --- the mesh --------------------------------------------------------------------------------

    def _build(self) -> None:
        scenario, rng = self.scenario, self.rng
        count = scenario.servers + scenario.clients + scenario.exits_behind
        numbers = rng.sample(range(1, 255), count)
        self.servers = numbers[: scenario.servers]
        self.exits_behind = numbers[scenario.servers : scenario.servers + scenario.exits_behind]
        self.others = numbers[scenario.servers :]
        for place, number in enumerate(numbers):
            seat = self._seat(number, place)
            self.world.seats[number] = seat
        for number in numbers:
            self._configure(self.world.seats[number])
        for number in numbers:
            self.world.agenda.after(rng.random() * 5.0, self._start, number)

    def _seat(self, number: int, place: int) -> Seat:
        scenario, rng = self.scenario, self.rng
        is_server = place < scenario.servers
        ip = f"203.0.{number}.1" if is_server else f"10.0.{number}.1"
        nat = self._nat(number) if scenario.is_natted and not is_server else None
        host = self.world.network.add(Host(f"h{number}", ip, rng.choice(SITES), nat))
        roles = Role.RELAY | (Role.SERVER | Role.EXIT if is_server else Role.NONE)
        if number in self.exits_behind:
            roles |= Role.EXIT
        elif not is_server:
            roles |= Role.ENTRY
        return Seat(
            NodeId(number),
            host,
            (OLD_KEY,),
            roles,
            scenario.protocols if is_server else (),
            ("udp",) if "udp" in scenario.protocols and roles & Role.EXIT else (),
            skew_s=rng.choice(SKEWS_S) if scenario.is_skewed and rng.random() < 0.4 else 0.0,
            keepalive_s=scenario.keepalive_s,
            grace_s=scenario.grace_s,
        )

    def _nat(self, number: int) -> Nat:
        rng = self.rng
        kind = rng.choice(list(NatKind))
        self._moves += 1
        ip = f"198.51.{number}.{self._moves % 250}"
        return Nat(ip, kind, Random(rng.random()), rng.choice(TIMEOUTS_S))

    def _configure(self, seat: Seat) -> None:
        """Every node knows one server or two; servers form a chain, so that all can meet."""
        known = [NodeId(self.servers[0])]
        if seat.node in self.servers:
            place = self.servers.index(seat.node)
            known = [NodeId(self.servers[self.rng.randrange(place)])] if place else []
        elif self.rng.random() < 0.5:
            known.append(NodeId(self.rng.choice(self.servers)))
        seat.servers = {node: self.world.seats[node].endpoints() for node in known}

    def _start(self, number: int) -> None:
        self.world.start(self.world.seats[number])

    # --- trouble ---------------------------------------------------------------------------------

    def play(self) -> None:
        """All of it. Raises InvariantBroken."""
        scenario, rng, world = self.scenario, self.rng, self.world
        world.captures = scenario.is_replayed
        world.run(10.0)
        for _ in range(scenario.flows):
            world.agenda.after(rng.random() * scenario.trouble_s, self._open_flow)
        for _ in range(scenario.letters):
            world.agenda.after(rng.random() * scenario.trouble_s, self._write_one)
        faults = self._faults()
        for _ in range(scenario.faults):
            world.agenda.after(rng.random() * scenario.trouble_s, rng.choice(faults))
        if scenario.has_key_change:
            self._plan_key_change()
        if scenario.is_replayed:
            for _ in range(50):
                world.agenda.after(rng.random() * scenario.trouble_s, world.replay)
        world.run(scenario.trouble_s)
        self._heal()
        self.agreed_s = self._agree()
        self._finish_flows()
        self._finish_letters()
        if scenario.has_twin:
            self._meet_twin()
        quiet_at = max(world.changed_at, world.flowed_at) + QUIET_S
        world.run(max(0.0, quiet_at + 2 * MINUTE_S - world.agenda.now))

    def _faults(self) -> list[Callable[[], None]]:
        faults: list[Callable[[], None]] = [
            self._kill, self._kill, self._pull_plug, self._stop, self._split, self._block,
            self._move, self._sleep, self._reset_links,
        ]  # fmt: skip
        if self.scenario.is_natted:
            faults.append(self._restart_router)
        if len(self.scenario.protocols) > 1:
            faults.append(self._block_protocol)
        return faults

    def _pick(self) -> int:
        return self.rng.choice(list(self.world.seats))

    def _open_flow(self) -> None:
        rng = self.rng
        clients = [
            n for n in self.others if n in self.world.members and self.world.members[n].is_up
        ]
        exits = [n for n in (*self.servers, *self.exits_behind) if n not in clients[:1]]
        if not clients:
            return
        client = rng.choice(clients)
        exit = rng.choice([n for n in exits if n != client] or exits)
        if exit == client or exit not in self.world.members:
            return
        most = self.scenario.flow_size_max
        self.world.open_flow(
            client,
            exit,
            rng.randrange(most),
            rng.randrange(most),
            rng.random() * 0.5,
            rng.random() < 0.1,
        )

    def _write_one(self) -> None:
        self._write()

    def _write(self) -> Letter | None:
        """A program somewhere sends a message to some node."""
        author, to = self.rng.sample(list(self.world.seats), 2)
        member = self.world.members.get(author)
        if member is None or not member.is_up:
            return None
        return self.world.letters.send(member, to, self.rng.random() < 0.7)

    def _kill(self) -> None:
        self._end(self._pick(), power=False)

    def _pull_plug(self) -> None:
        self._end(self._pick(), power=True)

    def _end(self, number: int, power: bool) -> None:
        world, rng = self.world, self.rng
        member = world.members.get(number)
        if member is None or not member.is_up:
            return
        if rng.random() < 0.7:
            member.save()
        world.kill(number, power)
        if rng.random() < 0.3:
            member.seat.nodes = b""  # the state directory is lost, and with it the last boot
            member.seat.last_boot = 0
        world.agenda.after(1.0 + rng.random() * 60.0, self._revive, number)

    def _revive(self, number: int) -> None:
        member = self.world.members[number]
        if not member.is_up:
            self._start(number)

    def _stop(self) -> None:
        member = self.world.members.get(self._pick())
        if member is not None and member.is_up:
            member.stop()
            self.world.laws.died(member)
            self.world.changed_at = self.world.agenda.now
            self.world.agenda.after(1.0 + self.rng.random() * 30.0, self._revive, member.seat.node)

    def _split(self) -> None:
        """Two islands for a while."""
        world, rng = self.world, self.rng
        islands = {seat.host.name: rng.randrange(2) for seat in world.seats.values()}
        world.note(0, "split", sorted(name for name, island in islands.items() if island))
        world.network.split(islands)
        world.changed_at = world.agenda.now
        world.agenda.after(rng.choice((2.0, 10.0, 60.0)), self._join)

    def _join(self) -> None:
        self.world.note(0, "joined")
        self.world.network.split({})
        self.world.changed_at = self.world.agenda.now

    def _block(self) -> None:
        """Two hosts do not reach each other for a while."""
        world = self.world
        a, b = self.rng.sample(list(world.seats.values()), 2)
        pair = frozenset((a.host.name, b.host.name))
        world.note(0, "blocked", sorted(pair))
        world.network.blocked.add(pair)
        world.changed_at = world.agenda.now
        world.agenda.after(self.rng.choice((5.0, 100.0)), self._unblock, pair)

    def _unblock(self, pair: frozenset[str]) -> None:
        self.world.network.blocked.discard(pair)
        self.world.changed_at = self.world.agenda.now

    def _block_protocol(self) -> None:
        """A firewall before one host drops one protocol for a while."""
        world, rng = self.world, self.rng
        rule = world.seats[self._pick()].host.name, rng.choice(self.scenario.protocols)
        world.note(0, "blocked", rule)
        world.network.blocked_protocols.add(rule)
        world.changed_at = world.agenda.now
        world.agenda.after(rng.choice((5.0, 100.0)), self._allow, rule)

    def _allow(self, rule: tuple[str, str]) -> None:
        self.world.network.blocked_protocols.discard(rule)
        self.world.changed_at = self.world.agenda.now

    def _move(self) -> None:
        """A node that is no server finds itself elsewhere; mostly it notices."""
        world, rng = self.world, self.rng
        if not self.others:
            return
        number = rng.choice(self.others)
        seat = world.seats[number]
        site: Site = rng.choice(SITES)
        self._moves += 1
        nat = self._nat(number) if self.scenario.is_natted else None
        world.note(number, "moves to", site.name)
        world.network.move(seat.host, f"10.{1 + self._moves % 200}.{number}.1", site, nat)
        world.changed_at = world.agenda.now
        member = world.members.get(number)
        if member is not None and member.is_up and rng.random() < 0.8:
            world.agenda.after(0.01, member.wake)

    def _sleep(self) -> None:
        """A lid is closed for a while: no power for the network, nothing runs."""
        member = self.world.members.get(self._pick())
        if member is not None and member.is_up:
            self.world.note(member.seat.node, "wakes")
            member.wake()

    def _reset_links(self) -> None:
        """A middlebox resets a node's connections."""
        member = self.world.members.get(self._pick())
        if member is not None and member.is_up:
            self.world.note(member.seat.node, "loses its links")
            for link in list(member.links.values()):
                link.close()
            member.settle()

    def _restart_router(self) -> None:
        nats = [seat.host.nat for seat in self.world.seats.values() if seat.host.nat]
        if nats:
            self.rng.choice(nats).forget()
            self.world.note(0, "a router forgets")

    def _plan_key_change(self) -> None:
        """Every node, one after the other: both keys, then the new one first, then it alone."""
        span = self.scenario.trouble_s / 3
        for phase, keys in enumerate(((OLD_KEY, NEW_KEY), (NEW_KEY, OLD_KEY), (NEW_KEY,))):
            for number in self.world.seats:
                wait = span * (phase + self.rng.random() * 0.6)
                self.world.agenda.after(wait, self._set_keys, number, keys)

    def _set_keys(self, number: int, keys: tuple[bytes, ...]) -> None:
        world = self.world
        world.seats[number].keys = keys
        member = world.members.get(number)
        if member is not None and member.is_up:
            member.save()
            world.kill(number)
            world.agenda.after(1.0, self._revive, number)

    # --- in the end ------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Everything that can be whole is whole."""
        world = self.world
        world.run(61.0)  # what was planned before happens still
        world.network.split({})
        world.network.blocked.clear()
        world.network.blocked_protocols.clear()
        world.network.weather = replace(world.network.weather, loss=0.0)
        for number in list(world.seats):
            if number not in world.members or not world.members[number].is_up:
                self._start(number)
        world.note(0, "healed")
        world.changed_at = world.agenda.now

    def agree_s(self) -> float:
        """By when all lists are equal again: a dead link is noticed, dialled anew, and compared.

        A link that nobody uses may be dead until the next keep-alive draws a reset, and TCP itself
        waits up to RETRY_MAX_S before it tries again; then the back-off of whoever dials, and a dial.
        """
        scenario = self.scenario
        return (
            scenario.keepalive_s * 2.6
            + RETRY_MAX_S
            + redial.BACKOFF_MAX_S
            + DIAL_LIMIT_S
            + 2 * liveness.ANSWER_S
            + 20.0
        )

    def _agree(self) -> float:
        """All lists become equal; after so long. Raises InvariantBroken."""
        world = self.world
        healed_at = world.agenda.now
        most = self.agree_s()
        while len(world.digests()) > 1 or self._missing():
            if world.agenda.now > healed_at + most:
                world.broken(
                    f"the lists differ {most:.0f} s after the end of trouble: {self._lists()}"
                )
            world.run(1.0)
        return world.agenda.now - healed_at

    def _missing(self) -> bool:
        count = len(self.world.seats)
        return any(len(member.node.directory) < count for member in self.world.alive())

    def _lists(self) -> str:
        sizes = {m.seat.node: len(m.node.directory) for m in self.world.alive()}
        return f"{len(self.world.digests())} lists, sizes {sizes}"

    def _finish_flows(self) -> None:
        """New ones between everybody work, and the old ones end."""
        world = self.world
        first = len(world.flows)
        for _ in range(3):
            self._open_flow()
        end = world.agenda.now + 2 * self.agree_s() + 400.0
        while any(not flow.is_over for flow in world.flows.values()):
            if world.agenda.now > end:
                stuck = [flow.number for flow in world.flows.values() if not flow.is_over]
                world.broken(f"flows {stuck} neither go on nor end")
            world.run(1.0)
        for flow in world.flows.values():
            if flow.number >= first and flow.fault and not flow.is_refused:
                world.broken(f"flow {flow.number} failed in a whole mesh: {flow.fault.name}")

    def _finish_letters(self) -> None:
        """In a whole mesh every confirmed message is delivered to whom others can find.

        A node behind a router that is no exit lets its bindings lapse while it has nothing to say.
        """
        world = self.world
        written = [self._write() for _ in range(LETTERS_LAST if self.scenario.letters else 0)]
        letters = [letter for letter in written if letter is not None and letter.is_confirmed]
        world.run(GIVE_UP_S + 2.0)
        for letter in letters:
            seat = world.seats[letter.destination]
            is_found = seat.host.nat is None or bool(seat.roles & Role.EXIT)
            if is_found and not letter.is_delivered:
                world.broken(f"letter {letter.number} was not delivered in a whole mesh")

    def _meet_twin(self) -> None:
        """A second node with a number that is taken comes and goes."""
        world, rng = self.world, self.rng
        number = rng.choice([*self.servers, *self.others])
        client = rng.choice([n for n in self.others if n not in self.exits_behind])
        exit = rng.choice([n for n in self.servers if n != number])
        if number in self.servers:
            exit = number
        else:
            client = number
        Twin(world, world.seats[number], client, exit, rng).play(TWIN_S)
        self._agree()
