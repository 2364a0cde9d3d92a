"""The one form of a target's host that sites and rules compare: small letters, ASCII, no final dot.

`WWW.Example.COM.`, `bücher.example` and `[2001:DB8:0::1]` become `www.example.com`,
`xn--bcher-kva.example` and `2001:db8::1`. A mapped address (`::ffff:192.0.2.1`) is the IPv4 address
it stands for. Nothing here resolves a name.
"""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

ADDRESS_SIZE_MAX: Final = 64
"""No numeric address is longer as a text."""


class Number(NamedTuple):
    """A numeric address: its family's width in bits, 32 or 128, and its value."""

    bits: int
    value: int


def normal_host(host: str) -> str:
    """The one form of `host`. Never fails: what is no host in the world stays what it is."""
    host = host.lower() if host.isascii() else _ascii(host)
    if host.endswith("."):
        host = host[:-1]
    if ":" in host or host.startswith("["):
        return _normal_v6(host)
    return host


def number_of(host: str) -> Number | None:
    """The address that a host in its normal form is; None: it is a name."""
    if ":" in host:
        try:
            return Number(128, int(ipaddress.IPv6Address(host.partition("%")[0])))
        except ValueError:
            return None
    value = v4_value(host) if host[-1:].isdigit() else None
    return None if value is None else Number(32, value)


def v4_value(text: str) -> int | None:
    """The value of four decimal numbers with dots, without leading zeros; None: something else."""
    parts = text.split(".")
    if len(parts) != 4:
        return None
    value = 0
    for part in parts:
        if not part.isdecimal() or len(part) > 3 or (part[0] == "0" and len(part) > 1):
            return None
        byte = int(part)
        if byte > 255:
            return None
        value = value << 8 | byte
    return value


def _normal_v6(host: str) -> str:
    text = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if len(text) > ADDRESS_SIZE_MAX:
        return host
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return text if v4_value(text) is not None else host
    return str(address.ipv4_mapped or address)


def _ascii(host: str) -> str:
    """Labels in punycode as IDNA 2003 has it; a label it refuses only gets small letters."""
    labels = []
    for label in host.replace("\u3002", ".").split("."):  # the dot of East Asian keyboards
        try:
            labels.append(label.encode("idna").decode("ascii").lower())
        except UnicodeError:
            labels.append(label.lower())
    return ".".join(labels)
