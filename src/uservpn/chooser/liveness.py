"""Which exits are there to carry anything: not dead, not lost, not mute.

An exit is *dead* when connections ended with it, until it is linked again; *lost* when there is no link
and tries to open one fail; *mute* when it is linked but nothing comes through it: several connections in
a row, to sites that did answer through it before, heard nothing. None of this counts while no other exit
is linked: then it is this node that is offline, and nothing should move.
"""

from __future__ import annotations

from typing import Final

from uservpn.chooser.cases import Mesh
from uservpn.types import NodeId

MUTE_COUNT: Final = 6
"""So many connections in a row without a reply, to at least `MUTE_SITES`: the exit is mute."""
MUTE_SITES: Final = 3
MUTE_S: Final = 600.0
"""For so long, unless something comes through it before."""


class Liveness:
    """What is known of all exits; bounded by their number."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._dead: set[NodeId] = set()
        self._silence: dict[NodeId, list[str]] = {}  # the sites that last gave no reply
        self._mute: dict[NodeId, float] = {}  # until when

    # --- what happens ----------------------------------------------------------------------------

    def died(self, exit: NodeId) -> None:
        """Connections ended with it."""
        if self._is_another_linked(exit):
            self._dead.add(exit)

    def silent(self, exit: NodeId, site: str, now: float) -> None:
        """A site that did answer through this exit gave no reply."""
        silence = self._silence.setdefault(exit, [])
        silence.append(site)
        if len(silence) >= MUTE_COUNT and len(set(silence)) >= MUTE_SITES:
            self._mute[exit] = now + MUTE_S
        del silence[:-MUTE_COUNT]

    def speaks(self, exit: NodeId) -> None:
        """Something came through it."""
        if self._silence:
            self._silence.pop(exit, None)
            self._mute.pop(exit, None)

    # --- questions -------------------------------------------------------------------------------

    def is_well(self, exit: NodeId) -> bool:
        """The quick question: surely not gone?"""
        if self._mute or not self._mesh.is_linked(exit):
            return False
        self._dead.discard(exit)
        return True

    def is_gone(self, exit: NodeId, now: float, is_another_linked: bool | None = None) -> bool:
        """Dead, lost or mute, while somebody else is there (looked up where that is not given)."""
        if now >= self._mute.get(exit, 0.0):
            self._mute.pop(exit, None)
            if self._mesh.is_linked(exit):
                self._dead.discard(exit)
                return False
            if exit not in self._dead and not self._mesh.is_lost(exit):
                return False
        return self._is_another_linked(exit) if is_another_linked is None else is_another_linked

    def word(self, exit: NodeId, now: float) -> str:
        """For people: linked, mute, dead, down, or known (it can be dialled)."""
        if now < self._mute.get(exit, 0.0):
            return "mute"
        if self._mesh.is_linked(exit):
            return "linked"
        if exit in self._dead:
            return "dead"
        return "down" if self._mesh.is_lost(exit) else "known"

    def _is_another_linked(self, exit: NodeId) -> bool:
        return any(state.is_linked and state.node != exit for state in self._mesh.exits())
