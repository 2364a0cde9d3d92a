"""Connections that tests have made, kept for the OPEN that follows.

What a site says before anybody listens is kept as well: one read, then no more is read. Bounds: so
many for each client and in all (more are not kept), and so many seconds. One timer serves all; there is
none while nothing is kept.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from uservpn.runtime.clock import monotonic

KEPT_S: Final = 2.0
KEPT_PER_CLIENT_MAX: Final = 16
KEPT_MAX: Final = 512
_EPSILON_S: Final = 0.005
"""Timers may fire a little early."""

Target = tuple[int, str, int]
"""Client, host, port."""


class Waiting(asyncio.Protocol):
    """A connection that nobody has yet."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.until = 0.0
        self.early = b""
        """What the site said meanwhile."""
        self.is_ended = False
        """The site will say no more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """The first that the site says; uvloop would not hear of a pause before that."""
        self.early += data
        if self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The site has said all; the program may still speak."""
        self.is_ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone before anybody wanted it."""
        self.transport = None

    def drop(self) -> None:
        """Nobody wants it."""
        if self.transport is not None:
            self.transport.abort()


class KeptConnections:
    """At most one for each target of each client."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.used_count = 0
        """How many were taken."""
        self._loop = loop
        self._kept: dict[Target, Waiting] = {}  # in the order of their ends
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, target: Target, waiting: Waiting) -> bool:
        """From now on for a while; False: there is no place for it."""
        if target in self._kept or len(self._kept) >= KEPT_MAX:
            return False
        if sum(1 for other in self._kept if other[0] == target[0]) >= KEPT_PER_CLIENT_MAX:
            return False
        waiting.until = monotonic() + KEPT_S
        self._kept[target] = waiting
        if self._timer is None:
            self._timer = self._loop.call_later(KEPT_S, self._expire)
        return True

    def take(self, client: int, host: str, port: int) -> Waiting | None:
        """The connection for this client's OPEN; the taker replaces its protocol at once."""
        waiting = self._kept.pop((client, host, port), None) if self._kept else None
        if waiting is None or waiting.transport is None or waiting.transport.is_closing():
            return None
        self.used_count += 1
        return waiting

    def close(self) -> None:
        """Drops all."""
        for waiting in self._kept.values():
            waiting.drop()
        self._kept.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = monotonic() + _EPSILON_S
        for target, waiting in list(self._kept.items()):
            if waiting.until > now:
                self._timer = self._loop.call_later(waiting.until - now, self._expire)
                return
            del self._kept[target]
            waiting.drop()
