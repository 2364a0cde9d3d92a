"""A second node with a number that is taken comes into a whole mesh: the first one does not feel it.

Both are told, the later one stands back in time and stays away, and whoever has connections through the
first one, or from it, keeps them. (The same in a few nodes and with every fault of its own:
`tests/unit/test_numbers.py`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from uservpn.sim.flow import Flow
from uservpn.sim.geography import SITES
from uservpn.sim.member import Member, Seat
from uservpn.sim.network import Host
from uservpn.sim.world import World

FIRST_S: Final = 3.0
"""So long connections run before the second one comes: who has said nothing for long may be gone for all that
anybody knows, and is found out later."""
STAYS_AWAY_S: Final = 20.0
FLOW_SIZE: Final = 20_000
FLOW_S: Final = 60.0
"""By when a connection in the whole mesh is over."""


class Twin:
    """The visit of one second node: `seat` is the first one's, `client` and `exit` use the first one."""

    def __init__(self, world: World, seat: Seat, client: int, exit: int, rng: Random) -> None:
        self._world = world
        self._first = seat
        self._client = client
        self._exit = exit
        self._rng = rng
        self._flows: list[Flow] = []

    def play(self, limit_s: float) -> None:
        """It comes, is sent away within `limit_s` seconds, and ends. Raises InvariantBroken."""
        world = self._world
        self._go_on(FIRST_S, lambda: False)
        second = self._come()
        if not self._go_on(limit_s, lambda: second.node.table.is_back):
            world.broken(f"two nodes have had the number {second.seat.node} for {limit_s:.0f} s")
        first = world.members[second.seat.node]
        self._go_on(STAYS_AWAY_S, lambda: False)
        if not second.node.table.is_back:
            world.broken(f"the second node {second.seat.node} came back at once")
        for member in (first, second):
            if not any("duplicate" in text for text in member.news):
                world.broken(f"one of two nodes {second.seat.node} was not told")
        if not any(second.seat.host.ip in text for text in first.news if "duplicate" in text):
            world.broken(f"node {second.seat.node} was not told where the other one is")
        self._end(second)
        self._finish()

    def _come(self) -> Member:
        """It starts, on a machine of its own, with the configuration of the first one."""
        world, rng, number = self._world, self._rng, self._first.node
        host = world.network.add(Host(f"twin{number}", f"192.0.2.{number}", rng.choice(SITES)))
        servers = {n: ways for n, ways in self._first.servers.items() if n != number}
        if not servers:  # the one that all know: its twin has to know another
            chosen = next(s for s in world.seats.values() if s.listens and s.node != number)
            servers = {chosen.node: chosen.endpoints()}
        seat = replace(
            self._first, host=host, servers=servers, nodes=b"", last_boot=0, start_count=0
        )
        second = Member(world, seat)
        world.twins.append(second)
        world.note(number, "has a twin")
        second.start()
        world.changed_at = world.agenda.now
        return second

    def _go_on(self, seconds: float, is_over: Callable[[], bool]) -> bool:
        """So much time passes, at most, with connections all the time; was it over in time?"""
        world = self._world
        end = world.agenda.now + seconds
        while world.agenda.now < end:
            if is_over():
                return True
            if not self._flows or self._flows[-1].is_over:
                size = self._rng.randrange(FLOW_SIZE)
                flow = world.open_flow(self._client, self._exit, size, size, 0.1, False)
                self._flows.append(flow)
            world.run(1.0)
            self._check()
        return is_over()

    def _check(self) -> None:
        world, number = self._world, self._first.node
        if world.members[number].node.table.is_back:
            world.broken(f"the first node {number} stands back")
        for flow in self._flows:
            if flow.fault:
                world.broken(f"flow {flow.number} suffers by a second node {number}: {flow.fault}")
            if not flow.is_over and world.agenda.now > flow.opened_at + FLOW_S:
                world.broken(f"flow {flow.number} hangs, with a second node {number}")

    def _end(self, second: Member) -> None:
        world = self._world
        world.note(second.seat.node, "has no twin any more")
        second.kill()
        world.twins.remove(second)
        world.changed_at = world.agenda.now

    def _finish(self) -> None:
        """All connections come to their end."""
        while any(not flow.is_over for flow in self._flows):
            self._world.run(1.0)
            self._check()
