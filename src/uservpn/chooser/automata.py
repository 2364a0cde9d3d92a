"""Regular expressions that cannot stall anything: all of them at once, in time linear in the text.

Python's `re` tries one way after another, and `(a+)+$` has exponentially many: a list from the network
must not be matched by it. Here a pattern becomes a nondeterministic automaton (Thompson 1968), the
automata of all patterns run side by side, and the sets of states they are in are kept as states of one
deterministic automaton that is built while it is used (as in RE2). A character costs one dict look-up
once its way is known, and at worst one step of every state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from uservpn.chooser.patterns import Chars, Choice, Part, Pattern, Repeat

TOTAL_MAX: Final = 200_000
"""States of all patterns of one automaton; some 250 bytes each."""
_CACHE_MAX: Final = 200_000
"""States and ways that the deterministic automaton may hold; then it starts anew."""


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
        self._dead = self._new_dead()

    def __bool__(self) -> bool:
        """Is there any pattern?"""
        return bool(self._finds)

    @property
    def size(self) -> int:
        """Bytes of memory, roughly, without what is built while matching."""
        return 1000 + 250 * len(self._takes)

    def texts_of(self, number: int) -> list[str]:
        """The patterns that have this number."""
        return self._texts.get(number, [])

    def find(self, text: str) -> set[int]:
        """The numbers of all patterns that occur in `text`: small letters, at least one character."""
        if not self._finds or not text:
            return set()
        state, dead = self._first, self._dead
        found = set(state.found)
        for char in text:
            if state is dead:
                return found
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

    def _add(self, part: Part) -> tuple[int, int]:
        """The states where the part begins and ends."""
        if isinstance(part, Chars):
            end = self._new()
            return self._new((part, end)), end
        if isinstance(part, str):
            start, end = self._new(), self._new()
            (self._start_only if part == "^" else self._end_only)[start] = [end]
            return start, end
        if isinstance(part, Repeat):
            return self._add_repeat(part)
        start, end = self._new(), self._new()
        if isinstance(part, Choice):
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

    def _add_repeat(self, part: Repeat) -> tuple[int, int]:
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

    def _new_dead(self) -> _State | None:
        """The state that nothing leads out of; None: a pattern may begin anywhere in a text."""
        if any(self._takes[state] or state in self._end_only for state in self._entries):
            return None
        return self._state(frozenset())

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
        if self._dead is not None:
            self._states[frozenset()] = self._dead
        self._entered.clear()
        self._first.moves.clear()
        self._spent = 0
