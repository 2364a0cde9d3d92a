"""Which peers a node keeps a link to while nobody needs it.

Servers: each other, all of them while they are few, beyond that along the fingers of a ring (Stoica et
al., "Chord", 2001), so that a rumour crosses any mesh in a few hops and nobody has many links. Others:
the configured servers, and some more where fewer than three are linked, the near ones of those that have
been measured. Every other link is opened on demand and closed when idle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from uservpn.types import NodeId

FULL_MESH_MAX: Final = 9
"""Servers that are all linked with each other."""
HOMES: Final = 3
"""Linked servers that a node which is none wants to have."""


MUCH_NEARER: Final = 0.7
NEARER_S: Final = 0.005
"""So much of a kept one's round trip, less this, is what another one has to have to take its place."""
FAR_S: Final = 100.0


def kept_by_server(
    me: NodeId, servers: Collection[NodeId], failing: Collection[NodeId] = ()
) -> set[NodeId]:
    """The servers that this one dials and keeps; `servers` may hold `me`.

    `failing`: those that cannot be reached now. They are still tried, and the ring is closed without
    them, too.
    """
    kept = _dialled(me, sorted({*servers, me}))
    if failing:
        kept |= _dialled(me, sorted({*servers, me}.difference(failing)))
    return kept


def linked_with_server(me: NodeId, servers: Collection[NodeId]) -> set[NodeId]:
    """The servers that a link stands to once all is well, whichever end dials it; `servers` may hold `me`."""
    ring = sorted({*servers, me})
    if len(ring) <= FULL_MESH_MAX:
        return set(ring) - {me}
    return _fingers(me, ring) | {other for other in ring if me in _fingers(other, ring)}


def _dialled(me: NodeId, ring: Sequence[NodeId]) -> set[NodeId]:
    """Whom of this ring `me` dials: one end of each link does."""
    if len(ring) <= FULL_MESH_MAX:
        return {server for server in ring if server > me}
    return {other for other in _fingers(me, ring) if me not in _fingers(other, ring) or me < other}


def kept_by_other(
    me: NodeId,
    configured: Collection[NodeId],
    servers: Collection[NodeId],
    linked: Mapping[NodeId, float | None],
    kept: Collection[NodeId] = (),
    failing: Collection[NodeId] = (),
) -> set[NodeId]:
    """The servers that a node which is none dials and keeps.

    `linked`: those that a link stands to, and their round trips where measured; `kept`: those that were
    kept so far. Configured servers are always wanted; what is missing to HOMES is made up from the others,
    linked ones first, of those the nearest, then from a place in the ring that is this node's own, so
    that a crowd spreads, and last those that are `failing` to be reached. One takes the place of one that
    is kept only if it is much nearer.
    """
    missing = HOMES - sum(1 for server in configured if server in linked)
    others = sorted(set(servers) - set(configured) - {me})
    start = me % len(others) if others else 0
    turned = others[start:] + others[:start]

    def distance(server: NodeId) -> float:
        if server not in linked:
            return FAR_S + (2.0 if server in failing else 1.0)
        rtt_s = linked[server]
        if rtt_s is None:
            return FAR_S if server not in kept else 0.0
        return rtt_s * MUCH_NEARER if server in kept else rtt_s + NEARER_S

    turned.sort(key=distance)
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
