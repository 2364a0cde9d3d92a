"""Finds, among many conditions on a host, those that hold: in microseconds, however many there are.

Each condition has an order number. An even one is final: of conditions with the same name or network
those behind the first final one are not kept, since nobody will ask for them. Per kind:

- *names* (exact, suffix, `.suffix`, `*.suffix`): a CompactMap, asked once for each label of the host.
- *parts* (keyword, wildcard, most regular expressions): a text that must occur in the host, found by one
  of its three-letter pieces, the one that the fewest others have; so a host costs a dict look-up for each
  of its letters, and a comparison for each part whose piece it has.
- *networks*: disjoint ranges, sorted, each with the numbers of the networks that cover it; one bisection.
- *patterns* (the other regular expressions): one automaton on the host and one on `scheme://host/`.
"""

from __future__ import annotations

import enum
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from uservpn.chooser.automata import TOTAL_MAX, Automaton
from uservpn.chooser.hosts import number_of
from uservpn.chooser.patterns import Pattern
from uservpn.kit.compact import CompactMap, CompactMapBuilder

HTTPS_PORT: Final = 443
_PIECE: Final = 3
_Piece = tuple[str, ...]


class Kind(enum.Enum):
    """The kinds of condition, called as the configuration calls them."""

    EXACT = "exact"
    SUFFIX = "suffix"
    """A domain and everything below it."""
    BELOW = "below"
    """Everything below a domain, but not the domain."""
    ONE_LABEL = "one label below"
    """Names of exactly one label more than a domain."""
    KEYWORD = "keyword"
    WILDCARD = "wildcard"
    """`*` for any characters, `?` for one."""
    LABELS = "label wildcard"
    """`*` for one whole label."""
    CIDR = "cidr"
    REGEX = "regex"
    URL = "url regex"
    """A regular expression on `scheme://host/`."""
    PORT = "port"
    COUNTRY = "country"
    ALL = "all"

    __hash__ = object.__hash__  # each member is one object; Enum's own is ten times as slow


class Network(NamedTuple):
    """A network; the bits behind its prefix are zero."""

    bits: int
    value: int
    prefix: int

    def __str__(self) -> str:
        import ipaddress

        kind = ipaddress.IPv4Address if self.bits == 32 else ipaddress.IPv6Address
        return f"{kind(self.value)}/{self.prefix}"


class HostIndex:
    """Made by a HostIndexBuilder; immutable, but for what `patterns` builds while it is used."""

    __slots__ = ("_forms", "_has_names", "_names", "_networks", "_parts", "_patterns", "_urls")

    def __init__(
        self,
        names: CompactMap,
        forms: _Forms,
        parts: _Parts | None,
        networks: dict[int, _Networks],
        patterns: tuple[Automaton | None, Automaton | None],
    ) -> None:
        self._names = names
        self._forms = forms
        self._has_names = any(forms)
        self._parts = parts
        self._networks = networks
        self._patterns, self._urls = patterns

    @property
    def size(self) -> int:
        """Bytes of memory, roughly."""
        parts = (self._names, self._parts, *self._networks.values(), self._patterns, self._urls)
        return sum(part.size for part in parts if part is not None)

    def orders(self, host: str, port: int) -> list[int]:
        """Order numbers of what holds for a host in normal form, in no order, some perhaps twice."""
        found = self._names.find(_keys(host, self._forms)) if self._has_names else []
        if self._parts is not None:
            found += self._parts.orders(host, port)
        if self._networks:
            number = number_of(host)
            if number is not None and number.bits in self._networks:
                found += [code >> 8 for code in self._networks[number.bits].find(number.value)]
        if self._patterns is not None:
            found += self._patterns.find(host)
        if self._urls is not None:
            found += self._urls.find(_url(host, port))
        return found

    def holds(self, host: str, port: int) -> bool:
        """Does any condition hold?"""
        return bool(self.orders(host, port))

    def explain(self, order: int, host: str, port: int) -> str:
        """The condition with this number that holds for `host`, in words: "suffix example.com"."""
        for key in _keys(host, self._forms):
            if order in self._names.find((key,)):
                return _name_text(key)
        for part in self._parts.found(host, port) if self._parts is not None else ():
            if part.order == order:
                return f"{part.kind.value} {part.text}"
        number = number_of(host)
        if number is not None and number.bits in self._networks:
            for code in self._networks[number.bits].find(number.value):
                if code >> 8 == order:
                    prefix = code & 0xFF
                    value = number.value >> (number.bits - prefix) << (number.bits - prefix)
                    return f"cidr {Network(number.bits, value, prefix)}"
        for kind, automaton in ((Kind.REGEX, self._patterns), (Kind.URL, self._urls)):
            if automaton is not None and automaton.texts_of(order):
                return f"{kind.value} {automaton.texts_of(order)[0]}"
        return ""


class HostIndexBuilder:
    """Collects conditions of every kind on hosts."""

    def __init__(self) -> None:
        self._names = CompactMapBuilder()
        self._forms = dict.fromkeys(_MARKS, 0)
        self._parts: list[_Part] = []
        self._networks: dict[int, list[tuple[Network, int]]] = {}
        self._patterns: dict[Kind, list[tuple[Pattern, int]]] = {Kind.REGEX: [], Kind.URL: []}
        self._state_count = 0

    def add_name(self, kind: Kind, name: str, order: int) -> None:
        """EXACT, SUFFIX, BELOW or ONE_LABEL; `name` in normal form, of BELOW and ONE_LABEL the domain."""
        self._forms[kind] |= 2 << name.count(".")
        self._names.add(_MARKS[kind] + name, order)

    def add_part(self, kind: Kind, text: str, order: int) -> None:
        """KEYWORD, WILDCARD or LABELS, in small letters; needs at least one letter to look for."""
        literal = text if kind is Kind.KEYWORD else max(_STARS.split(text), key=len)
        self._parts.append(_Part(kind, text, order, literal))

    def add_network(self, network: Network, order: int) -> None:
        """CIDR."""
        self._networks.setdefault(network.bits, []).append((network, order))

    def add_pattern(self, kind: Kind, pattern: Pattern, order: int) -> None:
        """REGEX or URL. Raises ValueError when they are too many."""
        self._state_count += pattern.state_count
        if self._state_count > TOTAL_MAX:
            raise ValueError(f"patterns that together need more than {TOTAL_MAX} states")
        literal = _literal_of(pattern, kind)
        if literal:
            automaton = Automaton([(pattern, order)])
            self._parts.append(_Part(kind, pattern.text, order, literal, automaton))
        else:
            self._patterns[kind].append((pattern, order))

    def build(self) -> HostIndex:
        """The index."""
        return HostIndex(
            self._names.build(),
            _Forms(*self._forms.values()),
            _Parts(self._parts) if self._parts else None,
            {bits: _Networks(networks) for bits, networks in self._networks.items()},
            (_automaton(self._patterns[Kind.REGEX]), _automaton(self._patterns[Kind.URL])),
        )


# --- names ------------------------------------------------------------------------------------

_MARKS: Final = {Kind.EXACT: "=", Kind.SUFFIX: "", Kind.BELOW: ".", Kind.ONE_LABEL: "*."}


class _Forms(NamedTuple):
    """Which names there are: bit n is set where a kind has names of n labels. Others are not asked for."""

    exact: int
    suffix: int
    below: int
    one_label: int


def _keys(host: str, forms: _Forms) -> list[str]:
    """The texts under which a name that holds for `host` may stand in the map."""
    exact, suffix, below, one_label = forms
    bit = 2 << host.count(".")  # of as many labels as are left
    keys = ["=" + host] if exact & bit else []
    if suffix & bit:
        keys.append(host)
    dot = host.find(".")
    if one_label & bit >> 1 and dot >= 0:
        keys.append("*" + host[dot:])
    while dot >= 0:
        bit >>= 1
        if suffix & bit:
            keys.append(host[dot + 1 :])
        if below & bit:
            keys.append(host[dot:])
        dot = host.find(".", dot + 1)
    return keys


def _name_text(key: str) -> str:
    return f"exact {key[1:]}" if key.startswith("=") else f"suffix {key}"


# --- parts ------------------------------------------------------------------------------------


_STARS: Final = re.compile(r"[*?]")
_NOT_OF_A_HOST: Final = re.compile(r"[/:\[\]]")


class _Part(NamedTuple):
    kind: Kind
    text: str
    order: int
    literal: str
    """In every host for which this holds; not empty."""
    automaton: Automaton | None = None
    """Of a regular expression."""

    def holds(self, host: str, port: int) -> bool:
        if self.automaton is not None:
            text = host if self.kind is Kind.REGEX else _url(host, port)
            return bool(self.automaton.find(text))
        if self.kind is Kind.KEYWORD:
            return self.text in host
        if self.kind is Kind.WILDCARD:
            return wildcard_holds(self.text, host)
        labels, wanted = host.split("."), self.text.split(".")
        return len(labels) == len(wanted) and all(
            wish in ("*", label) for label, wish in zip(labels, wanted, strict=True)
        )

    def pieces(self) -> Iterable[_Piece]:
        """Up to three letters in a row, which all occur in every host for which this holds."""
        return _pieces(self.literal, min(_PIECE, len(self.literal)))


def _literal_of(pattern: Pattern, kind: Kind) -> str:
    """The longest text that a host must have for a pattern to be found; empty: none worth looking for.

    A text of three letters and more without "/" and ":" that is found in `https://host/` is in the host,
    unless it is in `https`.
    """
    literals = pattern.literals
    if kind is Kind.URL:
        literals = [part for text in literals for part in _NOT_OF_A_HOST.split(text)]
        literals = [text for text in literals if text not in "https"]
    longest = max(literals, key=len, default="")
    return longest if len(longest) >= _PIECE else ""


class _Parts:
    """Parts by one of their pieces each."""

    __slots__ = ("_by_piece", "_pieces", "_sizes")

    def __init__(self, parts: Iterable[_Part]) -> None:
        self._by_piece: dict[_Piece, list[_Part]] = {}
        for part in parts:
            piece = min(part.pieces(), key=lambda piece: len(self._by_piece.get(piece, ())))
            self._by_piece.setdefault(piece, []).append(part)
        self._pieces = frozenset(self._by_piece)
        self._sizes = sorted({len(piece) for piece in self._by_piece})

    @property
    def size(self) -> int:
        automata = (p.automaton for parts in self._by_piece.values() for p in parts)
        patterns = sum(automaton.size for automaton in automata if automaton is not None)
        return patterns + sum(200 + 200 * len(parts) for parts in self._by_piece.values())

    def orders(self, host: str, port: int) -> list[int]:
        return [part.order for part in self.found(host, port)]

    def found(self, host: str, port: int) -> list[_Part]:
        found: list[_Part] = []
        for size in self._sizes:
            for piece in self._pieces.intersection(_pieces(host, size)):
                found += [
                    part
                    for part in self._by_piece[piece]
                    if part.literal in host and part.holds(host, port)
                ]
        return found


def _pieces(text: str, size: int) -> Iterable[_Piece]:
    """Every piece of `text`: tuples, since `zip` makes them three times as fast as slices are cut."""
    if size == _PIECE:
        return zip(text, text[1:], text[2:], strict=False)
    return zip(*(text[at:] for at in range(size)), strict=False)


def wildcard_holds(pattern: str, text: str) -> bool:
    """Is `text` what `pattern` describes, `*` being any characters and `?` one?

    Takes at most len(pattern) * len(text) steps: only the last `*` is ever tried again.
    """
    at = place = 0
    star, retry = -1, 0
    while place < len(text):
        char = pattern[at : at + 1]
        if char == "*":
            star, retry = at, place
            at += 1
        elif char and char in ("?", text[place]):
            at += 1
            place += 1
        elif star >= 0:
            retry += 1
            at, place = star + 1, retry
        else:
            return False
    return not pattern[at:].strip("*")


# --- networks ---------------------------------------------------------------------------------


_NOTHING: Final = 1 << 63
_SEVERAL: Final = 1 << 62
"""The rest is a place in the table of several codes."""


class _Networks:
    """The networks of one family, as ranges with one answer each: codes of order << 8 | prefix."""

    __slots__ = ("_answers", "_several", "_starts")

    def __init__(self, networks: Sequence[tuple[Network, int]]) -> None:
        starts: list[int] = []
        self._answers = array("Q")
        self._several: list[tuple[int, ...]] = []
        for start, codes in _ranges(networks):
            starts.append(start)
            if len(codes) > 1:
                self._answers.append(_SEVERAL | len(self._several))
                self._several.append(codes)
            else:
                self._answers.append(codes[0] if codes else _NOTHING)
        is_short = bool(networks) and networks[0][0].bits == 32
        self._starts: array[int] | list[int] = array("Q", starts) if is_short else starts

    @property
    def size(self) -> int:
        width = 8 if isinstance(self._starts, array) else 48
        several = sum(56 + 40 * len(codes) for codes in self._several)
        return len(self._starts) * (width + 8) + several

    def find(self, value: int) -> tuple[int, ...]:
        """The codes of the networks around an address, ascending, up to the first final one."""
        at = bisect_right(self._starts, value) - 1
        answer = self._answers[at] if at >= 0 else _NOTHING
        if answer & _SEVERAL:
            return self._several[answer ^ _SEVERAL]
        return () if answer == _NOTHING else (answer,)


def _ranges(networks: Sequence[tuple[Network, int]]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where the answer changes, and what it is from there on. Networks nest or do not touch.

    One place may come several times; the last time counts.
    """
    codes_of: dict[Network, set[int]] = {}
    for network, order in networks:
        codes_of.setdefault(network, set()).add(order << 8 | network.prefix)
    around: list[tuple[int, tuple[int, ...]]] = [(1 << 129, ())]
    for network in sorted(codes_of):
        while around[-1][0] <= network.value:
            end, _ = around.pop()
            yield end, around[-1][1]
        codes = _up_to_final(sorted({*around[-1][1], *codes_of[network]}))
        around.append((network.value + (1 << (network.bits - network.prefix)), codes))
        yield network.value, codes
    while len(around) > 1:
        end, _ = around.pop()
        yield end, around[-1][1]


def _up_to_final(codes: Sequence[int]) -> tuple[int, ...]:
    for place, code in enumerate(codes):
        if not code >> 8 & 1:
            return tuple(codes[: place + 1])
    return tuple(codes)


def _automaton(patterns: Sequence[tuple[Pattern, int]]) -> Automaton | None:
    return Automaton(patterns) if patterns else None


def _url(host: str, port: int) -> str:
    scheme = "https" if port == HTTPS_PORT else "http"
    return f"{scheme}://[{host}]/" if ":" in host else f"{scheme}://{host}/"
