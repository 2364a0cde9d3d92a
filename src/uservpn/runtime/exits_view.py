"""The mesh as the chooser sees it: which nodes are exits, how far they are, whether they are there."""

from __future__ import annotations

from typing import Final

from uservpn.chooser.cases import ExitState
from uservpn.chooser.targets import Candidate
from uservpn.mesh.records import Role
from uservpn.node.node import Node
from uservpn.runtime.clock import monotonic
from uservpn.types import NodeId

_EXIT: Final = int(Role.EXIT)


class ExitsView:
    """Answers from the node itself; nothing is kept."""

    def __init__(self, node: Node, servers: tuple[NodeId, ...]) -> None:
        """`servers` are the configured ones: exits unless their record says otherwise."""
        self.servers = servers
        self._node = node

    def exits(self) -> list[ExitState]:
        """Every exit that could be reached: the configured servers in their order, then the others."""
        directory, now, own = self._node.directory, monotonic(), self._node.options.node
        found = [server for server in self.servers if not self._is_none(server)]
        for record in directory:
            node = record.node
            is_other = node not in self.servers and node != own
            if record.roles & Role.EXIT and is_other and self._node.can_reach(node, now):
                found.append(node)
        return [self._state(node) for node in found]

    def is_linked(self, exit: NodeId) -> bool:
        """Is it an exit, and is there a link to it now, or a way over a relay?"""
        peer = self._node.peers.get(exit)
        return peer is not None and bool(peer.contact.links) and not self._is_none(exit)

    def is_lost(self, exit: NodeId) -> bool:
        """Is it no exit any more? Or has it no link, and have tries to get one failed?"""
        peer = self._node.peers.get(exit)
        return peer is None or peer.contact.is_failing or self._is_none(exit)

    def _is_none(self, node: NodeId) -> bool:
        """Does its record say that it is no exit?"""
        record = self._node.directory.get(node)
        if record is None:
            return False
        roles = int(record.roles)  # asked for each connection: flags are slow
        return bool(roles) and not roles & _EXIT

    def flight_ms(self, exit: NodeId) -> float | None:
        """To it and back; None: not measured."""
        peer = self._node.peers.get(exit)
        if peer is None or not peer.contact.links:
            return None
        rtt_s = peer.contact.links[0].rtt_s
        return None if rtt_s is None else rtt_s * 1000

    def heard_at(self, exit: NodeId) -> float:
        """When it was last heard, monotonic seconds; 0.0: never."""
        peer = self._node.peers.get(exit)
        return (peer.contact.heard_at or 0.0) if peer is not None else 0.0

    def _state(self, exit: NodeId) -> ExitState:
        record = self._node.directory.get(exit)
        name, country = (record.name, record.country) if record else ("", "")
        candidate = Candidate(exit, name, country)
        return ExitState(candidate, self.is_linked(exit), self.flight_ms(exit))
