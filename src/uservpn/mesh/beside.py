"""Connections beside one over which much flows, for what should not wait behind it.

Why a tunnel wants them: docs/congestion.md, "Connections for what should not wait". Whoever dialled the first
connection dials them, to the same endpoint; the other end keeps so many of a kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from uservpn.mesh.liveness import LinkState

BESIDE_MAX: Final = 2
"""So many links of a kind stand beside one over which much flows: on two of them each small message leaves
twice, and neither carries bulk."""
BESIDE_S: Final = 30.0
"""They are closed so long after they were last wanted..."""
BESIDE_AGAIN_S: Final = 60.0
"""...and dialled again at the earliest so long after one failed, or one of several was lost."""


def _up_at(state: LinkState) -> float:
    return state.up_at


class Beside:
    """One peer's connections beside another: those being dialled, and when they are dialled again or end."""

    def __init__(self) -> None:
        self._endpoint = ""
        """Where some are being dialled..."""
        self._dials = 0
        """...and how many."""
        self._until = 0.0
        self._after = 0.0

    def wanted(self, now: float) -> None:
        """They stay BESIDE_S longer."""
        self._until = now + BESIDE_S

    def missing(self, states: Iterable[LinkState], endpoint: str, now: float) -> int:
        """How many the caller dials there now, beside these of the kind; none for a while after a failure."""
        if now < self._after or self._dials:
            return 0
        self._endpoint = endpoint
        self._dials = max(0, BESIDE_MAX + 1 - sum(1 for _ in states))
        return self._dials

    def ends_dial(self, endpoint: str) -> bool:
        """Is this the result of a dial of one of them? Then it is one fewer."""
        if not self._dials or endpoint != self._endpoint:
            return False
        self._dials -= 1
        return True

    def failed(self, now: float) -> None:
        """One could not be dialled, or was lost."""
        self._after = now + BESIDE_AGAIN_S

    def forget_dials(self) -> None:
        """What was dialled will not count any more."""
        self._dials = 0

    def those(self, links: Iterable[LinkState]) -> list[LinkState]:
        """Of the connections that this node opened, all but the oldest one of each kind."""
        opened = [s for s in links if s.dialled and not s.relayed and not s.is_lossy]
        if len(opened) < 2:
            return []
        oldest: dict[str, LinkState] = {}
        for state in sorted(opened, key=_up_at):
            oldest.setdefault(state.protocol, state)
        return [state for state in opened if oldest[state.protocol] is not state]

    def ends_at(self, links: Iterable[LinkState]) -> float:
        """When they go; infinite: there are none."""
        those = self.those(links)
        if not those:
            return math.inf
        return max(self._until, max(map(_up_at, those)) + BESIDE_S)
