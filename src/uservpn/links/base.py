"""What a link is: the seam between the node and every protocol below it.

A link carries whole messages (header, payload) to one adjacent node. A plug-in is a module-level object with
`scheme`, `connect` and `serve`, registered as an entry point of the group `uservpn.links`. Links call
back into a `LinkOwner` (the driver) on the event loop; they know nothing of what messages mean.

A protocol whose links share something, such as one socket for all of a node's traffic, registers a
`PluginFactory` instead: each node asks it once for a plug-in of its own, a `NodePlugin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from uservpn.kit.endpoint import Endpoint
from uservpn.types import Buffer, LinkId
from uservpn.wire.header import Header, HeaderCodec, Run


@dataclass(frozen=True, slots=True)
class LinkCaps:
    """What a link can do; the layers above adapt to this, never to the kind of link."""

    protocol: str
    payload_size_max: int
    """Largest sealed payload of one message, bytes."""
    is_ordered: bool
    is_reliable: bool
    payload_size_base: int = 0
    """Where a message may be too large for the path and is then lost without a word: what surely gets
    through. The node starts there and finds by probes what more does, up to `payload_size_max`
    (mesh/pathmtu.py). 0: everything up to `payload_size_max` gets through."""
    is_self_bounding: bool = False
    """Its `room` keeps the path's queue short, by what the layer below tells; else the tunnel has to."""
    is_costly: bool = False
    """Reliable by work in this process, not in the kernel (as TCP): on short paths others are preferred."""


class Link(Protocol):
    """One open link."""

    id: LinkId
    caps: LinkCaps
    local: str
    remote: str
    bytes_in: int
    bytes_out: int

    def room(self) -> int:
        """Bytes that may be sent now without queueing more than the link should; may be <= 0."""

    def send(self, batch: Sequence[Buffer]) -> None:
        """Sends headers and payloads, in this order. Takes all; never blocks, never raises.

        Parts that are no `bytes` are only valid until this returns: what is kept of them is copied.
        A batch may be a `Train` (wire/train.py), which is sealed when it is looked at.
        A link that is not reliable may drop what it cannot send, and counts it.
        """

    def close(self) -> None:
        """Closes at once; `link_closed` follows."""


class LinkOwner(Protocol):
    """Who the links report to."""

    def new_link_id(self) -> LinkId:
        """A fresh number."""

    def link_opened(self, link: Link) -> None:
        """A peer opened a link to us (who it is, its first message tells)."""

    def link_message(self, link: Link, header: Header, body: Buffer) -> None:
        """A message with a genuine header; `body` is valid until this returns."""

    def link_runs(self, link: Link, runs: Sequence[Run]) -> None:
        """As `link_message`, for all that one read has brought: costs less for each."""

    def link_progress(self, link: Link) -> None:
        """Bytes of a large message moved."""

    def link_stalled(self, link: Link, silent_s: float) -> None:
        """For so long the other machine has acknowledged nothing of what was sent; told again and again."""

    def link_resized(self, link: Link) -> None:
        """`caps.payload_size_max` is another one now."""

    def link_is_proved(self, link: Link) -> bool:
        """Has a message on it been acted on, so that it is known whose it is?"""

    def link_writable(self, link: Link) -> None:
        """`room` has grown again."""

    def link_closed(self, link: Link, reason: str) -> None:
        """The link is gone."""

    def link_refused(self, link: Link) -> None:
        """Nobody is there, says the machine at the other end. Whether that is believed, the owner decides."""


class Listener(Protocol):
    """What `serve` gives, such as an `asyncio.AbstractServer`."""

    def close(self) -> None:
        """Accepts no more; links that stand are not touched."""


class LinkPlugin(Protocol):
    """A protocol between nodes.

    One whose endpoints have options (what follows the port), or limits, also has `check(endpoint)`, which
    raises ValueError with what is allowed; it is asked when a configuration is read. So are
    `check_listening(endpoint)` and `check_dialling(endpoint)`, where there are such: of endpoints that this
    node is to listen on (are the files there that it names?), and of those that are dialled, by it or others.

    One that listens on UDP ports may say so by `is_on_datagrams = True`. One whose accepted links need the
    port of a listener that was closed has `vacate(address, owner)`, which ends those in the way of such an
    other protocol there, and tells whether there were any.
    """

    scheme: str

    async def connect(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> Link:
        """Opens a link. Raises OSError when that fails; does not call `link_opened`."""

    async def serve(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> Listener:
        """Listens; each accepted link goes to `owner.link_opened`. Raises OSError."""


@runtime_checkable
class NodePlugin(LinkPlugin, Protocol):
    """The plug-in of one node, with what its links share."""

    def rebind(self) -> None:
        """The machine slept or its network changed: fresh sockets for dialled links, which stay open."""

    def describe(self) -> list[dict[str, Any]]:
        """What is shared, for status: one entry for each socket."""

    def close(self) -> None:
        """The node stops: closes what is shared. Links are not told."""


@runtime_checkable
class PluginFactory(Protocol):
    """Registered in the place of a plug-in: makes one for each node."""

    scheme: str

    def for_node(self) -> NodePlugin:
        """A plug-in that no other node uses."""
