r"""Reads regular expressions into trees, for `automata`, and tells which texts they cannot do without.

The syntax is the common part of Python's and everybody else's: characters, `.`, `[...]`, `\d \w \s`
and their opposites, groups, `|`, `* + ? {m,n}` (greedy or lazy: the same here), `^`, `$`. A pattern is
searched for, in small letters. What no automaton can do is refused: back references and looking
around. A pattern has at most PATTERN_SIZE_MAX characters and needs at most STATES_MAX states.
"""

from __future__ import annotations

import string
from typing import Final, NamedTuple

PATTERN_SIZE_MAX: Final = 4000
"""Characters of one pattern."""
STATES_MAX: Final = 4000
"""Of one pattern; `{m,n}` repeats what it stands behind."""
DEPTH_MAX: Final = 40
"""Groups within groups."""
REPEAT_MAX: Final = 255

_DIGITS: Final = frozenset(string.digits)
_WORD: Final = frozenset(string.ascii_lowercase + string.digits + "_")
_SPACE: Final = frozenset(" \t\n\r\f\v")
_CLASSES: Final = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}


class Unsupported(ValueError):
    """What was read is right, but nothing that uservpn can judge."""


class Chars(NamedTuple):
    """The characters that a state takes: those in `members`, or all others."""

    members: frozenset[str]
    is_negated: bool = False


class Repeat(NamedTuple):
    """A part so many times; `most` None: without end."""

    what: Part
    least: int
    most: int | None


class Sequence(NamedTuple):
    """One part behind the other."""

    parts: tuple[Part, ...]


class Choice(NamedTuple):
    """One of several parts."""

    options: tuple[Part, ...]


Part = Chars | Repeat | Sequence | Choice | str
"""A string is an assertion: `^` or `$`."""

_ANY: Final = Chars(frozenset("\n"), True)


class Pattern:
    """One regular expression, read and within the limits."""

    __slots__ = ("literals", "part", "state_count", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError with a sentence; Unsupported for what is beyond an automaton."""
        if len(text) > PATTERN_SIZE_MAX:
            raise ValueError(f"a pattern of {len(text)} characters")
        self.text = text
        self.part = _Reader(text).read()
        self.literals = _literals(self.part)
        """Texts each of which is in whatever the pattern finds."""
        self.state_count = _count(self.part) + 1
        if self.state_count > STATES_MAX:
            raise ValueError(f"a pattern that needs more than {STATES_MAX} states")


# --- reading ----------------------------------------------------------------------------------


class _Reader:
    """Recursive descent over one pattern."""

    def __init__(self, text: str) -> None:
        self._text = text.removeprefix("(?i)")
        self._at = 0
        self._depth = 0

    def read(self) -> Part:
        part = self._choice()
        if self._at < len(self._text):
            raise ValueError("a ')' without its '('")
        return part

    def _next(self) -> str:
        if self._at == len(self._text):
            raise ValueError("a pattern that ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _takes(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _choice(self) -> Part:
        options = [self._sequence()]
        while self._takes("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Part:
        parts: list[Part] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))
        return Sequence(tuple(parts))

    def _atom(self) -> Part:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._set()
        if char == "\\":
            return self._escape()
        if char == ".":
            return _ANY
        if char in "^$":
            return char
        if char in "*+?" or (char == "{" and self._are_bounds(self._at)):
            raise ValueError(f"{char!r} with nothing to repeat")
        return Chars(frozenset(char.lower()))

    def _group(self) -> Part:
        if self._takes("?") and not self._takes(":"):
            if not self._takes("P<"):
                raise Unsupported("a group that looks around or sets flags")
            while self._next() != ">":
                pass
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ValueError(f"more than {DEPTH_MAX} groups within each other")
        part = self._choice()
        self._depth -= 1
        if not self._takes(")"):
            raise ValueError("a '(' without its ')'")
        return part

    def _escape(self) -> Part:
        char = self._next()
        if char in "AZz":
            return "^" if char == "A" else "$"
        return self._escaped(char)

    def _escaped(self, char: str) -> Chars:
        """What stands behind a backslash, inside and outside of brackets."""
        if char.lower() in _CLASSES:
            return Chars(_CLASSES[char.lower()], char.isupper())
        if char in _CONTROLS:
            return Chars(frozenset(_CONTROLS[char]))
        if char.isalnum():
            raise Unsupported(f"'\\{char}'")
        return Chars(frozenset(char))

    def _set(self) -> Chars:
        is_negated = self._takes("^")
        members: set[str] = set()
        is_first = True
        while is_first or self._peek() != "]":
            is_first = False
            low = self._set_item()
            if self._peek() == "-" and self._text[self._at + 1 :][:1] != "]":
                self._at += 1
                members |= _range(low, self._set_item())
            else:
                members |= low
        self._at += 1
        return Chars(frozenset("".join(members).lower()), is_negated)

    def _set_item(self) -> frozenset[str]:
        """One character, as written, or the members of a class."""
        char = self._next()
        if char != "\\":
            return frozenset(char)
        chars = self._escaped(self._next())
        if chars.is_negated:
            raise Unsupported("the opposite of a class inside brackets")
        return chars.members

    def _repeated(self, part: Part) -> Part:
        char = self._peek()
        if not char or char not in "*+?{" or (char == "{" and not self._are_bounds(self._at + 1)):
            return part
        least, most = self._bounds()
        if self._takes("+"):
            raise Unsupported("a possessive repetition")
        self._takes("?")  # lazy: what is found is the same
        if self._peek() in ("*", "+", "?"):
            raise ValueError("a repetition of a repetition")
        return part if isinstance(part, str) else Repeat(part, least, most)

    def _bounds(self) -> tuple[int, int | None]:
        char = self._next()
        if char != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        low, comma, high = self._text[self._at : self._text.index("}", self._at)].partition(",")
        self._at += len(low) + len(comma) + len(high) + 1
        least = int(low or "0")
        most = int(high) if high else None if comma else least
        if max(least, most or 0) > REPEAT_MAX or (most is not None and most < least):
            raise ValueError(f"the repetition {{{low}{comma}{high}}}")
        return least, most

    def _are_bounds(self, start: int) -> bool:
        """Does {m}, {m,}, {,n} or {m,n} go on here, behind its brace? Else the brace is itself."""
        inner, brace, _ = self._text[start : start + 9].partition("}")
        low, _, high = inner.partition(",")
        return bool(brace) and (low + high).isdecimal() and (low + high).isascii()


def _range(low: frozenset[str], high: frozenset[str]) -> set[str]:
    if len(low) != 1 or len(high) != 1:
        raise ValueError("a range in brackets from or to a class")
    start, end = ord(min(low)), ord(min(high))
    if end < start or end - start > 0xFFFF:
        raise ValueError(f"the range {chr(start)}-{chr(end)}")
    return {chr(code) for code in range(start, end + 1)}


def _literals(part: Part) -> list[str]:
    """The runs of single characters that no way through the part goes around."""
    runs = [""]
    todo = [part]
    while todo:
        item = todo.pop()
        if isinstance(item, Sequence):
            todo += reversed(item.parts)
        elif isinstance(item, Chars) and len(item.members) == 1 and not item.is_negated:
            runs[-1] += min(item.members)
        elif isinstance(item, Repeat) and item.least > 0:
            runs.append("")
            todo += ["$", item.what]  # then an end: what follows may follow a second time round
        else:
            runs.append("")
    return [run for run in runs if run]


def _count(part: Part) -> int:
    """States that the part will need."""
    if isinstance(part, Chars | str):
        return 2
    if isinstance(part, Repeat):
        copies = part.least + 1 if part.most is None else part.most
        return 2 + _count(part.what) * max(copies, 1)
    parts = part.parts if isinstance(part, Sequence) else part.options
    return 2 + sum(map(_count, parts))
