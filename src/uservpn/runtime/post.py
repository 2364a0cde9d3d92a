"""Out-of-band messages and pings on the event loop (docs/messages.md): who hears what, who waits for what.

A topic has one handler; what comes under a topic without one is counted and thrown away. Bounded by the
node: it takes so many confirmed messages, and no more, and each ends with one result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uservpn.errors import UsageError
from uservpn.node.node import Node
from uservpn.node.options import Message, MessageResult, Pong
from uservpn.runtime.clock import monotonic
from uservpn.types import NodeId


class Post:
    """The messages of one node; `kick` is told when there is something to send."""

    def __init__(
        self, node: Node, loop: asyncio.AbstractEventLoop, kick: Callable[[], None]
    ) -> None:
        self.ignored_count = 0
        """Messages whose topic nobody here knows."""
        self._node = node
        self._loop = loop
        self._kick = kick
        self._topics: dict[str, Callable[[NodeId, bytes], None]] = {}
        self._results: dict[int, Callable[[bool], None]] = {}
        self._pings: dict[bytes, asyncio.Future[Pong]] = {}

    @property
    def node_id(self) -> NodeId:
        """This node's number."""
        return self._node.options.node

    def on_message(self, topic: str, handler: Callable[[NodeId, bytes], None] | None) -> None:
        """From now on `handler` gets what comes under this topic; None: nobody.

        It runs on the event loop and must not block; what it raises is logged.

        Raises:
            UsageError: somebody has the topic already.
        """
        if handler is None:
            self._topics.pop(topic, None)
        elif topic in self._topics:
            raise UsageError(f"somebody listens to the topic {topic!r} already")
        else:
            self._topics[topic] = handler

    def send_message(
        self,
        peer: NodeId,
        topic: str,
        payload: bytes,
        *,
        confirmed: bool = False,
        on_result: Callable[[bool], None] | None = None,
    ) -> int:
        """Sends `payload` to `peer`, ahead of the streams; `Node.send_message` has the rules.

        `on_result` is told once whether a confirmed message was delivered; bounded like those.
        """
        token = self._node.send_message(peer, topic, payload, monotonic(), confirmed=confirmed)
        if on_result is not None and token:
            self._results[token] = on_result
        self._kick()
        return token

    async def ping(self, peer: NodeId) -> Pong:
        """The answer to a probe over the link in use; waits until it comes: bound the time.

        Without a link it never comes.
        """
        answered: asyncio.Future[Pong] = self._loop.create_future()
        token = self._node.ping(peer, monotonic())
        if token is not None:
            self._pings[token] = answered
            self._kick()
        try:
            return await answered
        finally:
            self._pings.pop(token or b"", None)

    # --- what came (called by the driver) ---------------------------------------------------------

    def take_message(self, event: Message) -> None:
        """From another node."""
        handler = self._topics.get(event.topic)
        if handler is None:
            self.ignored_count += 1
        else:
            handler(event.peer, event.payload)

    def take_result(self, event: MessageResult) -> None:
        """What became of a confirmed message of ours."""
        on_result = self._results.pop(event.token, None)
        if on_result is not None:
            on_result(event.delivered)

    def take_pong(self, event: Pong) -> None:
        """The answer to a probe; perhaps nobody waits any more."""
        answered = self._pings.get(event.token)
        if answered is not None and not answered.done():
            answered.set_result(event)
