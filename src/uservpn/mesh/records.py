"""A node's record: who it is and where it can be reached. Only its owner writes it.

Layout (docs/wire.md, section Records): node 1, boot 8, version 4, roles 2; name, country, software,
each with its length in a byte; a count of endpoints, each kind 1, length 1, text; a count of links, each
neighbour 1, round trip 2 (0.1 ms); then whatever a later version adds, which is kept and passed on
as it is.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from uservpn.errors import PeerFault
from uservpn.kit.endpoint import Endpoint
from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, NodeId
from uservpn.wire.constants import BOOT_MAX

RECORD_SIZE_MAX: Final = 1000
"""Bytes of one record: it fits into a datagram."""
ENDPOINTS_MAX: Final = 12
LINKS_MAX: Final = 48
NAME_SIZE_MAX: Final = 64
COUNTRY_SIZE_MAX: Final = 2
SOFTWARE_SIZE_MAX: Final = 32
_HEAD: Final = struct.Struct(">BQIH")
_LINK: Final = struct.Struct(">BH")
_TICKS: Final = 10_000
"""Of a round trip, in a second."""


class Role(enum.IntFlag):
    """What a node is ready to do."""

    NONE = 0
    SERVER = 1
    """It has a fixed endpoint."""
    EXIT = 2
    ENTRY = 4
    RELAY = 8


class EndpointKind(enum.IntEnum):
    """How an endpoint is known."""

    FIXED = 1
    LOCAL = 2
    OBSERVED = 3


_KINDS: Final = {int(kind): kind for kind in EndpointKind}


class Known(NamedTuple):
    """An endpoint and how it is known."""

    kind: EndpointKind
    endpoint: str


class Edge(NamedTuple):
    """A link that its owner keeps open."""

    neighbour: NodeId
    rtt_s: float
    """Coarse on purpose (`coarse`): it changes seldom."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a node says of itself."""

    node: NodeId
    boot: int
    version: int = 0
    """Counts the owner's changes since its start."""
    roles: Role = Role.NONE
    name: str = ""
    country: str = ""
    software: str = ""
    endpoints: tuple[Known, ...] = ()
    links: tuple[Edge, ...] = ()
    """To the neighbours that it keeps a link to, in the order of their numbers."""
    extra: bytes = b""
    """What this version does not know."""

    @property
    def stamp(self) -> tuple[int, int]:
        """(boot, version): the higher one is the newer record."""
        return self.boot, self.version

    def has_fixed_endpoint(self) -> bool:
        """Can anybody dial it?"""
        return any(known.kind == EndpointKind.FIXED for known in self.endpoints)

    def encode(self) -> bytes:
        """The record as bytes, at most RECORD_SIZE_MAX of them; over-long texts are cut."""
        parts = [_HEAD.pack(self.node, self.boot, self.version, self.roles)]
        for text, size_max in (
            (self.name, NAME_SIZE_MAX),
            (self.country, COUNTRY_SIZE_MAX),
            (self.software, SOFTWARE_SIZE_MAX),
        ):
            data = text.encode()[:size_max].decode(errors="ignore").encode()
            parts += (bytes((len(data),)), data)
        endpoints = self.endpoints[:ENDPOINTS_MAX]
        parts.append(bytes((len(endpoints),)))
        for kind, endpoint in endpoints:
            data = endpoint.encode()
            parts += (bytes((kind, len(data))), data)
        links = self.links[:LINKS_MAX]
        parts.append(bytes((len(links),)))
        parts += [_LINK.pack(node, min(round(rtt_s * _TICKS), 0xFFFF)) for node, rtt_s in links]
        parts.append(self.extra)
        return b"".join(parts)


def decode(data: bytes) -> Record:
    """The record in these bytes.

    Raises:
        PeerFault: they are no record.
    """
    if len(data) > RECORD_SIZE_MAX:
        raise PeerFault("a record is too long")
    try:
        node, boot, version, roles = _HEAD.unpack_from(data)
        at = _HEAD.size
        name, at = _text(data, at, NAME_SIZE_MAX)
        country, at = _text(data, at, COUNTRY_SIZE_MAX)
        software, at = _text(data, at, SOFTWARE_SIZE_MAX)
        count = data[at]
        at += 1
        endpoints = []
        for _ in range(count):
            kind = data[at]
            text, at = _text(data, at + 1, 255)
            known = known_of(kind, text)
            if known is not None:
                endpoints.append(known)
        link_count = data[at]
        links_end = at + 1 + link_count * _LINK.size
        if links_end > len(data) or link_count > LINKS_MAX:
            raise PeerFault("the links of a record are cut off or too many")
        links = tuple(
            Edge(NodeId(neighbour), ticks / _TICKS)
            for neighbour, ticks in _LINK.iter_unpack(data[at + 1 : links_end])
        )
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise PeerFault(f"a record is malformed: {error}") from None
    if not NODE_ID_MIN <= node <= NODE_ID_MAX or count > ENDPOINTS_MAX or boot > BOOT_MAX:
        raise PeerFault("a record has an impossible number")
    return Record(
        NodeId(node),
        boot,
        version,
        Role(roles),
        name,
        country,
        software,
        tuple(endpoints),
        links,
        data[links_end:],
    )


def stamp_of(data: bytes) -> tuple[int, tuple[int, int]]:
    """Node and stamp of a record, without a look at the rest.

    Raises:
        PeerFault: it is cut off.
    """
    if len(data) < _HEAD.size:
        raise PeerFault("a record is cut off")
    node, boot, version, _ = _HEAD.unpack_from(data)
    return node, (boot, version)


def known_of(kind: int, text: str) -> Known | None:
    """An endpoint as it came; None: of a later version's kind, or in a zone of some machine (RFC 4007).

    Raises:
        ValueError: the text is no endpoint.
    """
    if kind not in _KINDS:
        return None
    endpoint = _canonical(text)
    return None if "%" in endpoint.partition("]")[0] else Known(_KINDS[kind], endpoint)


@lru_cache(maxsize=512)
def _canonical(text: str) -> str:
    """An endpoint in its one form; records bring the same ones again and again.

    Never longer than `text`, or a record that fits would not fit any more when it is passed on.
    """
    return min(str(Endpoint.parse(text)), text, key=len)


def coarse(rtt_s: float) -> float:
    """A round trip rounded to two binary digits: records follow the network, not its noise."""
    ticks = max(1, round(rtt_s * _TICKS))
    unit = 1 << max(0, ticks.bit_length() - 2)
    return min((ticks + unit // 2) // unit * unit, 0xFFFF) / _TICKS


def _text(data: bytes, at: int, size_max: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    if end > len(data) or data[at] > size_max:
        raise PeerFault("a text of a record is cut off or too long")
    return data[at + 1 : end].decode(), end
