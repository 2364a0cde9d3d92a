"""Which targets have connected through which exit: for those a program need not wait for the answer."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from uservpn.types import NodeId

REACHED_MAX: Final = 8192
"""Targets remembered; the one unused for longest is forgotten."""


class Reached:
    """Targets that connected, and have not failed since."""

    def __init__(self) -> None:
        self._targets: OrderedDict[tuple[int, str, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._targets)

    def has(self, exit: NodeId, host: str, port: int) -> bool:
        """Did it connect?"""
        return (exit, host, port) in self._targets

    def add(self, exit: NodeId, host: str, port: int) -> None:
        """It connected."""
        target = (exit, host, port)
        self._targets[target] = None
        self._targets.move_to_end(target)
        if len(self._targets) > REACHED_MAX:
            self._targets.popitem(last=False)

    def drop(self, exit: NodeId, host: str, port: int) -> None:
        """It failed."""
        self._targets.pop((exit, host, port), None)
