r"""Regular expressions that cannot stall anything: all of them at once, in time linear in the text.

Python's `re` tries one way after another, and `(a+)+$` has exponentially many: a list from the network
must not be matched by it. Here a pattern becomes a nondeterministic automaton (Thompson 1968), the
automata of all patterns run side by side, and the sets of states they are in are kept as states of one
deterministic automaton that is built while it is used (as in RE2). A character costs one dict look-up
once its way is known, and at worst one step of every state.

The syntax is the common part of Python's and everybody else's: characters, `.`, `[...]`, `\d \w \s`
and their opposites, groups, `|`, `* + ? {m,n}` (greedy or lazy: the same here), `^`, `$`. A pattern is
searched for, in small letters. What no such automaton can do is refused: back references and
looking around. Limits: PATTERN_SIZE_MAX, STATES_MAX for one pattern, TOTAL_MAX for all of them.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Final, NamedTuple

PATTERN_SIZE_MAX: Final = 4000
"""Characters of one pattern."""
STATES_MAX: Final = 4000
"""Of one pattern; `{m,n}` repeats what it stands behind."""
TOTAL_MAX: Final = 200_000
"""States of all patterns of one automaton; some 150 bytes each."""
DEPTH_MAX: Final = 40
"""Groups within groups."""
REPEAT_MAX: Final = 255
_CACHE_MAX: Final = 200_000
"""States and ways that the deterministic automaton may hold; then it starts anew."""

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


class _Repeat(NamedTuple):
    what: _Part
    least: int
    most: int | None


class _Sequence(NamedTuple):
    parts: tuple[_Part, ...]


class _Choice(NamedTuple):
    options: tuple[_Part, ...]


_Part = Chars | _Repeat | _Sequence | _Choice | str
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

    def read(self) -> _Part:
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

    def _choice(self) -> _Part:
        options = [self._sequence()]
        while self._takes("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))
        return _Sequence(tuple(parts))

    def _atom(self) -> _Part:
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

    def _group(self) -> _Part:
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

    def _escape(self) -> _Part:
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

    def _repeated(self, part: _Part) -> _Part:
        char = self._peek()
        if not char or char not in "*+?{" or (char == "{" and not self._are_bounds(self._at + 1)):
            return part
        least, most = self._bounds()
        if self._takes("+"):
            raise Unsupported("a possessive repetition")
        self._takes("?")  # lazy: what is found is the same
        if self._peek() in ("*", "+", "?"):
            raise ValueError("a repetition of a repetition")
        return part if isinstance(part, str) else _Repeat(part, least, most)

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


def _literals(part: _Part) -> list[str]:
    """The runs of single characters that no way through the part goes around."""
    runs = [""]
    todo = [part]
    while todo:
        item = todo.pop()
        if isinstance(item, _Sequence):
            todo += reversed(item.parts)
        elif isinstance(item, Chars) and len(item.members) == 1 and not item.is_negated:
            runs[-1] += min(item.members)
        elif isinstance(item, _Repeat) and item.least > 0:
            runs.append("")
            todo += ["$", item.what]  # then an end: what follows may follow a second time round
        else:
            runs.append("")
    return [run for run in runs if run]


def _count(part: _Part) -> int:
    """States that the part will need."""
    if isinstance(part, Chars | str):
        return 2
    if isinstance(part, _Repeat):
        copies = part.least + 1 if part.most is None else part.most
        return 2 + _count(part.what) * max(copies, 1)
    parts = part.parts if isinstance(part, _Sequence) else part.options
    return 2 + sum(map(_count, parts))


# --- matching ---------------------------------------------------------------------------------


class _State:
    """One set of states that the patterns are in, and the ways on from it that are known."""

    __slots__ = ("at_end", "found", "members", "moves")

    def __init__(self, members: frozenset[int], found: tuple[int, ...]) -> None:
        self.members = members
        self.found = found
        self.moves: dict[str, _State] = {}
        self.at_end: tuple[int, ...] | None = None


class Automaton:
    """Patterns, each with a number; says which of them occur in a text."""

    def __init__(self, patterns: Iterable[tuple[Pattern, int]] = ()) -> None:
        """Raises ValueError when all of them together are beyond TOTAL_MAX."""
        self._takes: list[tuple[Chars, int] | None] = []
        self._free: list[list[int]] = []
        self._start_only: dict[int, list[int]] = {}
        self._end_only: dict[int, list[int]] = {}
        self._finds: dict[int, int] = {}
        self._texts: dict[int, list[str]] = {}
        starts = []
        for pattern, number in patterns:
            start, end = self._add(pattern.part)
            self._finds[end] = number
            self._texts.setdefault(number, []).append(pattern.text)
            starts.append(start)
            if len(self._takes) > TOTAL_MAX:
                raise ValueError(f"patterns that together need more than {TOTAL_MAX} states")
        self._entries = self._closure(starts)
        self._entered: dict[str, frozenset[int]] = {}
        self._states: dict[frozenset[int], _State] = {}
        self._spent = 0
        self._first = self._state(self._closure(starts, at_start=True))

    def __bool__(self) -> bool:
        """Is there any pattern?"""
        return bool(self._finds)

    @property
    def size(self) -> int:
        """Bytes of memory, roughly, without what is built while matching."""
        return 150 * len(self._takes)

    def texts_of(self, number: int) -> list[str]:
        """The patterns that have this number."""
        return self._texts.get(number, [])

    def find(self, text: str) -> set[int]:
        """The numbers of all patterns that occur in `text`: small letters, at least one character."""
        if not self._finds or not text:
            return set()
        state = self._first
        found = set(state.found)
        for char in text:
            following = state.moves.get(char)
            if following is None:
                following = self._move(state, char)
            state = following
            if state.found:
                found.update(state.found)
        if state.at_end is None:
            ends = self._closure(state.members | self._entries, at_end=True)
            state.at_end = self._found_in(ends)
        found.update(state.at_end)
        return found

    # --- the nondeterministic automaton

    def _new(self, takes: tuple[Chars, int] | None = None) -> int:
        self._takes.append(takes)
        self._free.append([])
        return len(self._takes) - 1

    def _add(self, part: _Part) -> tuple[int, int]:
        """The states where the part begins and ends."""
        if isinstance(part, Chars):
            end = self._new()
            return self._new((part, end)), end
        if isinstance(part, str):
            start, end = self._new(), self._new()
            (self._start_only if part == "^" else self._end_only)[start] = [end]
            return start, end
        if isinstance(part, _Repeat):
            return self._add_repeat(part)
        start, end = self._new(), self._new()
        if isinstance(part, _Choice):
            for option in part.options:
                first, last = self._add(option)
                self._free[start].append(first)
                self._free[last].append(end)
            return start, end
        at = start
        for item in part.parts:
            first, last = self._add(item)
            self._free[at].append(first)
            at = last
        self._free[at].append(end)
        return start, end

    def _add_repeat(self, part: _Repeat) -> tuple[int, int]:
        start, end = self._new(), self._new()
        at = start
        for _ in range(part.least):
            first, last = self._add(part.what)
            self._free[at].append(first)
            at = last
        if part.most is None:
            first, last = self._add(part.what)
            self._free[at] += [first, end]
            self._free[last] += [first, end]
            return start, end
        for _ in range(part.most - part.least):
            first, last = self._add(part.what)
            self._free[at] += [first, end]
            at = last
        self._free[at].append(end)
        return start, end

    def _closure(
        self, states: Iterable[int], *, at_start: bool = False, at_end: bool = False
    ) -> frozenset[int]:
        """The states and all that are reached from them without a character."""
        reached = set(states)
        todo = list(reached)
        while todo:
            state = todo.pop()
            ways = self._free[state]
            if at_start:
                ways = ways + self._start_only.get(state, [])
            if at_end:
                ways = ways + self._end_only.get(state, [])
            for way in ways:
                if way not in reached:
                    reached.add(way)
                    todo.append(way)
        return frozenset(reached)

    def _found_in(self, states: Iterable[int]) -> tuple[int, ...]:
        finds = self._finds
        return tuple({finds[state] for state in states if state in finds})

    # --- the deterministic one

    def _state(self, members: frozenset[int]) -> _State:
        state = self._states.get(members)
        if state is None:
            takers = frozenset(s for s in members if self._takes[s] or s in self._end_only)
            state = _State(takers, self._found_in(members))
            self._states[members] = state
            self._spent += 1 + len(members)
        return state

    def _move(self, state: _State, char: str) -> _State:
        if self._spent > _CACHE_MAX:
            self._forget()
        ends = self._step(state.members, char)
        entered = self._entered.get(char)
        if entered is None:
            entered = self._entered[char] = self._closure(self._step(self._entries, char))
        following = self._state(self._closure(ends) | entered)
        state.moves[char] = following
        self._spent += 1
        return following

    def _step(self, states: Iterable[int], char: str) -> list[int]:
        ends = []
        for state in states:
            takes = self._takes[state]
            if takes is not None and (char in takes[0].members) != takes[0].is_negated:
                ends.append(takes[1])
        return ends

    def _forget(self) -> None:
        """All that was built while matching; a running match goes on with the state it has."""
        self._states.clear()
        self._entered.clear()
        self._first.moves.clear()
        self._spent = 0
