"""What a connection's host, port and user name come to, before anybody looks at the mesh.

A `Case` is made once and kept for the next connection to the same place: whose session it belongs to,
which exits may carry it, and why. A `Choice` is the answer for one connection.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple, Protocol

from uservpn.chooser.affinity import Key
from uservpn.chooser.targets import Action, Candidate, Target, parse_selector
from uservpn.chooser.wishes import Wish
from uservpn.errors import Fault
from uservpn.types import NodeId

NOWHERE: Final = NodeId(0)


class ExitState(NamedTuple):
    """An exit of the mesh as it is now."""

    candidate: Candidate
    is_linked: bool
    flight_ms: float | None = None
    """To it and back; None: not measured."""

    @property
    def node(self) -> NodeId:
        """Its number."""
        return self.candidate.node


class Mesh(Protocol):
    """What the chooser asks about the mesh."""

    def exits(self) -> Sequence[ExitState]:
        """Every exit that could be reached: the configured servers in their order, then the others."""

    def is_linked(self, exit: NodeId) -> bool:
        """Is there a link to it now, or a way over a relay?"""

    def is_lost(self, exit: NodeId) -> bool:
        """Has it no link, and have tries to get one failed?"""

    def flight_ms(self, exit: NodeId) -> float | None:
        """To it and back; None: not measured."""

    def heard_at(self, exit: NodeId) -> float:
        """When it was last heard, monotonic seconds; 0.0: never."""


class Choice(NamedTuple):
    """Where one connection goes."""

    exit: NodeId
    """`NOWHERE`: refused with `fault`, or `is_direct`."""
    reason: str = ""
    key: Key | None = None
    """The session it belongs to."""
    site: str = ""
    fault: Fault = Fault.NONE
    detail: str = ""
    """For the program that is refused, where its protocol has room for it."""
    is_direct: bool = False
    addresses: tuple[str, ...] = ()
    """For `is_direct`: where to connect to; numeric, best first."""


class Want(enum.Enum):
    """What an exit has to be asked for before anything can be chosen."""

    NOTHING = 0
    ADDRESS = 1
    """This node dials itself, and never resolves a name."""
    COUNTRY = 2
    """A rule asks where the site is."""


@dataclass(slots=True)
class Case:
    """What is asked for, by whom."""

    host: str
    port: int
    user: str
    key: Key
    target: Target
    reason: str = ""
    """Who said so: the program, a rule, the configured default; "" nobody in particular."""
    answer: Choice | None = None
    """Where no exit has to be chosen: refused, or direct to an address."""
    want: Want = Want.NOTHING
    until: float = inf
    """Monotonic seconds: then the site's country, which nobody knew, may be asked for again."""
    taken: set[NodeId] = field(default_factory=set)
    """Exits that are known to fit the target."""


def refusal(site: str, fault: Fault, detail: str) -> Choice:
    """A choice of nowhere."""
    return Choice(NOWHERE, "refused", None, site, fault, detail)


def wished_target(wish: Wish) -> tuple[Target, str] | None:
    """The target of a program's wish and what names it in a session's key; None: it has none.

    Raises ValueError with a sentence.
    """
    if wish.exit:
        members = [parse_selector(_number_or_name(wish.exit))]
        text = f"exit={wish.exit}"
    elif wish.country:
        members = [parse_selector(wish.country)]
        text = f"country={wish.country.lower()}"
    else:
        return None
    return Target(Action.EXIT, tuple(members), is_strict=bool(wish.exit), text=text), text


def _number_or_name(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
