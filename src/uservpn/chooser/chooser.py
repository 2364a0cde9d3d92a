"""Which exit a new connection leaves through.

In this version: the exit the program names (`exit=3` as its user name), else the configured default,
else the first reachable server in the owner's order. Site rules, affinity and measurement join here,
behind the same three questions. Sans-I/O; what is reachable is asked of the owner.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Literal

from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, NodeId

KNOWN_MAX: Final = 8192
"""Targets remembered as having connected; the one unused for longest is forgotten."""


class Chooser:
    """Chooses exits and remembers which targets have connected through which."""

    def __init__(
        self,
        default: Literal["auto"] | int | str,
        servers: Sequence[NodeId],
        is_reachable: Callable[[NodeId], bool],
        is_exit: Callable[[NodeId], bool] = lambda node: False,
    ) -> None:
        """`is_exit` answers for nodes beyond `servers`, which are taken for exits unasked."""
        self._default = default
        self._servers = tuple(servers)
        self._is_reachable = is_reachable
        self._is_exit = is_exit
        self._known: OrderedDict[tuple[int, str, int], None] = OrderedDict()

    def reconfigure(self, default: Literal["auto"] | int | str, servers: Sequence[NodeId]) -> None:
        """Live change; what is known stays known."""
        self._default = default
        self._servers = tuple(servers)

    def choose(self, host: str, port: int, user: str | None) -> NodeId | None:
        """The exit for a connection to `host`:`port`; None: there is none, or it is not known."""
        if user and "=" in user:
            named = _named_exit(user)
            if named is not None:
                return named if self._may_leave_at(named) else None
        if isinstance(self._default, int):
            chosen = NodeId(self._default)
            return chosen if self._may_leave_at(chosen) else None
        for server in self._servers:
            if self._is_reachable(server):
                return server
        for server in map(NodeId, range(NODE_ID_MIN, NODE_ID_MAX + 1)):
            if self._is_reachable(server) and self._is_exit(server):
                return server  # none of the owner's is up: another one of the mesh
        return self._servers[0] if self._servers else None

    def _may_leave_at(self, exit: NodeId) -> bool:
        return exit in self._servers or self._is_exit(exit)

    def knows(self, exit: NodeId, host: str, port: int) -> bool:
        """Has this target connected through this exit before (and not failed since)?"""
        return (exit, host, port) in self._known

    def connected(self, exit: NodeId, host: str, port: int) -> None:
        """The exit reached the target."""
        target = (exit, host, port)
        self._known[target] = None
        self._known.move_to_end(target)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def failed(self, exit: NodeId, host: str, port: int) -> None:
        """The exit did not reach the target: the next answer waits for the result."""
        self._known.pop((exit, host, port), None)


def _named_exit(user: str) -> NodeId | None:
    for part in user.split(","):
        name, _, value = part.partition("=")
        if name.strip() == "exit" and value.strip().isdigit():
            return NodeId(int(value))
    return None
