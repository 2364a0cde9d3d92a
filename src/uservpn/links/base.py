"""What a link is: the seam between the node and every protocol below it.

A link carries whole messages (header, payload) to one adjacent node. A plug-in is a module-level object with
`scheme`, `connect` and `serve`, registered as an entry point of the group `uservpn.links`. Links call
back into a `LinkOwner` (the driver) on the event loop; they know nothing of what messages mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from uservpn.kit.endpoint import Endpoint
from uservpn.types import Buffer, LinkId
from uservpn.wire.header import Header, HeaderCodec


@dataclass(frozen=True, slots=True)
class LinkCaps:
    """What a link can do; the layers above adapt to this, never to the kind of link."""

    protocol: str
    payload_size_max: int
    """Largest sealed payload of one message, bytes."""
    is_ordered: bool
    is_reliable: bool


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
        """Sends headers and payloads, in this order. Takes all; never blocks, never raises."""

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

    def link_progress(self, link: Link) -> None:
        """Bytes of a large message moved."""

    def link_writable(self, link: Link) -> None:
        """`room` has grown again."""

    def link_closed(self, link: Link, reason: str) -> None:
        """The link is gone."""


class LinkPlugin(Protocol):
    """A protocol between nodes."""

    scheme: str

    async def connect(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> Link:
        """Opens a link. Raises OSError when that fails; does not call `link_opened`."""

    async def serve(
        self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner
    ) -> asyncio.AbstractServer:
        """Listens; each accepted link goes to `owner.link_opened`. Raises OSError."""
