"""Small neighbouring chunks of one stream become one before they are handed on.

Datagrams bring chunks of a kilobyte, and each costs its owner a write, a sum and a look at its credit:
more than the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final, cast

from uservpn.node.options import NodeEvent
from uservpn.tunnel.events import Data

JOIN_FROM: Final = 8
"""Fewer events are handed on as they are."""
JOIN_MAX: Final = 16 << 10
"""Chunks up to this size are joined with their neighbours..."""
JOINED_COUNT: Final = 64
"""...so many at most."""


def joined(events: list[NodeEvent]) -> list[NodeEvent]:
    """The same events, with fewer chunks."""
    out: list[NodeEvent] = []
    for (stream, is_small), run in groupby(events, _chunk_of):
        if not is_small:
            out += run
            continue
        chunks = [event.chunk for event in cast("Iterator[Data]", run)]
        for start in range(0, len(chunks), JOINED_COUNT):
            part = chunks[start : start + JOINED_COUNT]
            out.append(Data(stream, b"".join(part) if len(part) > 1 else part[0]))
    return out


def _chunk_of(event: NodeEvent) -> tuple[Any, bool]:
    """The stream of a small chunk, and that it is one."""
    if type(event) is Data and len(event.chunk) <= JOIN_MAX:
        return event.stream, True
    return None, False
