"""The owner's rules: which exit a site leaves through, the first rule that holds.

A rule is one or more conditions, all of which must hold, and a target. A condition has one or more
alternatives, one of which must hold: `suffix = ["a.example", "b.example"]`, or the lines of a file. Every
alternative of a rule's first condition gets an order number, rule by rule and line by line, so that the
first rule is the one with the lowest number. Two parts are asked, and the lowest number of both wins:

- the *index* (`index`) of alternatives on the host. Numbers of a rule with a further condition or with
  exceptions are odd: such a rule has a *guard*, which is asked when one of its alternatives was found.
- the *open* alternatives, which say nothing about the host (port, country, all); what they come to is
  kept per port and country.

The country of a site is known only to exits, since a client resolves no names. A look-up without it says
whether it could matter (`Verdict.needs_country`), and what holds if the site is in none of the countries
that rules name.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from uservpn.chooser.conditions import OWN, Condition, Ports
from uservpn.chooser.hosts import normal_host
from uservpn.chooser.index import HostIndex, HostIndexBuilder, Kind, Network
from uservpn.chooser.patterns import Pattern
from uservpn.chooser.targets import Target

ORDERS_MAX: Final = 2_000_000
"""Alternatives and lines of all rules together."""
OPEN_MAX: Final = 5000
"""Alternatives that say nothing about the host: at a port not seen lately each is looked at."""
OPEN_CACHE_MAX: Final = 1024
"""Ports and countries that the answer of the open alternatives is kept for; then it starts anew."""
_NONE: Final = 1 << 62


class Match(NamedTuple):
    """A rule that holds for a host and port."""

    target: Target
    rule: int
    """Its place in `chooser.rules`, from 0."""
    order: int
    """Of the alternative that holds; lower is earlier."""
    host: str
    port: int
    rules: RuleSet

    @property
    def text(self) -> str:
        """For people: "rule 4: suffix example.com -> us (chooser.rules[3])"."""
        return self.rules.describe(self)


class Verdict(NamedTuple):
    """What the rules say about a host and port."""

    match: Match | None
    """The first rule that holds, taking a country that is not known for none that a rule names."""
    needs_country: bool
    """An earlier rule would hold if the site were in a certain country: ask an exit for it, then here
    again with it; with "" if no exit knows it."""


class RuleSource(NamedTuple):
    """Where a rule comes from, for `describe`."""

    target: Target
    file: str = ""
    """Empty: its alternatives stand in the configuration."""
    condition_count: int = 0
    """Of alternatives, or of conditions in the file."""


class RuleSet:
    """Compiled rules; immutable. Two are equal when their sources were."""

    __slots__ = ("_bases", "_digest", "_guards", "_index", "_open", "_open_cache", "_sources")

    def __init__(
        self,
        sources: Sequence[RuleSource],
        bases: Sequence[int],
        index: HostIndex,
        open_alternatives: Sequence[_Open],
        guards: dict[int, _Guard],
        digest: bytes,
    ) -> None:
        """Use a RuleSetBuilder."""
        self._sources = tuple(sources)
        self._bases = array("I", bases)
        self._index = index
        self._open = tuple(open_alternatives)
        self._guards = guards
        self._digest = digest
        self._open_cache: dict[tuple[int, str | None], tuple[tuple[int, bool | None], ...]] = {}

    def __len__(self) -> int:
        """How many rules there are."""
        return len(self._sources)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RuleSet) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    @property
    def sources(self) -> tuple[RuleSource, ...]:
        """The rules in their order."""
        return self._sources

    @property
    def size(self) -> int:
        """Bytes of memory, roughly: of what grows with the number of alternatives."""
        guards = sum(guard.size for guard in self._guards.values())
        rules = 120 * len(self._sources) + 200 * len(self._open)
        return self._index.size + guards + rules

    def match(self, host: str, port: int, country: str | None = None) -> Verdict:
        """The first rule that holds for a connection to `host`:`port`.

        `country` is the site's: two capital letters, "" when it was asked for and nobody knows it,
        None when nobody was asked.
        """
        host = normal_host(host)
        orders = self._index.orders(host, port)
        best = undecided = _NONE
        if not self._guards:
            best = min(orders, default=_NONE)
        elif orders:
            best, undecided = self._first(sorted(orders), host, port, country)
        if self._open:
            best, maybe = self._first_open(best, host, port, country)
            undecided = min(undecided, maybe)
        if best == _NONE:
            return _MAYBE if undecided < best else _NO_MATCH
        rule = self._rule_of(best)
        match = Match(self._sources[rule].target, rule, best, host, port, self)
        return Verdict(match, undecided >> 1 < self._bases[rule])

    def describe(self, match: Match) -> str:
        """The rule and the condition that held, in words."""
        source = self._sources[match.rule]
        what = self._condition_text(match)
        if source.file:
            what += f" in {source.file}:{(match.order >> 1) - self._bases[match.rule]}"
        return f"rule {match.rule + 1}: {what} -> {source.target} (chooser.rules[{match.rule}])"

    def _first(
        self, orders: Sequence[int], host: str, port: int, country: str | None
    ) -> tuple[int, int]:
        """The first of these that holds, and the first before it that depends on the country."""
        undecided = _NONE
        for order in orders:
            if not order & 1:
                return order, undecided
            state = self._guards[self._rule_of(order)].holds(host, port, country)
            if state:
                return order, undecided
            if state is None:
                undecided = min(undecided, order)
        return _NONE, undecided

    def _first_open(self, best: int, host: str, port: int, country: str | None) -> tuple[int, int]:
        """The same for the open alternatives before `best`; `best` itself if none of them holds."""
        undecided = _NONE
        for order, certain in self._open_orders(port, country):
            if order >= best:
                break
            state = certain
            if order & 1:
                guard = self._guards[self._rule_of(order)]
                state = _both(certain, guard.holds(host, port, country))
            if state:
                return order, undecided
            if state is None:
                undecided = min(undecided, order)
        return best, undecided

    def _condition_text(self, match: Match) -> str:
        text = self._index.explain(match.order, match.host, match.port)
        return text or next(item.text for item in self._open if item.order == match.order)

    def _rule_of(self, order: int) -> int:
        return bisect_right(self._bases, order >> 1) - 1

    def _open_orders(self, port: int, country: str | None) -> tuple[tuple[int, bool | None], ...]:
        """The open alternatives that hold, or may, in ascending order up to the first certain one."""
        known = self._open_cache.get((port, country))
        if known is None:
            orders = []
            for item in self._open:
                state = item.alternatives.holds("", port, country)
                if state is not False:
                    orders.append((item.order, state))
                if state and not item.order & 1:
                    break
            if len(self._open_cache) >= OPEN_CACHE_MAX:
                self._open_cache.clear()
            known = self._open_cache[port, country] = tuple(orders)
        return known


_NO_MATCH: Final = Verdict(None, False)
_MAYBE: Final = Verdict(None, True)


@dataclass(frozen=True, slots=True)
class _Alternatives:
    """One of these must hold."""

    hosts: HostIndex | None = None
    ports: tuple[Ports, ...] = ()
    countries: frozenset[str] = frozenset()
    is_all: bool = False

    def holds(self, host: str, port: int, country: str | None) -> bool | None:
        """None: that depends on the country."""
        for low, high in self.ports:
            if low <= port <= high:
                return True
        if self.is_all:
            return True
        if self.hosts is not None and self.hosts.holds(host, port):
            return True
        if self.countries:
            return None if country is None else country in self.countries
        return False


class _Open(NamedTuple):
    order: int
    alternatives: _Alternatives
    text: str


@dataclass(frozen=True, slots=True)
class _Guard:
    """What must hold beside the alternative that was found, and what must not."""

    conditions: tuple[_Alternatives, ...] = ()
    exceptions: HostIndex | None = None

    @property
    def size(self) -> int:
        indexes = [self.exceptions, *(condition.hosts for condition in self.conditions)]
        return 200 + sum(index.size for index in indexes if index is not None)

    def holds(self, host: str, port: int, country: str | None) -> bool | None:
        if self.exceptions is not None and self.exceptions.holds(host, port):
            return False
        state: bool | None = True
        for condition in self.conditions:
            state = _both(state, condition.holds(host, port, country))
            if state is False:
                return False
        return state


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


# --- building ---------------------------------------------------------------------------------

_ON_HOST: Final = frozenset(Kind) - {Kind.PORT, Kind.COUNTRY, Kind.ALL}
_CHEAP_FIRST: Final = {kind: place for place, kind in enumerate(Kind)}
"""Of several conditions the one whose kind comes first is looked up, the others are its guard."""


@dataclass(slots=True)
class RuleSetBuilder:
    """Takes rule after rule, the first first."""

    own_country: str = ""
    """Two capital letters; needed where a rule says "own"."""
    _sources: list[RuleSource] = field(default_factory=list)
    _bases: list[int] = field(default_factory=list)
    _index: HostIndexBuilder = field(default_factory=HostIndexBuilder)
    _open: list[_Open] = field(default_factory=list)
    _guards: dict[int, _Guard] = field(default_factory=dict)
    _next: int = 0

    def add(
        self,
        target: Target,
        conditions: Sequence[Sequence[Condition]],
        *,
        listed: Iterable[Condition] | None = None,
        line_count: int = 0,
        has_exceptions: bool = False,
        file: str = "",
    ) -> None:
        """One rule: of each of `conditions`, and of `listed`, one must hold.

        `listed` are the lines of `file`, read once; exceptions may be among them if
        `has_exceptions` says so. Raises ValueError where a limit is passed.
        """
        others = list(conditions)
        if len(others) > 1:
            others.sort(key=lambda some: _CHEAP_FIRST[some[0].kind])
        base, rule = self._next, len(self._sources)
        if listed is None:
            first = others.pop(0)
            listed = first
            line_count = len(first)
        self._next += line_count + 1
        if self._next > ORDERS_MAX:
            raise ValueError(f"more than {ORDERS_MAX} conditions in all rules")
        is_guarded = bool(others) or has_exceptions
        exceptions: list[Condition] = []
        count = 0
        for place, condition in enumerate(listed):
            count += 1
            if condition.is_exception:
                exceptions.append(condition)
                continue
            order = base + (condition.line or place) << 1 | is_guarded
            if condition.kind in _ON_HOST:
                _add_host(self._index, condition, order)
            else:
                if len(self._open) >= OPEN_MAX:
                    raise ValueError(f"more than {OPEN_MAX} ports, countries and the like")
                self._open.append(_Open(order, self._alternatives([condition]), _text(condition)))
        if is_guarded:
            self._guards[rule] = _Guard(
                tuple(self._alternatives(some) for some in others),
                _index_of(exceptions),
            )
        self._sources.append(RuleSource(target, file, count))
        self._bases.append(base)

    def build(self, digest: bytes) -> RuleSet:
        """The rules; `digest` tells whether two sets have one source."""
        return RuleSet(
            self._sources,
            self._bases,
            self._index.build(),
            sorted(self._open, key=lambda item: item.order),
            self._guards,
            digest,
        )

    def _alternatives(self, conditions: Sequence[Condition]) -> _Alternatives:
        return _Alternatives(
            _index_of([condition for condition in conditions if condition.kind in _ON_HOST]),
            tuple(c.value for c in conditions if isinstance(c.value, Ports)),
            frozenset(self._country(str(c.value)) for c in conditions if c.kind is Kind.COUNTRY),
            any(condition.kind is Kind.ALL for condition in conditions),
        )

    def _country(self, code: str) -> str:
        return self.own_country if code == OWN else code


def _index_of(conditions: Sequence[Condition]) -> HostIndex | None:
    """Whether any of them holds; None: there are none."""
    if not conditions:
        return None
    index = HostIndexBuilder()
    for condition in conditions:
        _add_host(index, condition, 0)
    return index.build()


def _add_host(index: HostIndexBuilder, condition: Condition, order: int) -> None:
    kind, value = condition.kind, condition.value
    if isinstance(value, Network):
        index.add_network(value, order)
    elif isinstance(value, Pattern):
        index.add_pattern(kind, value, order)
    elif isinstance(value, str):
        if kind in (Kind.KEYWORD, Kind.WILDCARD, Kind.LABELS):
            index.add_part(kind, value, order)
        else:
            index.add_name(kind, value, order)


def _text(condition: Condition) -> str:
    return f"{condition.kind.value} {condition.value}".strip()
