"""What a node is told at its start, and what it tells whoever drives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from uservpn.mesh.flight import Leg
from uservpn.mesh.records import Record
from uservpn.tunnel.events import Event
from uservpn.types import LinkId, NodeId


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node is told at its start."""

    node: NodeId
    boot: int
    servers: Mapping[NodeId, tuple[str, ...]]
    record: Record | None = None
    """What this node says of itself; None: only that it is there."""
    keepalive_s: float = 600.0
    grace_s: float = 60.0
    chacha: bool = False
    instance: bytes = b""
    """8 bytes that stay the same from start to start; none: random ones, which tell no restart."""
    relay_share: float = 0.0
    """The share of bulk traffic, 0 to 1, that goes over relays wherever there is a way."""
    protocols: frozenset[str] = frozenset()
    """Those of the links that can be opened; empty: all."""


class DialWanted(NamedTuple):
    """Please open a link to this endpoint of `peer`, then say `link_up` or `dial_failed`."""

    peer: NodeId
    endpoint: str


class CloseWanted(NamedTuple):
    """Please close this link."""

    link: LinkId


class PeerNews(NamedTuple):
    """Something an operator may want to read; one line of the log."""

    peer: NodeId
    text: str
    level: Literal["info", "warning"]


class Message(NamedTuple):
    """An out-of-band message came."""

    peer: NodeId
    topic: str
    payload: bytes


class MessageResult(NamedTuple):
    """A confirmed out-of-band message of ours is over."""

    token: int
    """What `Node.send_message` returned."""
    delivered: bool
    """True: the peer has it. False: it may have it, but never said so."""


class Pong(NamedTuple):
    """The answer to a `Node.ping` came."""

    token: bytes
    peer: NodeId
    link: LinkId
    rtt_s: float
    legs: tuple[Leg, ...]
    """The hops of the way, the last one's end is `peer`."""


NodeEvent = DialWanted | CloseWanted | PeerNews | Message | MessageResult | Pong | Event
