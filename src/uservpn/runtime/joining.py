"""Asks a server which numbers are taken, without being a node (node/door.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from uservpn.errors import UservpnError
from uservpn.kit.endpoint import Endpoint
from uservpn.links.base import Link, LinkPlugin, PluginFactory
from uservpn.node.door import unpack_numbers
from uservpn.runtime.clock import random_bytes
from uservpn.types import Buffer, LinkId, NodeId
from uservpn.wire.constants import FLAG_BOUND, STAMP_MASK, Kind
from uservpn.wire.header import Header, HeaderCodec, Run
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session

DIAL_LIMIT_S: Final = 8.0
ANSWER_LIMIT_S: Final = 4.0
AGAIN_S: Final = 1.0
"""The question is repeated so often: datagrams may be lost, and the clock may have been put right."""


async def taken_numbers(
    ring: KeyRing,
    servers: Mapping[NodeId, Sequence[Endpoint]],
    plugins: Mapping[str, LinkPlugin | PluginFactory],
) -> set[int]:
    """What the first server that answers knows of; endpoints are asked one after another.

    Raises:
        UservpnError: none answered; the text says why, one reason for each.
    """
    reasons = []
    for server, endpoints in servers.items():
        for endpoint in endpoints:
            plugin = plugins[endpoint.protocol]
            try:
                if isinstance(plugin, PluginFactory):
                    made = plugin.for_node()
                    try:
                        return await _ask(ring, server, endpoint, made)
                    finally:
                        made.close()
                return await _ask(ring, server, endpoint, plugin)
            except TimeoutError:
                reasons.append(f"{endpoint}: no answer (another key, or it is not node {server})")
            except OSError as error:
                reasons.append(f"{endpoint}: {error.strerror or error}")
    raise UservpnError("no server answered: " + "; ".join(reasons))


async def _ask(ring: KeyRing, server: NodeId, endpoint: Endpoint, plugin: LinkPlugin) -> set[int]:
    """Raises OSError (TimeoutError among them)."""
    newcomer = _Newcomer(ring, server)
    async with asyncio.timeout(DIAL_LIMIT_S):
        link = await plugin.connect(endpoint, newcomer.codec, newcomer)
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while not newcomer.numbers.done():
                link.send(newcomer.question())
                await asyncio.wait([newcomer.numbers], timeout=AGAIN_S)
            return newcomer.numbers.result()
    finally:
        link.close()


class _Newcomer:
    """The owner of one link that asks one thing; "from" the server's own number."""

    def __init__(self, ring: KeyRing, server: NodeId) -> None:
        self.codec = HeaderCodec(ring)
        self.numbers: asyncio.Future[set[int]] = asyncio.get_running_loop().create_future()
        self._session = Session(
            ring, self.codec, server, int.from_bytes(random_bytes(8), "big"), server, False
        )
        self._last_link = 0

    def question(self) -> tuple[bytes, bytes]:
        """A JOIN: header and sealed payload."""
        wall_ms = int(time.time() * 1000)
        stamp = (wall_ms & STAMP_MASK).to_bytes(3, "big")
        return self._session.seal(Kind.JOIN, bytes(random_bytes(1)[0] % 64), stamp, wall_ms)

    # --- LinkOwner -------------------------------------------------------------------------------

    def new_link_id(self) -> LinkId:
        self._last_link += 1
        return LinkId(self._last_link)

    def link_message(self, link: Link, header: Header, body: Buffer) -> None:
        if header.kind != Kind.JOINED or not header.flags & FLAG_BOUND or self.numbers.done():
            return
        opened = self._session.peek(header, body)
        numbers = unpack_numbers(opened.payload) if opened is not None else None
        if numbers is not None:
            self.numbers.set_result(numbers)

    def link_runs(self, link: Link, runs: Sequence[Run]) -> None:
        for run in runs:
            for header, body in run.messages():
                self.link_message(link, header, body)

    def link_closed(self, link: Link, reason: str) -> None:
        if not self.numbers.done():
            self.numbers.set_exception(ConnectionResetError(reason))

    def link_refused(self, link: Link) -> None:
        self.link_closed(link, "refused")

    def link_opened(self, link: Link) -> None: ...

    def link_progress(self, link: Link) -> None: ...

    def link_stalled(self, link: Link, silent_s: float) -> None: ...

    def link_resized(self, link: Link) -> None: ...

    def link_writable(self, link: Link) -> None: ...

    def link_is_proved(self, link: Link) -> bool:
        return False
