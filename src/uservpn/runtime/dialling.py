"""Connecting to whichever of several numeric addresses answers first, and what a failure means."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Callable, Sequence
from typing import Final

from uservpn.errors import Fault

ADDRESSES_MAX: Final = 8
"""Addresses of one name that are tried."""
NEXT_ADDRESS_S: Final = 0.25
"""Head start of each address over the next one (RFC 8305)."""
_FAULTS: Final = {
    errno.ECONNREFUSED: Fault.REFUSED,
    errno.ECONNRESET: Fault.REFUSED,
    errno.ETIMEDOUT: Fault.TIMEOUT,
    errno.EHOSTUNREACH: Fault.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Fault.HOST_UNREACHABLE,
    errno.ENETUNREACH: Fault.NETWORK_UNREACHABLE,
    errno.ENETDOWN: Fault.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: Fault.NETWORK_UNREACHABLE,  # no address of ours leads there
    errno.EAFNOSUPPORT: Fault.NETWORK_UNREACHABLE,
    errno.EACCES: Fault.NOT_ALLOWED,  # this machine's own firewall
    errno.EPERM: Fault.NOT_ALLOWED,
    errno.EMFILE: Fault.LIMIT,
    errno.ENFILE: Fault.LIMIT,
    errno.ENOBUFS: Fault.LIMIT,
    errno.ENOMEM: Fault.LIMIT,
}
_TELLING: Final = (
    Fault.REFUSED,
    Fault.TIMEOUT,
    Fault.HOST_UNREACHABLE,
    Fault.NETWORK_UNREACHABLE,
    Fault.NOT_ALLOWED,
    Fault.LIMIT,
)
"""Which fault to tell when several addresses failed: the one that came nearest to the target."""
_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")


async def connect_any(
    loop: asyncio.AbstractEventLoop,
    factory: Callable[[], asyncio.BaseProtocol],
    addresses: Sequence[str],
    port: int,
) -> None:
    """A connection to one of the numeric addresses, best first, at least one. Raises OSError."""
    if len(addresses) == 1:
        await loop.create_connection(factory, addresses[0], port)
        return
    import aiohappyeyeballs

    sock = await aiohappyeyeballs.start_connection(
        [_address_info(address, port) for address in addresses[:ADDRESSES_MAX]],
        happy_eyeballs_delay=NEXT_ADDRESS_S,
        loop=loop,
    )
    try:
        await loop.create_connection(factory, sock=sock)
    except BaseException:
        sock.close()
        raise


def fault_of(error: OSError) -> Fault:
    """What to tell the client."""
    if isinstance(error, TimeoutError):
        return Fault.TIMEOUT
    if isinstance(error, socket.gaierror):
        return Fault.HOST_UNREACHABLE
    if error.errno is not None:
        return _FAULTS.get(error.errno, Fault.FAILED)
    # several addresses failed, each in its own way: only the text tells how
    faults = {_FAULTS.get(int(code), Fault.FAILED) for code in _ERRNO.findall(str(error))}
    return next((fault for fault in _TELLING if fault in faults), Fault.FAILED)


def _address_info(
    address: str, port: int
) -> tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)
