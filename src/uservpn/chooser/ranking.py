"""Which of several exits: by what is measured, else by country, else in the owner's order.

A session's exit is given up only at its end, and only for one that is clearly better on more than one
sample: that is all there is against flapping, and enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from uservpn.chooser.cases import ExitState
from uservpn.chooser.measure import NEVER_MS, SAMPLES_MIN, Knowledge
from uservpn.types import NodeId

HYSTERESIS: Final = 0.07
"""How much better another exit must be than the last one to take over a new session."""
HYSTERESIS_MS: Final = 1.0
TESTS_MIN: Final = 2
"""Samples, tests and real ones, without which an exit does not take a session over."""
CONTENDER: Final = 1.5
"""An exit that is expected to take longer than the best by this factor is not looked at again."""
REFRESH_S: Final = 3 * 3600.0
"""What is known is looked at anew when it is this old."""


class Ranking:
    """Orders exits for a site. `at` is Unix time."""

    def __init__(self, knowledge: Knowledge, near: Callable[[str, str], float | None]) -> None:
        """`near` is the distance between two countries in any unit, None where it is unknown."""
        self._knowledge = knowledge
        self._near = near

    def best(
        self, site: str, pool: Sequence[ExitState], last: NodeId | None, at: float
    ) -> tuple[NodeId | None, bool]:
        """The exit that is measured best; `last` keeps its place unless beaten clearly.

        False: another one looks better, but too little is known of it.
        """
        expected = self._knowledge.expected(site, at)
        all_ = {state.node: expected[state.node] for state in pool if state.node in expected}
        known = {
            node: ms
            for node, ms in all_.items()
            if node == last or self._knowledge.samples(site, node, at) >= TESTS_MIN
        }
        if not known:
            return None, False
        best = min(known, key=lambda node: known[node])
        if known[best] >= NEVER_MS / 2:
            return None, False  # all that is known is bad: find out
        if last is not None and last in known and not _is_better(known[best], known[last]):
            best = last
        return best, not _is_better(min(all_.values()), known[best])

    def likely(self, site: str, pool: Iterable[ExitState], at: float) -> list[ExitState]:
        """The pool, what is worth a test first; equals in the owner's order."""
        expected = self._knowledge.expected(site, at)

        def takes(state: ExitState) -> float:
            flight = NEVER_MS if state.flight_ms is None else state.flight_ms
            return expected.get(state.node, flight)

        return sorted(pool, key=takes)

    def contenders(self, site: str, pool: Iterable[ExitState], at: float) -> list[ExitState]:
        """Those that may be better than the best, and are known too little or not lately."""
        expected = self._knowledge.expected(site, at)
        limit = CONTENDER * min(expected.values(), default=NEVER_MS)
        found = []
        for state in pool:
            is_known = self._knowledge.samples(site, state.node, at) >= SAMPLES_MIN
            newest = self._knowledge.newest(site, state.node)
            is_lately = newest is not None and at < newest + REFRESH_S
            least = expected.get(state.node, 0.0)
            if not is_known or least >= NEVER_MS / 2:
                least = state.flight_ms or 0.0
            if least <= limit and not (is_known and is_lately):
                found.append(state)
        return found

    def by_order(self, country: str, pool: Sequence[ExitState]) -> tuple[NodeId, str]:
        """Without a measurement: the exit, and why; `country` is the site's, "" if unknown."""
        pool = [state for state in pool if state.is_linked] or pool
        if country:
            far = [
                (distance, index)
                for index, state in enumerate(pool)
                if (distance := self._near(country, state.candidate.country)) is not None
            ]
            if far:
                return pool[min(far)[1]].node, "nearest"
        return pool[0].node, "owner's order"


def _is_better(one: float, other: float) -> bool:
    """Better by more than what changes by itself?"""
    return one < other * (1 - HYSTERESIS) and one < other - HYSTERESIS_MS
