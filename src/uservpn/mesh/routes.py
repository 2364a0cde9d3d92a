"""Ways to a node that cannot be reached directly: at most two relays, the shortest expected flight first.

The map is the node list: every record names the links that its owner keeps, with their round trips. A
route is chosen by its origin alone and written into each header (source routing), so no two nodes can
ever disagree about the way, and a route that holds no node twice cannot loop. A link that a relay
reported as broken is avoided until the map has changed, or for AVOID_S.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from uservpn.mesh.directory import Directory
from uservpn.mesh.records import Record, Role
from uservpn.types import NodeId

Route = tuple[NodeId, ...]
"""The relays between this node and another one, in order: one or two."""

AVOID_S: Final = 30.0
HOP_S: Final = 0.001
"""What a relay adds to the flight, at least: of two equal ways the shorter one is taken."""
NO_SERVER_S: Final = 1.0
"""Added for a relay that is no server: taken only where there is nothing else."""
UNKNOWN_S: Final = 0.1
"""Flight time of a link nobody has measured yet."""


class Routes:
    """The map of one node, and what it knows to be broken on it."""

    def __init__(self, me: NodeId, directory: Directory | None = None) -> None:
        """`directory`: the list to draw the map from, when somebody asks for a way; None: see `learn`."""
        self._me = me
        self._directory = directory
        self._generation = -1
        self._edges: dict[NodeId, dict[NodeId, float]] = {}
        self._prices: dict[NodeId, float] = {}
        self._avoided: dict[tuple[NodeId, NodeId], float] = {}

    def learn(self, records: Iterable[Record]) -> None:
        """Draws the map anew."""
        edges: dict[NodeId, dict[NodeId, float]] = {}
        self._prices.clear()
        for record in records:
            if record.roles & Role.RELAY:
                price = HOP_S if record.roles & Role.SERVER else NO_SERVER_S
                self._prices[record.node] = price
            for neighbour, rtt_s in record.links:
                for a, b in ((record.node, neighbour), (neighbour, record.node)):
                    known = edges.setdefault(a, {})
                    known[b] = min(rtt_s, known.get(b, rtt_s))
        self._edges = edges

    def avoid(self, a: NodeId, b: NodeId, now: float) -> None:
        """The link between `a` and `b` does not carry, whatever the map says."""
        self._avoided[min(a, b), max(a, b)] = now + AVOID_S

    def forgive(self, node: NodeId) -> None:
        """This node's record is new: what was wrong with its links may be right again."""
        for edge in [edge for edge in self._avoided if node in edge]:
            del self._avoided[edge]

    def neighbours(self, node: NodeId, now: float) -> list[NodeId]:
        """Relays that are linked with `node`, by the map; the best first."""
        self._refresh()
        found = [
            (self._flight(other, node, now, rtt_s) + self._prices[other], other)
            for other, rtt_s in self._edges.get(node, {}).items()
            if other in self._prices and other != self._me
        ]
        return [other for cost, other in sorted(found) if cost < float("inf")]

    def find(
        self, destination: NodeId, linked: Mapping[NodeId, float | None], now: float
    ) -> list[Route]:
        """Ways over this node's links (neighbour to round trip, seconds), the best first.

        Only ways whose last relay, and whose first one, nobody else of the list uses: a relay that
        dies takes at most one of them.
        """
        me = self._me
        costs: list[tuple[float, Route]] = []
        for last in self.neighbours(destination, now):
            tail = self._flight(last, destination, now) + self._prices[last]
            if last in linked:
                costs.append((tail + self._flight(me, last, now, linked[last]), (last,)))
            for first in self.neighbours(last, now):
                if first in linked and first not in (last, destination):
                    cost = tail + self._flight(first, last, now) + self._prices[first]
                    cost += self._flight(me, first, now, linked[first])
                    costs.append((cost, (first, last)))
        found: list[Route] = []
        used: set[NodeId] = set()
        for cost, route in sorted(costs):
            if cost < float("inf") and used.isdisjoint(route):
                found.append(route)
                used.update(route)
        return found

    def _refresh(self) -> None:
        """Draws the map anew if the list has changed since: most changes nobody asks a way after."""
        directory = self._directory
        if directory is not None and self._generation != directory.generation:
            self._generation = directory.generation
            self.learn(directory)

    def _flight(self, a: NodeId, b: NodeId, now: float, rtt_s: float | None = None) -> float:
        """One way, expected, seconds; infinite where the link is avoided."""
        until = self._avoided.get((min(a, b), max(a, b)))
        if until is not None:
            if now < until:
                return float("inf")
            del self._avoided[min(a, b), max(a, b)]
        if rtt_s is None:
            rtt_s = self._edges.get(a, {}).get(b)
        return UNKNOWN_S if rtt_s is None else rtt_s / 2
