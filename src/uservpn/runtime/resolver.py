"""Name resolution at the exit, and only there: a client never asks anybody for an address.

`Resolver` asks the system (`getaddrinfo`: hosts file, then DNS) or given servers (through aiodns,
the extra `dns`; then nothing but these servers is asked). An answer is kept for its time to live,
within bounds, or for a minute where the system does not tell; a failure is not kept. Everybody
who waits for one name waits for one look-up, which goes on when a waiter leaves, and ends at the
time limit.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from uservpn.errors import ConfigError, Fault, StreamFault

if TYPE_CHECKING:
    import aiodns

TIME_LIMIT_S: Final = 8.0
KEPT_S: Final = 60.0
"""An answer of the system's resolver is kept this long."""
TTL_MIN_S: Final = 1.0
TTL_MAX_S: Final = 300.0
KEPT_MAX: Final = 4096
"""Names kept at most: then the oldest goes."""
ASKING_MAX: Final = 1024
"""Look-ups at once: then a new name is refused with LIMIT."""
ADDRESSES_MAX: Final = 16
"""Addresses kept of one answer: the rest would never be tried."""
_SERVER_TRY_S: Final = 2.0
_SERVER_TRIES: Final = 2
_NAME: Final = re.compile(r"[^\x00-\x20\x7f%/\\:@\[\]]{1,254}")


class Resolver:
    """From names to numeric addresses. Names in any case are the same name."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        servers: Sequence[str] = (),
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        """Raises ConfigError: `servers` are given but the extra `dns` is not installed."""
        self._loop = loop
        self._time_limit_s = time_limit_s
        self._servers = _servers_channel(loop, servers) if servers else None
        self._kept: dict[str, tuple[float, list[str]]] = {}
        self._asking: dict[str, asyncio.Task[list[str] | StreamFault]] = {}

    async def resolve(self, host: str) -> list[str]:
        """Numeric addresses of `host`, best first, at least one. Not for numeric addresses.

        Raises:
            StreamFault: HOST_UNREACHABLE (no such name, or no name at all), TIMEOUT, LIMIT.
        """
        name = host.lower()
        kept = self._kept.get(name)
        if kept is not None and self._loop.time() < kept[0]:
            return kept[1]
        task = self._asking.get(name)
        if task is None:
            if len(self._asking) >= ASKING_MAX:
                raise StreamFault(Fault.LIMIT, "too many names are being resolved")
            task = self._asking[name] = self._loop.create_task(self._look_up(name))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        found = await asyncio.shield(task)
        if isinstance(found, StreamFault):
            raise StreamFault(found.fault, found.detail)
        return found

    async def close(self) -> None:
        """Ends every look-up; who waits is cancelled."""
        for task in list(self._asking.values()):
            task.cancel()
        if self._servers is not None:
            await self._servers.close()

    async def _look_up(self, name: str) -> list[str] | StreamFault:
        """Returns the fault instead of raising it: perhaps nobody waits any more."""
        try:
            if not _NAME.fullmatch(name):
                return StreamFault(Fault.HOST_UNREACHABLE, "not a host name")
            async with asyncio.timeout(self._time_limit_s):
                if self._servers is None:
                    addresses, ttl_s = await self._ask_system(name), KEPT_S
                else:
                    addresses, ttl_s = await self._ask_servers(self._servers, name)
        except TimeoutError:
            return StreamFault(Fault.TIMEOUT, "the name was not resolved in time")
        except (OSError, UnicodeError) as error:  # UnicodeError: no internationalised name
            return StreamFault(Fault.HOST_UNREACHABLE, str(error))
        if not addresses:
            return StreamFault(Fault.HOST_UNREACHABLE, "the name has no address")
        del addresses[ADDRESSES_MAX:]
        self._keep(name, addresses, ttl_s)
        return addresses

    def _keep(self, name: str, addresses: list[str], ttl_s: float) -> None:
        kept = self._kept
        kept.pop(name, None)
        if len(kept) >= KEPT_MAX:
            del kept[next(iter(kept))]
        kept[name] = (self._loop.time() + ttl_s, addresses)

    async def _ask_system(self, name: str) -> list[str]:
        found = await self._loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(info[4][0]) for info in found))

    async def _ask_servers(self, channel: aiodns.DNSResolver, name: str) -> tuple[list[str], float]:
        import aiodns

        if not name.isascii():
            name = name.encode("idna").decode()
        try:
            answer = await channel.getaddrinfo(name, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            code = error.args[0] if error.args else 0
            if code == aiodns.error.ARES_ETIMEOUT:
                raise TimeoutError from None
            raise OSError(error.args[-1] if error.args else "not found") from None
        nodes = answer.nodes
        texts = [node.addr[0] for node in nodes]
        addresses = [text.decode() if isinstance(text, bytes) else text for text in texts]
        ttl_s = min((float(node.ttl) for node in nodes), default=0.0)
        return list(dict.fromkeys(addresses)), max(TTL_MIN_S, min(ttl_s, TTL_MAX_S))


def _servers_channel(loop: asyncio.AbstractEventLoop, servers: Sequence[str]) -> aiodns.DNSResolver:
    try:
        import aiodns
    except ImportError:
        problem = (
            "exit.resolvers: needs the extra `dns`, which is not installed "
            "(pip install 'uservpn[dns]'); without resolvers the system's resolver is asked"
        )
        raise ConfigError([problem]) from None
    return aiodns.DNSResolver(
        nameservers=list(servers),
        loop=loop,
        timeout=_SERVER_TRY_S,
        tries=_SERVER_TRIES,
        lookups="b",  # these servers only, not the machine's hosts file
    )
