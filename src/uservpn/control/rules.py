"""Reads `[chooser]` groups and rules, and the lists that rules name, into a compiled `RuleSet`.

Imported only for a configuration that has some. Every problem is noted with the line of the rule, those
of a list with the list's own file and line; what a list asks for that cannot be judged is a warning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from uservpn.chooser.conditions import FORMS, OWN, Condition, read_condition
from uservpn.chooser.index import Kind
from uservpn.chooser.lists import Form, ListFile
from uservpn.chooser.rules import RuleSet, RuleSetBuilder
from uservpn.chooser.targets import (
    RESERVED,
    Group,
    Pick,
    Selector,
    Target,
    parse_selector,
    parse_target,
)
from uservpn.control.files import read_file
from uservpn.control.problems import KeyPath, Problems, reason, shown
from uservpn.control.schema import EXIT_FORM, EXITS_FORM, RawChooser, RawGroup, RawRule, read_table

LIST_SIZE_MAX: Final = 32 << 20
"""Bytes of one list."""
LISTS_MAX: Final = 256
"""Rules that name a file."""
PROBLEMS_MAX: Final = 200
"""Told at once; who has more will read these first."""

_KINDS: Final = (
    Kind.EXACT,
    Kind.SUFFIX,
    Kind.KEYWORD,
    Kind.WILDCARD,
    Kind.REGEX,
    Kind.CIDR,
    Kind.PORT,
    Kind.COUNTRY,
)
_GROUP_NAME: Final = "a letter, then letters, digits, '.', '_' or '-', 3 to 32 in all"


class RulesReader:
    """One pass over groups and rules; call `groups`, then `rules`."""

    def __init__(
        self,
        raw: RawChooser,
        own_country: str,
        base: Path,
        problems: Problems,
        warn: Callable[[str], None],
    ) -> None:
        """`base` is the directory that relative paths start from."""
        self._raw = raw
        self._own_country = own_country
        self._base = base
        self._problems = problems
        self._warn = warn
        self._digest = hashlib.blake2b(repr((raw.rules, raw.groups, own_country)).encode())
        self._list_count = 0

    def groups(self) -> dict[str, Group]:
        """Those of `[chooser.groups]` that are right."""
        groups = {}
        for name, table in (self._raw.groups or {}).items():
            place: KeyPath = ("chooser", "groups", name)
            raw = read_table(table, place, RawGroup, self._problems)
            if name in RESERVED or len(name) < 3 or not _is_name(name):
                self._problems.add(
                    place, f"the name {name!r}", f"{_GROUP_NAME}, and no reserved word"
                )
            if raw.pick is None and "pick" not in table:
                self._problems.add((*place, "pick"), "nothing", '"fastest", "fallback" or "spread"')
            if raw.exits is None and "exits" not in table:
                self._problems.add(
                    (*place, "exits"), "nothing", f"an array of exits, each {EXITS_FORM}"
                )
            members = self._members((*place, "exits"), raw.exits or [])
            if raw.pick is not None and members:
                groups[name] = Group(Pick(raw.pick), members)
        return groups

    def rules(self, groups: Mapping[str, Group]) -> RuleSet | None:
        """The compiled rules; None when there are none, or when there are problems."""
        builder = RuleSetBuilder(self._own_country)
        all_at: int | None = None
        for index, table in enumerate(self._raw.rules or []):
            if len(self._problems.sentences) >= PROBLEMS_MAX:
                break
            place: KeyPath = ("chooser", "rules", index)
            raw = read_table(table, place, RawRule, self._problems)
            self._rule(builder, place, raw, table, groups)
            if all_at is not None:
                self._warn(
                    f"chooser.rules[{index}] is never reached: rule {all_at} takes everything"
                )
            elif raw.all and len(table.keys() - _NO_CONDITIONS) == 1:
                all_at = index + 1
        if self._problems.sentences or not self._raw.rules:
            return None
        return builder.build(self._digest.digest())

    # --- parts of a rule ------------------------------------------------------------------------

    def _rule(
        self,
        builder: RuleSetBuilder,
        place: KeyPath,
        raw: RawRule,
        table: Mapping[str, object],
        groups: Mapping[str, Group],
    ) -> None:
        target = self._target(place, raw, table, groups)
        conditions = [
            some for kind in _KINDS if (some := self._alternatives(place, kind, raw)) is not None
        ]
        if raw.all and not conditions and raw.file is None:
            conditions = [[Condition(Kind.ALL, "")]]
        listed = None if raw.file is None else self._list(place, raw.file, raw.format)
        if raw.format is not None and raw.file is None:
            self._problems.add(
                (*place, "format"), "a format without a file", "format only with file"
            )
        if not table.keys() - _NO_CONDITIONS:
            allowed = f"at least one of {', '.join(kind.value for kind in _KINDS)}, file and all"
            self._problems.add(place, "a rule without a condition", allowed)
        if target is None or (not conditions and listed is None):
            return
        try:
            self._add(builder, place, raw, target, conditions, listed)
        except ValueError as error:
            self._problems.add(place, str(error), "fewer rules and patterns, or smaller lists")

    def _add(
        self,
        builder: RuleSetBuilder,
        place: KeyPath,
        raw: RawRule,
        target: Target,
        conditions: list[list[Condition]],
        listed: ListFile | None,
    ) -> None:
        if listed is None:
            if all(conditions):
                builder.add(target, conditions)
            return
        assert raw.file is not None
        if self._own_country:
            lines = listed.conditions()
        else:
            lines = (c for c in listed.conditions() if not self._is_homeless(place, c, raw.file))
        builder.add(
            target,
            [some for some in conditions if some],
            listed=lines,
            line_count=listed.line_count,
            has_exceptions=listed.has_exceptions,
            file=raw.file,
        )
        self._tell(place, raw.file, listed)

    def _is_homeless(self, place: KeyPath, condition: Condition, file: str) -> bool:
        """Does a line of a list ask for the own country where there is none?"""
        if condition.value != OWN:
            return False
        self._problems.add_in(file, condition.line, (*place, "file"), *_NO_OWN_COUNTRY)
        return True

    def _tell(self, place: KeyPath, file: str, listed: ListFile) -> None:
        """What was wrong with a list, and what of it is left out."""
        notes = listed.notes
        for line, found, allowed in notes.problems:
            self._problems.add_in(file, line, (*place, "file"), found, allowed)
        unsaid = notes.problem_count - len(notes.problems)
        if unsaid:
            self._problems.add_in(file, 0, (*place, "file"), f"{unsaid} more wrong lines", "none")
        for what, (count, first) in notes.skipped.items():
            lines = "line" if count == 1 else "lines"
            self._warn(f"{file}:{first}: {count} {lines} left out: {what} cannot be judged here")

    def _target(
        self,
        place: KeyPath,
        raw: RawRule,
        table: Mapping[str, object],
        groups: Mapping[str, Group],
    ) -> Target | None:
        avoid = _as_list(raw.avoid)
        if raw.exit is None and not avoid:
            if not table.keys() & {"exit", "not"}:
                self._problems.add((*place, "exit"), "nothing", f"{EXIT_FORM}; or `not` alone")
            return None
        try:
            parse_target("auto", groups, avoid)
        except ValueError as error:
            self._problems.add((*place, "not"), str(error), 'countries, such as ["cn", "ru"]')
            return None
        exit = "auto" if raw.exit is None else raw.exit
        try:
            return parse_target(exit, groups, avoid, bool(raw.strict))
        except ValueError as error:
            self._problems.add((*place, "exit"), reason(str(exit), error), EXIT_FORM, value=exit)
            return None

    def _alternatives(self, place: KeyPath, kind: Kind, raw: RawRule) -> list[Condition] | None:
        """The conditions of one key; None: it is absent, an empty list: all of it is wrong."""
        written = getattr(raw, kind.value)
        if written is None:
            return None
        at: KeyPath = (*place, kind.value)
        if written == []:
            self._problems.add(at, "an empty array", FORMS[kind])
        conditions = []
        for text in written if isinstance(written, list) else [written]:
            try:
                condition = read_condition(kind, str(text))
            except ValueError as error:
                self._problems.add(at, str(error), FORMS[kind], value=text)
                continue
            if condition.value == OWN and not self._own_country:
                self._problems.add(at, *_NO_OWN_COUNTRY)
            conditions.append(condition)
        return conditions

    def _list(self, place: KeyPath, name: str, form: str | None) -> ListFile | None:
        at: KeyPath = (*place, "file")
        self._list_count += 1
        if self._list_count > LISTS_MAX:
            self._problems.add(at, "one list more", f"at most {LISTS_MAX} lists", value=name)
            return None
        allowed = "a list of sites, in UTF-8"
        try:
            path = self._base / Path(name).expanduser()
        except RuntimeError:
            self._problems.add(at, shown(name), "a path that this system can have", value=name)
            return None
        content = read_file(path, LIST_SIZE_MAX)
        if isinstance(content, str):
            self._problems.add(at, f"{content}: {path}", allowed, value=name)
            return None
        self._digest.update(hashlib.blake2b(content.data).digest())
        try:
            return ListFile(content.data.decode("utf-8"), Form(form or "auto"))
        except UnicodeDecodeError as error:
            line = content.data.count(b"\n", 0, error.start) + 1
            self._problems.add_in(
                name, line, at, f"bytes that are not UTF-8 ({error.reason})", allowed
            )
            return None

    def _members(self, place: KeyPath, exits: list[int | str]) -> tuple[Selector, ...]:
        members = []
        for value in exits:
            try:
                members.append(parse_selector(value))
            except ValueError as error:
                self._problems.add(place, reason(str(value), error), EXITS_FORM, value=value)
        return tuple(members)


_NO_CONDITIONS: Final = frozenset({"exit", "not", "strict", "format"})
_NO_OWN_COUNTRY: Final = ("the country 'own'", "this only where node.country is set")


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _is_name(text: str) -> bool:
    try:
        return parse_selector(text).name == text
    except ValueError:
        return False
