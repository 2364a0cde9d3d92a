"""Where a rule sends a site: an exit by number, name or country, a group of them, direct, or nowhere.

`parse_target` reads what the configuration writes as `exit = ...`; a `Target` then says which of the
exits that are there may carry the connection, in which order (`tiers`). It does not say which of them
are up or how fast they are: that is the chooser's business, within a tier.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, NodeId

NAME_FORM: Final = r"[A-Za-z][A-Za-z0-9_.-]{0,31}"
_NAME: Final = re.compile(NAME_FORM)
_NUMBER: Final = re.compile(r"[0-9]{1,3}", re.ASCII)
RESERVED: Final = frozenset({"auto", "direct", "reject"})
"""Words that `exit` gives a meaning; no group may be called so."""


class Action(enum.Enum):
    """What becomes of the connection."""

    AUTO = "auto"
    """Any exit: the chooser's usual choice, less the countries of `Target.avoid`."""
    EXIT = "exit"
    """One of the exits that `Target.members` name."""
    DIRECT = "direct"
    """No exit: this node dials."""
    REJECT = "reject"
    """Refused as not allowed."""


class Pick(enum.Enum):
    """How one of several exits is taken."""

    FASTEST = "fastest"
    """The one that measures best for the site."""
    FALLBACK = "fallback"
    """The first in the owner's order that is there; within one member the fastest."""
    SPREAD = "spread"
    """Sites are shared out evenly; each site keeps its exit while that is there."""


class Candidate(NamedTuple):
    """An exit as the node list has it; `country` in capitals or empty, `name` may be empty."""

    node: NodeId
    name: str = ""
    country: str = ""


class Selector(NamedTuple):
    """One way to name exits; exactly one field is set."""

    number: int = 0
    name: str = ""
    country: str = ""

    def takes(self, exit: Candidate) -> bool:
        """Is this exit meant?"""
        if self.number:
            return exit.node == self.number
        if self.name:
            return exit.name == self.name
        return exit.country == self.country

    def __str__(self) -> str:
        return self.name or self.country.lower() or str(self.number)


@dataclass(frozen=True, slots=True)
class Group:
    """A table of `[chooser.groups]`: several exits under one name."""

    pick: Pick
    members: tuple[Selector, ...]
    """At least one, in the owner's order."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a rule says about the exit."""

    action: Action = Action.AUTO
    members: tuple[Selector, ...] = ()
    """For `Action.EXIT`: at least one."""
    pick: Pick = Pick.FASTEST
    avoid: frozenset[str] = frozenset()
    """Countries whose exits must not be used, in capitals. An exit of unknown country is not used
    either where any country is avoided."""
    is_strict: bool = False
    """Refuse rather than leave anywhere else when none of these exits is there, or when the exit
    of a site's session is gone."""
    text: str = "auto"
    """As the configuration writes it."""

    def __str__(self) -> str:
        avoided = f", not {' '.join(sorted(self.avoid)).lower()}" if self.avoid else ""
        return f"{self.text}{avoided}{', strict' if self.is_strict else ''}"

    def tiers(self, exits: Iterable[Candidate], site: str) -> list[list[NodeId]]:
        """The exits that may carry `site`: the first tier before the second, any one within a tier.

        Empty when none fits, and for DIRECT and REJECT.
        """
        allowed = [exit for exit in exits if self._allows(exit)]
        if self.action is Action.AUTO:
            tiers = [[exit.node for exit in allowed]]
        elif self.action is not Action.EXIT:
            return []
        elif self.pick is Pick.FALLBACK:
            tiers = _by_member(self.members, allowed)
        else:
            meant = [exit for exit in allowed if any(m.takes(exit) for m in self.members)]
            tiers = [[exit.node for exit in meant]]
            if self.pick is Pick.SPREAD:
                tiers = [[node] for node in spread_order(site, tiers[0])]
        return [tier for tier in tiers if tier]

    def _allows(self, exit: Candidate) -> bool:
        return not self.avoid or (exit.country != "" and exit.country not in self.avoid)


def _by_member(members: Iterable[Selector], exits: Iterable[Candidate]) -> list[list[NodeId]]:
    """A tier for each member; an exit stands in the first tier that it fits."""
    left = list(exits)
    tiers = []
    for member in members:
        tiers.append([exit.node for exit in left if member.takes(exit)])
        left = [exit for exit in left if not member.takes(exit)]
    return tiers


def spread_order(site: str, exits: Sequence[NodeId]) -> list[NodeId]:
    """The exits in this site's own order, the same on every node and after every restart.

    Rendezvous hashing (Thaler and Ravishankar, 1998): an exit that goes away moves only the sites
    that were its own, evenly to the others.
    """
    from hashlib import blake2b  # not for nodes without such a rule

    def weight(exit: NodeId) -> bytes:
        return blake2b(f"{exit} {site}".encode(errors="replace"), digest_size=8).digest()

    return sorted(exits, key=weight)


def parse_target(
    value: int | str,
    groups: Mapping[str, Group],
    avoid: Iterable[str] = (),
    is_strict: bool = False,
) -> Target:
    """The target that `exit = value` means. Raises ValueError with a sentence.

    `avoid` holds countries in any letters.
    """
    countries = frozenset(_country(code) for code in avoid)
    base = Target(avoid=countries, is_strict=is_strict, text=str(value))
    if value in RESERVED:
        action = Action(value)
        if countries and action is not Action.AUTO:
            raise ValueError(f"{value!r} together with countries not to use, which it never uses")
        return replace(base, action=action)
    group = groups.get(value) if isinstance(value, str) else None
    if group is not None:
        return replace(base, action=Action.EXIT, members=group.members, pick=group.pick)
    return replace(base, action=Action.EXIT, members=(parse_selector(value),))


def parse_selector(value: int | str) -> Selector:
    """An exit by number, by country (two letters) or by name. Raises ValueError with a sentence."""
    text = str(value)
    if _NUMBER.fullmatch(text) and NODE_ID_MIN <= int(text) <= NODE_ID_MAX:
        return Selector(number=int(text))
    if isinstance(value, str) and len(text) == 2 and text.isalpha():
        return Selector(country=_country(text))
    if isinstance(value, str) and _NAME.fullmatch(text) and text not in RESERVED:
        return Selector(name=text)
    raise ValueError(f"{value!r} is no number, name or country of an exit")


def _country(code: str) -> str:
    from uservpn.chooser.geo import is_country  # a table, for nodes with such a rule

    if is_country(code.upper()):
        return code.upper()
    hint = " (the United Kingdom is 'gb')" if code.upper() == "UK" else ""
    raise ValueError(f"{code!r} is no country of ISO 3166{hint}")
