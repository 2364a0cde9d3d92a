"""Which addresses an exit may dial.

The question is asked about the numeric address that is then dialled, never about a name: a name
that resolves to something else a moment later ("DNS rebinding") has no gap to slip through.

Addresses that do not belong to the public Internet are *special*: loopback, private, shared
(100.64/10), link-local, multicast, unspecified, documentation, reserved; and a few public ones at
which a cloud answers only its own machines. An IPv6 address may carry an IPv4 address (6to4,
Teredo, NAT64, "translated"): both are judged, since both may be reached. A mapped address
(`::ffff:192.0.2.1`) simply *is* its IPv4 address, in targets and in the lists. In this order:

1. `deny` covers the address, or one that it carries: refused.
2. It, or one that it carries, is special and `allow` does not cover just that one: refused.
3. Otherwise it may be dialled.

So `allow = ["::/0"]` opens every IPv6 network, but not 127.0.0.1 by way of an IPv6 form of it.
Answers are kept per address text, so that the usual question costs one dict look-up.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CACHE_MAX: Final = 8192
"""Answers kept at most; the ones not asked for longest go, half of them at a time."""
_TEXT_MAX: Final = 64
"""No numeric address is longer; what is longer is a name."""

_SPECIAL_V4: Final = (
    "0.0.0.0/8",  # this network, unspecified
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared (CGNAT); Alibaba's metadata at 100.100.100.200
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's host: metadata, health, DNS; a public address
    "169.254.0.0/16",  # link-local; nearly every cloud's metadata at 169.254.169.254
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata at 192.0.0.192
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays, no longer in use
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/3",  # multicast, reserved, broadcast
)
_SPECIAL_V6: Final = (
    "::/3",  # unspecified, loopback, and forms that carry IPv4
    "2001::/23",  # IETF protocol assignments, Teredo among them
    "2001:db8::/32",  # documentation
    "3fff::/20",  # documentation
    "4000::/2",  # not assigned
    "8000::/1",  # not assigned; unique local (fd00:ec2::254), link-local, site-local, multicast
)
_TRANSLATORS: Final = ("64:ff9b::/96", "::ffff:0:0:0/96")
"""NAT64's well-known prefix and SIIT's: special only where the IPv4 address they carry is."""


class Policy:
    """The exit's rules. Immutable but for its bounded cache: live change is a new Policy."""

    __slots__ = ("_allow", "_deny", "_old", "_young")

    def __init__(self, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> None:
        """Raises ValueError for a text that is no network."""
        self._allow = _Ranges(_network(text) for text in allow)
        self._deny = _Ranges(_network(text) for text in deny)
        self._young: dict[str, bool] = {}
        self._old: dict[str, bool] = {}

    def check(self, ip: str, port: int) -> bool:
        """May this numeric address be dialled at this port? False too for what is no address."""
        return port != 0 and self.verdict(ip) is True

    def verdict(self, host: str) -> bool | None:
        """May this numeric address be dialled? None: it is a name, not an address."""
        answer = self._young.get(host)
        return self._recall(host) if answer is None else answer

    def _recall(self, host: str) -> bool | None:
        if not is_literal(host):
            return None
        answer = self._old.get(host)
        if answer is None:
            address = _parse(host)
            if address is None:
                return None
            answer = self._judge(address)
        if len(self._young) >= CACHE_MAX // 2:
            self._old = self._young
            self._young = {}
        self._young[host] = answer
        return answer

    def _judge(self, address: _Address) -> bool:
        forms = [address, *_carried(address)]
        if any(form in self._deny for form in forms):
            return False
        return all(form not in _SPECIAL or form in self._allow for form in forms)


def is_literal(host: str) -> bool:
    """Can this be a numeric address? Cheap; a few names (`host1`) get past it, no address fails."""
    return 0 < len(host) <= _TEXT_MAX and (":" in host or host[-1] in "0123456789")


class _Ranges:
    """A set of addresses, given as networks; a look-up is one bisection."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, networks: Iterable[_Network], without: Iterable[_Network] = ()) -> None:
        spans = sorted(_span(network) for network in networks)
        starts: list[int] = []
        ends: list[int] = []
        for start, end in spans:
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(start)
                ends.append(end)
        for hole in without:
            start, end = _span(hole)
            at = bisect_right(starts, start) - 1
            starts.insert(at + 1, end)
            ends.insert(at, start)
        self._starts = starts
        self._ends = ends

    def __contains__(self, address: _Address) -> bool:
        number = int(address) + (_V6 if address.version == 6 else 0)
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]


_V6: Final = 1 << 32
"""IPv6 addresses stand behind the IPv4 ones on one number line."""


def _span(network: _Network) -> tuple[int, int]:
    start = int(network.network_address) + (_V6 if network.version == 6 else 0)
    return start, start + network.num_addresses


def _network(text: str) -> _Network:
    """A network of either family; one of mapped addresses becomes the IPv4 network it is."""
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _parse(text: str) -> _Address | None:
    """The address, without its zone (which only link-local ones have); a mapped one as IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.scope_id is not None and not address.is_link_local:
        return None
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))


def _carried(address: _Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses inside an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    if any(address in network for network in _TRANSLATOR_NETWORKS):
        return [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    if address.sixtofour is not None:
        return [address.sixtofour]
    return list(address.teredo or ())


_TRANSLATOR_NETWORKS: Final = tuple(ipaddress.IPv6Network(text) for text in _TRANSLATORS)
_SPECIAL: Final = _Ranges(
    (_network(text) for text in (*_SPECIAL_V4, *_SPECIAL_V6)), without=_TRANSLATOR_NETWORKS
)
