"""The UDP link: one message is one datagram, and all of a node's datagrams leave from one place.

A link is a pair of a socket of ours and a remote address. There is no handshake: a dialled link is open
at once, and the node demands an answer on it; a datagram with a genuine header from a new address is an
accepted one. A node that listens dials from the socket it listens on, so that its NAT binding is the
one that others are told of and that hole punching needs; else one socket per address family, opened with the
first dial, carries all dialled links. After sleep or in another network that one is replaced, and the links
move.

Datagrams are never fragmented: what a path carries is found by probes of the node (mesh/pathmtu.py).
Accepted links of which nobody has proved to be the owner are bounded: the oldest one goes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace
from typing import Any, Final

from uservpn.kit.endpoint import Address as Place
from uservpn.kit.endpoint import Endpoint
from uservpn.kit.slots import Slots
from uservpn.links import gso
from uservpn.links.base import LinkCaps, LinkOwner
from uservpn.links.udp_socket import (
    SEALING_SIZE,
    Address,
    Landing,
    UdpLink,
    UdpSocket,
    endpoint_text,
)
from uservpn.wire.constants import HEADER_SIZE
from uservpn.wire.header import HeaderCodec

log: Final = logging.getLogger("uservpn")
UDP_HEADER: Final = 8
IP_HEADERS: Final = {int(socket.AF_INET): 20, int(socket.AF_INET6): 40}
PACKET_MAX: Final = 65_535
PAYLOAD_BASE: Final = 1200 - HEADER_SIZE
"""RFC 8899 BASE_PLPMTU: what every path carries."""
UNPROVED_MAX: Final = 256
"""Accepted links that nobody has proved to be his; the oldest one goes."""
PARTING_S: Final = 0.1
"""Links whose socket was closed wait so long for one at the same port: then their peers notice nothing."""
CAPS: Final = LinkCaps(
    "udp", PAYLOAD_BASE, is_ordered=False, is_reliable=False, payload_size_base=PAYLOAD_BASE
)


class UdpListener:
    """One listening socket, as the node's owner holds it."""

    def __init__(self, plugin: UdpPlugin, sock: UdpSocket) -> None:
        self._plugin = plugin
        self.sock = sock

    def close(self) -> None:
        """Its links go on, from another socket."""
        self._plugin.unlisten(self.sock)


class UdpPlugin:
    """The UDP sockets and links of one node."""

    scheme = "udp"
    is_on_datagrams = True

    def __init__(self) -> None:
        self.landing = Landing()
        self.sealing = Slots(SEALING_SIZE)
        self._listening: list[UdpSocket] = []
        self._dialling: dict[int, UdpSocket] = {}
        self._parting: list[UdpSocket] = []  # closed, with links that wait for another socket
        self._unproved: dict[UdpLink, None] = {}  # oldest first
        self._is_closed = False

    # --- LinkPlugin ------------------------------------------------------------------------------

    async def connect(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> UdpLink:
        """A link to this address, at once. Raises OSError: no way leads there.

        An accepted link from the same address ends: the new one has its place.
        """
        family, address = _resolve(endpoint)
        sock = self._socket_for(family, endpoint.address, codec, owner)
        caps, local = _look(sock, address)
        old = sock.links.get(address)
        link = UdpLink(sock, owner, address, str(endpoint), local, caps, is_dialled=True)
        if old is not None:
            sock.forget(old, "dialled anew")
        sock.links[address] = link
        link.ask()
        return link

    async def serve(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> UdpListener:
        """Listens. Links that waited for one at this port have it before it is read. Raises OSError."""
        family, address = _resolve(endpoint)
        sock = _open(family, address, codec, owner, self, is_listening=True)
        self._listening.append(sock)
        for old in self._parting:
            if (old.family, old.port) == (sock.family, sock.port):
                self._take_over(old, sock)
        wanted = gso.BUFFER_WANTED
        if min(sock.receive_buffer, sock.send_buffer) < wanted:
            log.info(
                "%s: the kernel gave %d KiB to receive and %d KiB to send of %d KiB each "
                "(net.core.rmem_max, wmem_max)",
                endpoint, sock.receive_buffer >> 10, sock.send_buffer >> 10, wanted >> 10,
            )  # fmt: skip
        return UdpListener(self, sock)

    # --- NodePlugin ------------------------------------------------------------------------------

    def rebind(self) -> None:
        """Fresh sockets for what was dialled; all links are measured anew."""
        for family, old in list(self._dialling.items()):
            try:
                new = _open(family, _any(family), old.codec, old.owner, self, is_listening=False)
            except OSError as error:
                log.warning("no new UDP socket: %s; the old one stays", error.strerror)
                continue
            self._dialling[family] = new
            for link in list(old.links.values()):
                self._move(link, new)
            old.close()
        for sock in self._sockets():
            for link in list(sock.links.values()):
                self._resize(link)

    def describe(self) -> list[dict[str, Any]]:
        """One row for each socket."""
        return [
            {
                "protocol": "udp",
                "local": endpoint_text(sock.host, sock.port),
                "listening": sock.is_listening,
                "links": len(sock.links),
                "receive_buffer": sock.receive_buffer,
                "send_buffer": sock.send_buffer,
                "segments": sock.has_segments,
                "joined": sock.has_joined,
                "foreign": sock.counters.foreign,
                "overrun": sock.overrun_count(),
                "unsent": sock.counters.unsent,
                "too_large": sock.counters.too_large,
                "errors": sock.counters.errors,
            }
            for sock in self._sockets()
        ]

    def close(self) -> None:
        """Closes every socket."""
        self._is_closed = True
        for sock in self._sockets():
            sock.close()
        self._listening.clear()
        self._dialling.clear()

    # --- Acceptor --------------------------------------------------------------------------------

    def accept(self, sock: UdpSocket, address: Address) -> UdpLink:
        """A genuine message came from an unknown address."""
        self._make_place(sock.owner)
        try:
            caps, local = _look(sock, address)
        except OSError:  # heard, though no way leads back: it ends by itself
            caps, local = CAPS, ""
        remote = endpoint_text(str(address[0]), int(address[1]))
        link = UdpLink(sock, sock.owner, address, remote, local, caps, is_dialled=False)
        sock.links[address] = link
        self._unproved[link] = None
        sock.owner.link_opened(link)
        return link

    def too_large(self, link: UdpLink, size: int) -> None:
        """The local interface has become narrower (or a probe tried more than it takes)."""
        if size - HEADER_SIZE <= link.caps.payload_size_max:
            asyncio.get_running_loop().call_soon(self._resize, link, size - HEADER_SIZE)

    # --- inside ----------------------------------------------------------------------------------

    def unlisten(self, sock: UdpSocket) -> None:
        """Listens there no more; links move to a socket that stays, or that has the port in a moment."""
        if sock not in self._listening:
            return
        self._listening.remove(sock)
        sock.close()
        if sock.links:
            self._parting.append(sock)
            asyncio.get_running_loop().call_later(PARTING_S, self._part, sock)

    def _take_over(self, old: UdpSocket, new: UdpSocket) -> None:
        """Links of a closed socket go on from one at its port, if their peers know them by that address.

        What their peers send would make links of its own there, and these would be in the way.
        """
        for link in list(old.links.values()):
            if new.is_wildcard or link.local == endpoint_text(new.host, new.port):
                self._move(link, new)

    def _part(self, sock: UdpSocket) -> None:
        """The links of a socket that is closed, and was not replaced, go on from others."""
        self._parting.remove(sock)
        for link in list(sock.links.values()) if not self._is_closed else ():
            to = Place(str(link.address[0]), 1)
            try:
                new = self._socket_for(sock.family, to, sock.codec, sock.owner, sock.port)
            except OSError as error:
                log.warning("no other UDP socket: %s; a link ends", error.strerror)
                link.close()
            else:
                self._move(link, new)

    def _move(self, link: UdpLink, new: UdpSocket) -> None:
        """It goes on from another socket, unless its peer is linked from there, too, as well or better."""
        other = new.links.get(link.address)
        if other is not None:
            is_proved = link.owner.link_is_proved
            if other.is_dialled or is_proved(other) or not is_proved(link):
                link.close()
                return
            new.forget(other)
        new.adopt(link)
        self._resize(link)

    def _resize(self, link: UdpLink, failed: int = PACKET_MAX) -> None:
        """Looks again at how the system sends there; `failed`: it has just refused this size."""
        try:
            caps, link.local = _look(link.sock, link.address)
        except OSError:
            return  # offline: the link's end, or its return, shows by itself
        size_max = caps.payload_size_max
        if size_max >= failed:  # it takes less than it says: a few steps find how much
            size_max = failed * 15 // 16
        size_max = max(PAYLOAD_BASE, size_max)
        if size_max != link.caps.payload_size_max:
            link.caps = replace(caps, payload_size_max=size_max)
            link.owner.link_resized(link)

    def _make_place(self, owner: LinkOwner) -> None:
        """Fewer than UNPROVED_MAX accepted links are of nobody."""
        if len(self._unproved) < UNPROVED_MAX:
            return
        for link in list(self._unproved):
            is_open = link.sock.links.get(link.address) is link
            if not is_open or owner.link_is_proved(link):
                del self._unproved[link]
        while len(self._unproved) >= UNPROVED_MAX:
            oldest = next(iter(self._unproved))
            del self._unproved[oldest]
            oldest.close()

    def _socket_for(
        self, family: int, to: Place, codec: HeaderCodec, owner: LinkOwner, port: int = 0
    ) -> UdpSocket:
        """Where datagrams to this address leave: a listening socket if one can reach it, best at `port`."""
        for sock in sorted(self._listening, key=lambda sock: sock.port != port):
            bound = Place(sock.host, sock.port)
            if sock.family == family and (sock.is_wildcard or bound.is_loopback == to.is_loopback):
                return sock
        found = self._dialling.get(family)
        if found is None:
            found = _open(family, _any(family), codec, owner, self, is_listening=False)
            self._dialling[family] = found
        return found

    def _sockets(self) -> list[UdpSocket]:
        return [*self._listening, *self._dialling.values()]


def _open(
    family: int,
    address: Address,
    codec: HeaderCodec,
    owner: LinkOwner,
    plugin: UdpPlugin,
    is_listening: bool,
) -> UdpSocket:
    """A bound socket that is being read. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return UdpSocket(sock, codec, owner, plugin, is_listening)


def _any(family: int) -> Address:
    return ("::", 0, 0, 0) if family == socket.AF_INET6 else ("0.0.0.0", 0)


def _resolve(endpoint: Endpoint) -> tuple[int, Address]:
    """Family and address as `recvmsg` would give it; nothing is looked up."""
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    (found, *_) = socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_DGRAM, flags=flags
    )
    return int(found[0]), found[4]


def _look(sock: UdpSocket, address: Address) -> tuple[LinkCaps, str]:
    """What a link from `sock` to there can carry, and our address. Raises OSError: no way."""
    mtu, host = gso.route(
        sock.family, str(address[0]), int(address[1]), None if sock.is_wildcard else sock.host
    )
    overhead = IP_HEADERS[sock.family] + UDP_HEADER + HEADER_SIZE
    size_max = min(mtu, PACKET_MAX) - overhead if sock.has_no_fragments else PAYLOAD_BASE
    # what the system knows of the path may come from a forged ICMP message: never below the base
    caps = replace(CAPS, payload_size_max=max(PAYLOAD_BASE, size_max))
    return caps, endpoint_text(host, sock.port)


class UdpFactory:
    """Links of the form `udp://`."""

    scheme = "udp"

    def for_node(self) -> UdpPlugin:
        """The sockets of one more node."""
        return UdpPlugin()


PLUGIN = UdpFactory()
