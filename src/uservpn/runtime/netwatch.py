"""This machine's addresses, and the news that they, or the ways out, have changed. Nothing is polled.

On Linux a netlink socket (rtnetlink(7)) tells of links, addresses and routes; needs no rights. A burst of
such events is one change, and one that leaves everything that matters as it was is none. Elsewhere the
system is asked when something happens that a change would explain (`suspect`): a link is lost, a dial
begins or fails, the machine has slept. So a change is noticed as soon as it hurts, and a node without
links notices its new network with the next of its dials (whose back-off ends at two minutes).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from uservpn.kit.endpoint import Address, Endpoint

log: Final = logging.getLogger("uservpn")
SETTLE_S: Final = 0.03
"""Events this close together are one: an address comes with its routes."""
SUSPECT_S: Final = 1.0
"""Between two looks on suspicion."""
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 and IPv6 addresses and routes
_GET_LINK: Final = 18
_GET_ADDRESS: Final = 22
_NEW_LINK: Final = 16
_NEW_ADDRESS: Final = 20
_DONE: Final = 3
_ERROR: Final = 2
_DUMP: Final = 0x1 | 0x300
_HEAD: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_UNUSABLE: Final = 0x08 | 0x40  # duplicate, tentative; a deprecated one serves what stands
_CARRIES: Final = 0x1 | 0x40 | 0x10000  # up, running, lower up
_FAR: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Documentation addresses (RFC 5737, RFC 3849): the way there is the way to anywhere; nothing is sent."""


class Network(NamedTuple):
    """What this machine is connected to, as far as it knows."""

    interfaces: tuple[str, ...]
    """`address/prefix length` of each, loopback and link-local ones left out."""
    sources: tuple[str, ...] = ()
    """The addresses that packets to the internet leave from; none: offline, or a network of its own."""
    carriers: tuple[tuple[int, int], ...] = ()
    """Which of the interfaces are up, and have a carrier."""

    @property
    def hosts(self) -> list[str]:
        """The addresses, without the length of their networks."""
        return [interface.partition("/")[0] for interface in self.interfaces]

    def hosts_at(self, listening: Address) -> list[str]:
        """Where in its own networks the machine is reached that listens there."""
        if not listening.is_wildcard:
            return [listening.host] if listening.host in self.hosts else []
        is_ipv6 = ":" in listening.host
        return [host for host in self.hosts if (":" in host) == is_ipv6]

    def keeps(self, local: str) -> bool:
        """Is the local end of a link at an address that the machine (still) has?"""
        address = _address(local)
        return (
            address is None
            or address.is_loopback
            or address.is_wildcard
            or address.host in self.hosts
        )

    def carries(self, local: str) -> bool:
        """Is there a way for what a link sends: out, or only to the machine itself?"""
        address = _address(local)
        return bool(self.sources) or (address is not None and address.is_loopback)


def read_network() -> Network:
    """The present state. Does not raise: what cannot be read is left out."""
    sources = tuple(filter(None, (_source(*far) for far in _FAR)))
    if not sys.platform.startswith("linux"):
        lengths = {4: 32, 6: 128}
        found = [f"{s}/{lengths[ipaddress.ip_address(s).version]}" for s in sources]
        return Network(tuple(found), sources)
    try:
        addresses = sorted(_addresses())
        used = {index for index, _ in addresses}
        carriers = tuple(sorted((i, flags) for i, flags in _links() if i in used))
    except OSError as error:
        log.warning("the addresses of this machine cannot be read: %s", error.strerror)
        return Network((), sources)
    return Network(tuple(text for _, text in addresses), sources, carriers)


class NetWatch:
    """Calls back when the network is another one."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[Network], None]
    ) -> None:
        self.network = read_network()
        self._loop = loop
        self._on_change = on_change
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = float("-inf")

    @property
    def is_watching(self) -> bool:
        """Will changes be told?"""
        return self._sock is not None

    def start(self) -> None:
        """Begins to watch, where the system can tell."""
        if not sys.platform.startswith("linux"):
            return
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            sock.bind((0, _GROUPS))
        except OSError as error:
            log.warning("changes of the network are not told here: %s", error.strerror)
            return
        sock.setblocking(False)
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def close(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def suspect(self) -> None:
        """Something happened that a change would explain: looks soon, where changes are not told."""
        if self._sock is None and self._timer is None:
            wait = max(SETTLE_S, self._looked_at + SUSPECT_S - self._loop.time())
            self._timer = self._loop.call_later(wait, self.look)

    def look(self) -> None:
        """Reads anew; calls back if something that matters has changed."""
        self._timer = None
        self._looked_at = self._loop.time()
        network = read_network()
        if network != self.network:
            self.network = network
            self._on_change(network)

    def _on_readable(self) -> None:
        assert self._sock is not None
        try:
            while self._sock.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
        except OSError as error:  # ENOBUFS: events were lost, which is an event, too
            log.debug("netlink: %s", error)
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLE_S, self.look)


def _address(local: str) -> Address | None:
    """Of a link's end; None: that says nothing of an address."""
    try:
        return Endpoint.parse(local).address
    except ValueError:
        return None


def _source(family: int, far: str) -> str:
    """Our address on the way there; empty: there is none."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((far, 9))
            return str(sock.getsockname()[0])
    except OSError:
        return ""


def _addresses() -> Iterator[tuple[int, str]]:
    """(interface, `address/prefix length`). Raises OSError."""
    for kind, body in _dump(_GET_ADDRESS):
        if kind != _NEW_ADDRESS:
            continue
        family, prefix, flags, _, index = _ADDRESS.unpack_from(body)
        found = dict(_attributes(body[_ADDRESS.size :]))
        data = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if family not in (socket.AF_INET, socket.AF_INET6) or data is None or flags & _UNUSABLE:
            continue
        address = ipaddress.ip_address(data)
        if not address.is_loopback and not address.is_link_local:
            yield index, f"{address}/{prefix}"


def _links() -> Iterator[tuple[int, int]]:
    """(interface, whether it carries). Raises OSError."""
    for kind, body in _dump(_GET_LINK):
        if kind == _NEW_LINK:
            _, _, index, flags, _ = _LINK.unpack_from(body)
            yield index, flags & _CARRIES


def _dump(request: int) -> Iterator[tuple[int, bytes]]:
    """The kernel's answer: (type, body) of each message. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(1.0)
        body = bytes(_LINK.size)
        sock.send(_HEAD.pack(_HEAD.size + len(body), request, _DUMP, 1, 0) + body)
        while True:
            data = sock.recv(1 << 18)
            at = 0
            while at + _HEAD.size <= len(data):
                size, kind, _, _, _ = _HEAD.unpack_from(data, at)
                if kind in (_DONE, _ERROR) or size < _HEAD.size:
                    return
                yield kind, data[at + _HEAD.size : at + size]
                at += (size + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
