"""What the forms of lists have in common: a line is a condition, malformed, or beyond what can be judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uservpn.chooser.conditions import FORMS, Condition, read_condition, read_network
from uservpn.chooser.hosts import normal_host, number_of
from uservpn.chooser.index import Kind
from uservpn.chooser.patterns import Unsupported

SHOWN_MAX: Final = 80
COMMENT: Final = ("#", "!", ";", "//")
"""What a comment begins with."""


class Malformed(Exception):
    """A line that is wrong: what was found, and what is allowed."""

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(found)
        self.found = found
        self.allowed = allowed


def condition(kind: Kind, text: str, line: int, is_exception: bool = False) -> Condition:
    """The condition. Raises Malformed for a wrong value, Unsupported for one beyond judgement."""
    try:
        return read_condition(kind, text, line, is_exception)
    except Unsupported:
        raise
    except ValueError as error:
        raise Malformed(shown(f"{kind.value} {error}"), FORMS[kind]) from None


def shown(text: str) -> str:
    """`text`, cut to a readable length."""
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."


@dataclass(frozen=True, slots=True)
class Marks:
    """What a name means by the mark in front of it, or without one."""

    none: Kind
    dot: Kind
    star: Kind
    """`*.` in front, and no other `*`."""
    stars: Kind
    """`*` anywhere else."""


def marked(text: str, line: int, marks: Marks) -> Condition:
    """A name with or without a mark, an address or a network. Raises Malformed."""
    if text.startswith("+."):
        return condition(Kind.SUFFIX, text[2:], line)
    if text.startswith("."):
        return condition(marks.dot, text[1:], line)
    if text.startswith("*.") and "*" not in text[1:]:
        return condition(marks.star, text[2:], line)
    if "*" in text:
        return condition(marks.stars, text, line)
    if "/" in text or number_of(normal_host(text)) is not None:
        try:
            return Condition(Kind.CIDR, read_network(text), line)
        except ValueError:
            raise Malformed(shown(repr(text)), FORMS[Kind.CIDR]) from None
    return condition(marks.none, text, line)
