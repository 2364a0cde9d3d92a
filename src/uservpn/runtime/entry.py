"""The entry: where programs come in, by SOCKS5, SOCKS4/4a or HTTP on one port.

Each of them is an `EntryConnection` (`program.py`). Limits: so many connections at once (more are closed as
they come), and so many seconds for whatever a program has to do before anything can be done for it: to
shake hands, to end the head of a request, to take its last answer. One timer serves all of them, and there
is none while nobody is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

from uservpn.chooser.cases import Choice
from uservpn.chooser.measure import Trip
from uservpn.errors import Fault
from uservpn.kit.endpoint import Address
from uservpn.runtime.driver import Driver
from uservpn.runtime.program import EntryConnection
from uservpn.runtime.protocols import cannot_listen
from uservpn.runtime.pump import Carrier
from uservpn.tunnel.stream import Stream
from uservpn.types import NodeId

HANDSHAKE_LIMIT_S: Final = 15.0
CONNECTIONS_MAX: Final = 16_384
BACKLOG: Final = 1024
_EPSILON_S: Final = 0.01
"""Timers may fire a little early."""

Optimistic = Literal["auto"] | bool


class Waiter(Protocol):
    """Who waits for a choice."""

    def chosen(self, choice: Choice) -> None:
        """It is made; perhaps nobody needs it any more."""


class Choosing(Protocol):
    """What the entry asks of the chooser, and tells it (`runtime.choosing`)."""

    def choose(self, host: str, port: int, user: str, waiter: Waiter) -> Choice | None:
        """Where this target's connection goes; None: the waiter is told, soon."""

    def knows(self, exit: NodeId, host: str, port: int) -> bool:
        """Has it connected there before?"""

    def connected(self, choice: Choice, host: str, port: int) -> None:
        """It has."""

    def failed(self, choice: Choice, host: str, port: int, fault: Fault) -> None:
        """It has not."""

    def replied(self, choice: Choice, trip: Trip) -> None:
        """The first data came back."""

    def unanswered(self, choice: Choice, trip: Trip, is_broken: bool) -> None:
        """The connection ended without a reply; `is_broken`: by the site's side."""

    def ended(self, choice: Choice, stream: Stream) -> None:
        """The connection is over."""

    def driver_of(self, choice: Choice) -> Carrier:
        """Who opens its stream: the mesh's driver, or the one that dials from here."""


class Entry:
    """The listener for programs, and the limits on all their connections."""

    def __init__(
        self,
        listen: Address,
        users: Mapping[str, str],
        driver: Driver,
        chooser: Choosing,
        optimistic: Optimistic,
        *,
        handshake_limit_s: float = HANDSHAKE_LIMIT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.driver = driver
        self.chooser = chooser
        self.users = users
        self.optimistic = optimistic
        self.connections: set[EntryConnection] = set()
        self.accepted_count = 0
        """Programs that came in, refused ones too."""
        self.refused_count = 0
        """Connections turned away: no place, no or a wrong handshake, no way to the target."""
        self._listen = listen
        self._handshake_limit_s = handshake_limit_s
        self._connections_max = connections_max
        self._server: asyncio.Server | None = None
        self._waiting: dict[EntryConnection, float] = {}  # in the order of their deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None  # not None: closing

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens. Raises OSError, with a sentence that names the address."""
        try:
            self._server = await self.driver.loop.create_server(
                lambda: EntryConnection(self), self._listen.host, self._listen.port, backlog=BACKLOG
            )
        except OSError as error:
            raise cannot_listen(f"{self._listen} (entry.listen)", error) from error

    async def close(self, drain_s: float) -> None:
        """Stops listening, gives connections in use `drain_s` to finish, then resets them."""
        self.leave()
        self._emptied = asyncio.Event()
        for connection in list(self.connections):
            connection.retire()
        if self.connections and drain_s > 0:
            try:
                async with asyncio.timeout(drain_s):
                    await self._emptied.wait()
            except TimeoutError:
                pass  # they had their time
        for connection in list(self.connections):
            connection.cut()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.sleep(0)  # sockets that were aborted are closed in the loop's next turn

    def leave(self) -> None:
        """Stops listening; connections go on, under the limits they came in with."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def reconfigure(self, users: Mapping[str, str], optimistic: Optimistic) -> None:
        """From the next handshake on; connections that stand are not touched."""
        self.users = users
        self.optimistic = optimistic

    # --- questions -------------------------------------------------------------------------------

    @property
    def is_listening(self) -> bool:
        """Do programs get in?"""
        return self._server is not None

    @property
    def address(self) -> Address:
        """Where it listens; the real port where 0 was asked for."""
        if self._server is None:
            return self._listen
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    def snapshot(self) -> dict[str, Any]:
        """Counts for the status document."""
        return {
            "open": len(self.connections),
            "accepted": self.accepted_count,
            "refused": self.refused_count,
        }

    def direct_rows(self, node: NodeId) -> list[dict[str, Any]]:
        """Connections that leave from this node itself, for the status document."""
        return [
            {
                "id": "direct",
                "target": connection.target,
                "exit": node,
                "client": node,
                "bytes_out": connection.stream.sent_size,
                "bytes_in": connection.stream.recv_offset,
            }
            for connection in self.connections
            if connection.is_direct and connection.stream is not None
        ]

    # --- its connections -------------------------------------------------------------------------

    def add(self, connection: EntryConnection) -> bool:
        """A program came in; False: there is no place for it."""
        self.accepted_count += 1
        if len(self.connections) >= self._connections_max or self._emptied is not None:
            self.refused_count += 1
            return False
        self.connections.add(connection)
        self.watch(connection)
        return True

    def remove(self, connection: EntryConnection) -> None:
        """It is gone."""
        self._waiting.pop(connection, None)
        self.connections.discard(connection)
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    def watch(self, connection: EntryConnection) -> None:
        """It is reset unless `unwatch` or its end comes within the limit; watched: nothing new."""
        if connection not in self._waiting:
            until = self.driver.loop.time() + self._handshake_limit_s
            self._waiting[connection] = until
            if self._timer is None:
                self._timer = self.driver.loop.call_at(until, self._expire)

    def unwatch(self, connection: EntryConnection) -> None:
        """What was waited for has come."""
        self._waiting.pop(connection, None)

    def _expire(self) -> None:
        """Resets those whose time is up; the timer stands for the first of the others."""
        self._timer = None
        now = self.driver.loop.time() + _EPSILON_S
        for connection, until in list(self._waiting.items()):
            if until > now:
                self._timer = self.driver.loop.call_at(until, self._expire)
                return
            del self._waiting[connection]
            connection.expired()
