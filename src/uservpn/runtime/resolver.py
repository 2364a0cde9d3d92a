"""Name resolution at the exit, and only there."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from uservpn.errors import ConfigError, Fault, StreamFault

TIME_LIMIT_S: Final = 8.0
CACHE_S: Final = 60.0
CACHE_MAX: Final = 4096
AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Resolver:
    """Resolves names with the system's resolver, or with given servers (extra `dns`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, servers: Sequence[str] = ()) -> None:
        """Raises ConfigError: servers are given but the extra `dns` is not installed."""
        self._loop = loop
        self._own = None
        self._cache: dict[str, tuple[float, list[str]]] = {}
        if servers:
            try:
                import aiodns
            except ImportError:
                raise ConfigError(
                    ["exit.resolvers needs the extra 'dns': pip install 'uservpn[dns]'"]
                ) from None
            self._own = aiodns.DNSResolver(nameservers=list(servers), loop=loop)

    async def resolve(self, host: str) -> list[str]:
        """Numeric addresses of `host`, best first. Raises StreamFault."""
        found = self._cache.get(host)
        if found is not None and self._loop.time() < found[0]:
            return found[1]
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                addresses = await self._ask(host)
        except TimeoutError:
            raise StreamFault(Fault.TIMEOUT, f"{host} was not resolved in time") from None
        except (OSError, UnicodeError) as error:
            raise StreamFault(Fault.HOST_UNREACHABLE, f"{host}: {error}") from None
        if len(self._cache) >= CACHE_MAX:
            self._cache.clear()
        self._cache[host] = (self._loop.time() + CACHE_S, addresses)
        return addresses

    async def _ask(self, host: str) -> list[str]:
        if self._own is None:
            found = await self._loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(info[4][0]) for info in found))
        result = await self._own.getaddrinfo(host, type=socket.SOCK_STREAM)
        return [_text(node.addr[0]) for node in result.nodes]


def _text(address: bytes | str) -> str:
    return address.decode() if isinstance(address, bytes) else address


def is_numeric(host: str) -> bool:
    """Is `host` an address rather than a name?"""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
