"""One condition of a rule: its kind and its value, read from a text and in the form that is compared.

Whatever `read_condition` returns can hold for some target; a text that never could is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from uservpn.chooser.hosts import normal_host, number_of
from uservpn.chooser.index import Kind, Network
from uservpn.chooser.patterns import Pattern

OWN: Final = "own"
"""Stands for the country of the node itself."""
NAME_SIZE_MAX: Final = 253
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*", re.ASCII)
_KEYWORD: Final = re.compile(r"[a-z0-9_.:-]{1,253}", re.ASCII)
_WILDCARD: Final = re.compile(r"[a-z0-9_.:*?-]{1,253}", re.ASCII)
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:\s?-\s?([0-9]{1,5}))?", re.ASCII)
_PREFIX: Final = re.compile(r"[0-9]{1,3}", re.ASCII)

FORMS: Final = {
    Kind.EXACT: "a host, such as www.example.com or 203.0.113.7",
    Kind.SUFFIX: "a domain without '.' or '*.' in front, such as example.com",
    Kind.BELOW: "a domain, such as example.com",
    Kind.ONE_LABEL: "a domain, such as example.com",
    Kind.KEYWORD: "a part of a host: letters of ASCII, digits, '.', '-', '_', ':'",
    Kind.WILDCARD: "a host with '*' for any characters and '?' for one, and something beside them",
    Kind.LABELS: "a host with '*' for whole labels, and something beside them",
    Kind.REGEX: "a regular expression of the common kind, without back references or looking around",
    Kind.URL: "a regular expression of the common kind, without back references or looking around",
    Kind.CIDR: "a network such as 203.0.113.0/24 or 2001:db8::/32, or one address",
    Kind.PORT: 'a port or a range of ports, such as 443 or "8000-8999"',
    Kind.COUNTRY: 'a country by two letters of ISO 3166, such as "us", or "own"',
}
"""What each kind takes, in words fit for an error message."""


class Ports(NamedTuple):
    """A range of ports, its ends included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


class Condition(NamedTuple):
    """A kind and a value of the type that belongs to it."""

    kind: Kind
    value: str | Network | Pattern | Ports
    """COUNTRY: two capital letters, or OWN."""
    line: int = 0
    """Where it stands in its file; 0: in none."""
    is_exception: bool = False
    """It says where the rule does not hold."""


def read_condition(kind: Kind, text: str, line: int = 0, is_exception: bool = False) -> Condition:
    """The condition. Raises ValueError with what was found, Unsupported for what cannot be judged."""
    return Condition(kind, _READERS[kind](text), line, is_exception)


def read_network(text: str) -> Network:
    """A network of either family or one address; bits behind the prefix are let go."""
    address, slash, length = text.strip().partition("/")
    number = number_of(normal_host(address))
    if number is None or (slash and not _PREFIX.fullmatch(length)):
        raise ValueError(f"{text!r}")
    prefix = int(length) if slash else number.bits
    if number.bits == 32 and ":" in address and slash:
        prefix -= 96  # a mapped one
    if not 0 <= prefix <= number.bits:
        raise ValueError(f"{text!r}")
    shift = number.bits - prefix
    return Network(number.bits, number.value >> shift << shift, prefix)


def read_name(text: str) -> str:
    """A host or domain in its normal form."""
    name = normal_host(text)
    is_name = _NAME.fullmatch(name) is not None and len(name) <= NAME_SIZE_MAX
    if not is_name and number_of(name) is None:
        raise ValueError(f"{text!r}")
    return name


def read_domain(text: str) -> str:
    """A domain in its normal form; a numeric address is none."""
    name = read_name(text)
    if number_of(name) is not None:
        raise ValueError(f"{text!r}, an address")
    return name


def read_ports(text: str) -> Ports:
    """The first and the last port."""
    match = _PORTS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r}")
    low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{text!r}")
    return Ports(low, high)


def _read_country(text: str) -> str:
    from uservpn.chooser.geo import is_country  # a table, for nodes with such a rule

    if text.lower() == OWN:
        return OWN
    if not is_country(text.upper()):
        raise ValueError(f"{text!r}")
    return text.upper()


def _read_keyword(text: str) -> str:
    if _KEYWORD.fullmatch(text.lower()) is None:
        raise ValueError(f"{text!r}")
    return text.lower()


def _read_wildcard(text: str) -> str:
    pattern = normal_host(text) if text.isascii() else text
    if _WILDCARD.fullmatch(pattern) is None or not pattern.strip("*?."):
        raise ValueError(f"{text!r}")
    return re.sub(r"\*{2,}", "*", pattern)


def _read_labels(text: str) -> str:
    pattern = _read_wildcard(text)
    if any("*" in label and label != "*" for label in pattern.split(".")) or "?" in pattern:
        raise ValueError(f"{text!r}")
    return pattern


_READERS: Final[Mapping[Kind, Callable[[str], str | Network | Pattern | Ports]]] = {
    Kind.EXACT: read_name,
    Kind.SUFFIX: read_domain,
    Kind.BELOW: read_domain,
    Kind.ONE_LABEL: read_domain,
    Kind.KEYWORD: _read_keyword,
    Kind.WILDCARD: _read_wildcard,
    Kind.LABELS: _read_labels,
    Kind.REGEX: Pattern,
    Kind.URL: Pattern,
    Kind.CIDR: read_network,
    Kind.PORT: read_ports,
    Kind.COUNTRY: _read_country,
}
