"""What a program asks for in its user name: `exit=3`, `exit=fra`, `country=us`, `session=x`.

    user = [account] *( ("," / "+") option )        option = key "=" value

The account comes first where the entry has users: `alice,exit=3`. Options may be combined:
`country=us,session=work`. Keys and countries may be in any case. A name without an option is only a
name. What looks like an option and is none is an error: it is better to be refused than to leave at
another place than the one that was asked for.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

USER_MAX: Final = 255
_PART: Final = re.compile(r"[,+]")
_OPTION: Final = re.compile(r"([A-Za-z_]{1,32})=([^=].*|)", re.DOTALL)
_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
KEYS: Final = ("exit", "country", "session")


class Wish(NamedTuple):
    """A program's choice; empty fields: it has none."""

    exit: str = ""
    """A number or a name."""
    country: str = ""
    """Two capital letters."""
    session: str = ""
    problem: str = ""
    """Why it cannot be followed, as a sentence; then nothing else counts."""


NO_WISH: Final = Wish()


def parse_wish(user: str) -> Wish:
    """The wish in a user name."""
    if "=" not in user:
        return NO_WISH
    found: dict[str, str] = {}
    for part in _PART.split(user[:USER_MAX]):
        option = _OPTION.fullmatch(part.strip())
        if option is None:
            continue
        key, value = option[1].lower(), option[2].strip()
        if key not in KEYS and not value:
            continue  # base64 ends so: a random name, by which some programs keep circuits apart
        problem = _problem(key, value, found)
        if problem:
            return Wish(problem=problem)
        found[key] = value
    country = found.get("country", "").upper()
    return Wish(found.get("exit", ""), country, found.get("session", ""))


def _problem(key: str, value: str, found: dict[str, str]) -> str:
    if key not in KEYS:
        return f"the user name asks for {key!r}; allowed: {', '.join(KEYS)}"
    if key in found:
        return f"the user name asks for {key!r} twice"
    if key == "country" and not _COUNTRY.fullmatch(value):
        return f"country={value}: allowed are two letters, such as country=us"
    if key == "exit" and not _NAME.fullmatch(value):
        return f"exit={value}: allowed are a node's number or name"
    if key == "session" and not _NAME.fullmatch(value):
        return f"session={value}: allowed are up to 64 letters, digits, '.', '_' and '-'"
    return ""
