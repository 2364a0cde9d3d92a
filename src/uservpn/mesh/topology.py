"""Which peers a node keeps a link to while nobody needs it.

Servers: each other, all of them while they are few, beyond that along the fingers of a ring (Stoica et
al., "Chord", 2001), so that a rumour crosses any mesh in a few hops and nobody has many links. Others:
the configured servers, and some more where fewer than three are linked. Every other link is opened on
demand and closed when idle.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from uservpn.types import NodeId

FULL_MESH_MAX: Final = 9
"""Servers that are all linked with each other."""
HOMES: Final = 3
"""Linked servers that a node which is none wants to have."""


def kept_by_server(me: NodeId, servers: Collection[NodeId]) -> set[NodeId]:
    """The servers that this one dials and keeps; `servers` may hold `me`."""
    ring = sorted({*servers, me})
    if len(ring) <= FULL_MESH_MAX:
        return {server for server in ring if server > me}
    return {other for other in _fingers(me, ring) if me not in _fingers(other, ring) or me < other}


def kept_by_other(
    me: NodeId,
    configured: Collection[NodeId],
    servers: Collection[NodeId],
    linked: Collection[NodeId],
) -> set[NodeId]:
    """The servers that a node which is none dials and keeps.

    `linked`: those that a link stands to. Configured servers are always wanted; what is missing to
    HOMES is made up from the others, linked ones first, then from a place in the ring that is this
    node's own, so that a crowd spreads.
    """
    missing = HOMES - sum(1 for server in configured if server in linked)
    others = sorted(set(servers) - set(configured) - {me})
    start = me % len(others) if others else 0
    turned = others[start:] + others[:start]
    turned.sort(key=lambda server: server not in linked)
    return {*configured, *turned[: max(0, missing)]}


def _fingers(node: NodeId, ring: Sequence[NodeId]) -> set[NodeId]:
    """The nodes 1, 2, 4, ... places further."""
    place = ring.index(node)
    count = len(ring)
    found = set()
    step = 1
    while step < count:
        found.add(ring[(place + step) % count])
        step *= 2
    return found - {node}
