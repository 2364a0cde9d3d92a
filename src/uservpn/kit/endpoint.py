"""Where a node can be reached: a protocol, a numeric address and a port.

    tcp://203.0.113.5:7000      udp://[2001:db8::5]:7000      wss://203.0.113.5:443/way?host=example.com

What may follow the port are options of the protocol, as a path and a query.

Addresses are numeric, always. A name would have to be resolved, and a client never asks a DNS
server for anything, so a name is refused where it is read, not where it is dialled. Whatever
`parse` returns is canonical: two texts for one place give equal values.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

_PROTOCOL: Final = re.compile(r"[a-z][a-z0-9+.-]{0,15}", re.ASCII)
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_DIGITS_AND_DOTS: Final = re.compile(r"[0-9.]*", re.ASCII)
_OPTIONS: Final = re.compile(r"[/?][A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]-]{1,199}", re.ASCII)
_SHOWN_MAX: Final = 80

ENDPOINT_FORM: Final = "protocol://address:port, such as tcp://203.0.113.5:7000 or tcp://[::1]:7000"
ADDRESS_FORM: Final = "address:port, such as 127.0.0.1:1080 or [::1]:1080"


class Address(NamedTuple):
    """A numeric host and a port; `str()` gives the form that `parse` reads."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address in `text`; ValueError with a sentence that says what is wrong."""
        return _address(text, text, ADDRESS_FORM)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Only programs on this machine can reach it."""
        return _is_loopback(self.host)

    @property
    def is_wildcard(self) -> bool:
        """Stands for every address of a machine: fit to listen on, not to dial."""
        return ipaddress.ip_address(self.host).is_unspecified

    def collides(self, other: Address) -> bool:
        """May sockets of one kind listen on only one of them? IPv4 and IPv6 have ports of their own."""
        if self.port != other.port or (":" in self.host) != (":" in other.host):
            return False
        return self.is_wildcard or other.is_wildcard or self.host == other.host


class Endpoint(NamedTuple):
    """One way to reach a node; `str()` gives the form that `parse` reads."""

    protocol: str
    host: str
    port: int
    options: str = ""
    """What only the protocol understands: a path, a query, both, or nothing."""

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """The endpoint in `text`; ValueError with a sentence that says what is wrong."""
        protocol, separator, rest = text.partition("://")
        if not separator or _PROTOCOL.fullmatch(protocol) is None:
            raise ValueError(f"{_shown(text)} is not an endpoint: write {ENDPOINT_FORM}")
        start = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
        options = rest[start:]
        if options and _OPTIONS.fullmatch(options) is None:
            raise ValueError(
                f"{_shown(text)} has the options {_shown(options)}: write {ENDPOINT_FORM}, and behind "
                "it nothing, or a path or a query of at most 200 letters"
            )
        address = _address(rest[:start], text, ENDPOINT_FORM)
        return cls(protocol, address.host, address.port, options)

    def __str__(self) -> str:
        return f"{self.protocol}://{self.address}{self.options}"

    @property
    def address(self) -> Address:
        """The host and port without the protocol."""
        return Address(self.host, self.port)


def _address(text: str, whole: str, form: str) -> Address:
    """Split at the last colon; brackets around IPv6 are required, as in URLs."""
    host, _, port_text = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed):
        raise ValueError(f"{_shown(whole)} has no address and port: write {form}")
    port = _port(port_text, whole)
    return Address(_numeric(host[1:-1] if bracketed else host, bracketed, whole, form), port)


def _port(text: str, whole: str) -> int:
    port = int(text) if _PORT.fullmatch(text) else 0
    if not 1 <= port <= 65535:
        raise ValueError(f"{_shown(whole)} has the port {_shown(text)}: a port is 1 to 65535")
    return port


def _numeric(host: str, bracketed: bool, whole: str, form: str) -> str:
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        if bracketed or _DIGITS_AND_DOTS.fullmatch(host):
            problem = f"{_shown(whole)} has no valid address: write {form}"
        else:
            problem = (
                f"{_shown(whole)} has the name {_shown(host)} where a numeric address is "
                f"needed (names are never resolved here): write {form}"
            )
        raise ValueError(problem) from None
    if bracketed != (parsed.version == 6):
        raise ValueError(f"{_shown(whole)} has wrong brackets (IPv6 only): write {form}")
    return str(parsed)


def _is_loopback(host: str) -> bool:
    parsed = ipaddress.ip_address(host)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def _shown(text: str) -> str:
    """`text` for an error message: quoted, escaped, and never longer than a line."""
    return repr(text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "...")
