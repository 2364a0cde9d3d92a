"""The entry: where programs come in, by SOCKS5, SOCKS4/4a or HTTP CONNECT on one port.

The first byte tells the protocol. A program hears `success` at once when its target connected before
through the same exit (`optimistic`), else when the exit has really connected, so that error codes are
true. An answer that turned out too optimistic ends the connection with a reset and makes the next one
honest. Handshakes are bounded in bytes and time; the time limit is one timer for all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import Final, Literal, Protocol

from uservpn.errors import Fault, StreamFault
from uservpn.kit.endpoint import Address
from uservpn.runtime.driver import Driver
from uservpn.runtime.http_proxy import HttpConnect
from uservpn.runtime.pump import Pump
from uservpn.socks.handshake import Handshake, Request, State
from uservpn.tunnel.stream import Stream
from uservpn.types import NodeId

log: Final = logging.getLogger("uservpn")
HANDSHAKE_LIMIT_S: Final = 15.0
CONNECTIONS_MAX: Final = 16_384
"""Programs' connections at once; more are closed as they come."""
EARLY_MAX: Final = 256 * 1024
BACKLOG: Final = 1024


class Choosing(Protocol):
    """What the entry asks of the chooser."""

    def choose(self, host: str, port: int, user: str | None) -> NodeId | None:
        """The exit for this target."""

    def knows(self, exit: NodeId, host: str, port: int) -> bool:
        """Has it connected there before?"""

    def connected(self, exit: NodeId, host: str, port: int) -> None:
        """It has."""

    def failed(self, exit: NodeId, host: str, port: int) -> None:
        """It has not."""


class Entry:
    """The listener for programs."""

    def __init__(
        self,
        listen: Address,
        users: Mapping[str, str],
        driver: Driver,
        chooser: Choosing,
        optimistic: Literal["auto"] | bool,
    ) -> None:
        self.driver = driver
        self.chooser = chooser
        self.users = users
        self.optimistic = optimistic
        self.connections: set[EntryConnection] = set()
        self.accepted_count = 0
        self._listen = listen
        self._server: asyncio.AbstractServer | None = None
        self._waiting: deque[tuple[float, EntryConnection]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Listens. Raises OSError."""
        self._server = await self.driver.loop.create_server(
            lambda: EntryConnection(self), self._listen.host, self._listen.port, backlog=BACKLOG
        )

    async def close(self, drain_s: float) -> None:
        """Stops listening, gives open connections `drain_s` to finish, then resets them."""
        if self._server is not None:
            self._server.close()
        end = self.driver.loop.time() + drain_s
        while self.connections and self.driver.loop.time() < end:  # noqa: ASYNC110 - ends soon
            await asyncio.sleep(0.05)
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    def reconfigure(self, users: Mapping[str, str], optimistic: Literal["auto"] | bool) -> None:
        """From the next connection on."""
        self.users = users
        self.optimistic = optimistic

    def watch(self, connection: EntryConnection) -> None:
        """Its handshake has to be over within the limit."""
        until = self.driver.loop.time() + HANDSHAKE_LIMIT_S
        self._waiting.append((until, connection))
        if self._timer is None:
            self._timer = self.driver.loop.call_at(until, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self.driver.loop.time() + 0.01
        waiting = self._waiting
        while waiting and (waiting[0][0] <= now or not waiting[0][1].is_shaking):
            _, connection = waiting.popleft()
            if connection.is_shaking:
                connection.abort()
        if waiting:
            self._timer = self.driver.loop.call_at(waiting[0][0], self._sweep)


class EntryConnection(Pump):
    """One program's connection: first a handshake, then bytes."""

    __slots__ = ("_answered", "_early", "_entry", "_exit", "_handshake", "_request", "is_shaking")

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.driver)
        self._entry = entry
        self._handshake: Handshake | HttpConnect | None = None
        self._request: Request | None = None
        self._exit = NodeId(0)
        self._answered = False
        self._early = 0
        self.is_shaking = True

    @property
    def target(self) -> str:
        """host:port, for status."""
        return f"{self._request.host}:{self._request.port}" if self._request else ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A program came in."""
        super().connection_made(transport)
        entry = self._entry
        entry.accepted_count += 1
        if len(entry.connections) >= CONNECTIONS_MAX:
            transport.close()
            return
        entry.connections.add(self)
        entry.watch(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The program is gone."""
        self.is_shaking = False
        self._entry.connections.discard(self)
        super().connection_lost(exc)

    def received(self, chunk: memoryview) -> None:
        """Bytes of the handshake."""
        if not self.is_shaking:
            return
        handshake = self._handshake
        data = bytes(chunk)
        if handshake is None:
            if data[0] in (4, 5):
                handshake = Handshake(self._entry.users)
            elif 65 <= data[0] <= 90 or 97 <= data[0] <= 122:
                handshake = HttpConnect(self._entry.users)
            else:
                self._close()
                return
            self._handshake = handshake
        reply = handshake.receive(data)
        if reply and self.transport is not None:
            self.transport.write(reply)
        if handshake.state is State.FAILED:
            self._close()
        elif handshake.state is State.DONE and handshake.request is not None:
            self._go(handshake, handshake.request)

    def stream_opened(self, fault: Fault, detail: bytes) -> None:
        """The exit's result."""
        request = self._request
        assert request is not None
        chooser = self._entry.chooser
        if fault:
            chooser.failed(self._exit, request.host, request.port)
            self.stream = None
            if self._answered:
                self.abort()
            else:
                self._refuse(fault)
            return
        chooser.connected(self._exit, request.host, request.port)
        if not self._answered:
            self._grant()

    def stream_reset(self, fault: Fault) -> None:
        """Before the answer a reset is a refusal."""
        if self._answered:
            super().stream_reset(fault)
        else:
            self.stream = None
            self._refuse(fault)

    def _go(self, handshake: Handshake | HttpConnect, request: Request) -> None:
        entry = self._entry
        self.is_shaking = False
        self._request = request
        host, port = request.host, request.port
        exit_id = entry.chooser.choose(host, port, request.user)
        if exit_id is None:
            log.info("no exit for %s:%d", host, port)
            self._refuse(Fault.FAILED)
            return
        self._exit = exit_id
        try:
            stream = self.driver.open(exit_id, host, port, self)
        except StreamFault as fault:
            self._refuse(fault.fault)
            return
        self.attach(stream)
        optimistic = entry.optimistic
        if optimistic is True or (
            optimistic == "auto" and entry.chooser.knows(exit_id, host, port)
        ):
            self._grant()
        if handshake.rest:
            self.driver.write(stream, handshake.rest)

    def _grant(self) -> None:
        self._answered = True
        if self._handshake is not None and self.transport is not None:
            self.transport.write(self._handshake.answer(Fault.NONE))
        self._handshake = None

    def _refuse(self, fault: Fault) -> None:
        if self._handshake is not None and self.transport is not None:
            self.transport.write(self._handshake.answer(fault))
        self._close()

    def _close(self) -> None:
        self.is_shaking = False
        if self.transport is not None:
            self.transport.close()

    def attach(self, stream: Stream) -> None:
        """From now on bytes flow both ways."""
        super().attach(stream)
