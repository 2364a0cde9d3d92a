"""A transfer between two simulated nodes, and how long it stands still when something happens to the path.

The shipped nodes run on the made-up internet of `uservpn.sim`: 100 ms there and back, 10 Mbit/s, a TCP that
retransmits with back-off. Client 7 downloads from (or uploads to) server 1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from uservpn.mesh.records import Role
from uservpn.sim.flow import Flow
from uservpn.sim.geography import Site
from uservpn.sim.member import Member, Seat
from uservpn.sim.network import Host, Weather
from uservpn.sim.world import World

FLIGHT_S = 0.05
RATE = 1.25e6
SIZE = 1 << 30
"""More than any test carries."""


class Transfer:
    """One flow; `moves` are the times at which its bytes came."""

    def __init__(self, protocols: tuple[str, ...], is_up: bool = False, seed: int = 1) -> None:
        weather = Weather(flight_s=FLIGHT_S, rate=RATE)
        self.world = World(seed, weather, has_story=False)
        self.network = self.world.network
        site = Site("here", "DE", 50.0, 8.0)
        self.server = self.network.add(Host("server", "198.51.100.1", site))
        self.laptop = self.network.add(Host("laptop", "198.51.100.7", site))
        key = (bytes(range(32)),)
        there = Seat(1, self.server, key, Role.SERVER | Role.EXIT, listens=protocols)
        self.world.start(there)
        here = Seat(7, self.laptop, key, servers={1: there.endpoints()})
        self.client: Member = self.world.start(here)
        self.world.run(3)
        up, down = (SIZE, 1000) if is_up else (1000, SIZE)
        self.flow: Flow = self.world.open_flow(7, 1, up, down, 0.0, False)
        self.is_up = is_up
        self.moves: list[float] = []
        self.run(2.5)

    @property
    def now(self) -> float:
        return self.world.agenda.now

    def run(self, seconds: float) -> None:
        """So much time passes."""
        end = self.now + seconds
        sink = self.flow.far if self.is_up else self.flow.near
        done = sink.received if sink else 0
        while self.now < end:
            self.world.run(min(0.005, end - self.now))
            sink = self.flow.far if self.is_up else self.flow.near
            if sink is not None and sink.received > done:
                done = sink.received
                self.moves.append(self.now)
        assert self.flow.fault is None

    def stall(self, trouble: Callable[[Transfer], None], seconds: float = 4.0) -> float:
        """The longest time without a byte from the trouble's begin on; `seconds` after its end."""
        self.moves = [self.now]
        trouble(self)
        self.run(seconds)
        times = [*self.moves, self.now]
        return max(b - a for a, b in pairwise(times))

    def carriers(self) -> set[str]:
        """What the server and the client send over now."""
        found = set()
        for node, peer in ((1, 7), (7, 1)):
            member = self.world.members[node]
            other = member.node.peers[peer]
            found.add(member.node.links[other.sent_over].protocol)
        return found


def black_hole(seconds: float) -> Callable[[Transfer], None]:
    """Nothing passes for a while."""

    def trouble(transfer: Transfer) -> None:
        pair = frozenset(("server", "laptop"))
        transfer.network.blocked.add(pair)
        transfer.run(seconds)
        transfer.network.blocked.clear()

    return trouble


def blocked(protocol: str) -> Callable[[Transfer], None]:
    """Nothing of one protocol passes any more."""
    return lambda transfer: transfer.network.blocked_protocols.add(("laptop", protocol))


def narrow(transfer: Transfer) -> None:
    """The path carries packets of 1,280 bytes, and says nothing of those that are larger."""
    transfer.network.weather.size_max = 1280 - 28


def reset(transfer: Transfer) -> None:
    """The client's connections are reset."""
    for end in list(transfer.laptop.ends):
        end.abort()
        end.owner.closed(end, "reset")


def moved(transfer: Transfer) -> None:
    """The client has another address, and its system says so."""
    transfer.network.move(transfer.laptop, "198.51.100.77", transfer.laptop.site, None)
    transfer.client.wake()
