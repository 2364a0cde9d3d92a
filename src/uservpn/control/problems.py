"""Collects everything that is wrong with one configuration file, each with its line.

`tomllib` forgets where a value stood, so `Lines` reads the text once more, roughly: table
headers and the keys below them. It is a guide for people, not a parser; where it is unsure the
line of the nearest enclosing thing it knows is given, or none. It is only built when there is
a problem to report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

KeyPath = tuple[str | int, ...]
"""Where a value stands: `("servers", 0, "endpoints", 1)`."""

_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]=#]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+|\s*\.\s*)+)\s*=""")
_PART: Final = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")
_TOKEN: Final = re.compile(r"""#.*$|"(?:[^"\\]|\\.)*"|'[^']*'|[\[\]{},]|[^\s\[\]{},"'#]+""")
"""A string, a mark of an array or table, or anything else; a comment up to the end of its line."""
_FOUND_MAX: Final = 100


class Lines:
    """Line numbers of keys in a TOML text, as far as they can be told."""

    def __init__(self, text: str) -> None:
        self._text = text.splitlines()
        self._line_of: dict[KeyPath, int] = {}
        self._table_counts: dict[KeyPath, int] = {}
        self._scan()

    def find(self, path: KeyPath, value: object = None) -> int | None:
        """The line of `value` at `path`, else of the key, else of what encloses it, else None."""
        for length in range(len(path), 0, -1):
            known = path[:length]
            line = self._line_of.get(known) or self._line_of.get((*known, 0))
            if line is None:
                continue
            step = path[length] if length < len(path) else None
            if isinstance(step, int):
                line = self._line_of_item(line, step)
            return self._line_of_element(line, value) if isinstance(value, str) else line
        return None

    def _line_of_item(self, first: int, index: int) -> int:
        """Where item `index` of the array begins that begins in line `first`."""
        depth = count = 0
        is_between = False
        for number in range(first, len(self._text) + 1):
            text = self._text[number - 1]
            for token in _TOKEN.findall(text[text.find("=") + 1 :] if number == first else text):
                if token.startswith("#"):
                    continue
                if is_between and depth == 1 and token not in "],":
                    is_between = False
                    if count == index:
                        return number
                    count += 1
                depth += (token in "[{") - (token in "]}")
                is_between |= depth == 1 and token in "[,"
                if depth == 0:
                    return first
        return first

    def _line_of_element(self, first: int, value: str) -> int:
        """Look for a quoted text inside a value that spans lines, up to the next key."""
        last = min((line for line in self._line_of.values() if line > first), default=1 << 31)
        for number in range(first, min(last, len(self._text) + 1)):
            if f'"{value}"' in self._text[number - 1] or f"'{value}'" in self._text[number - 1]:
                return number
        return first

    def _scan(self) -> None:
        table: KeyPath = ()
        inside_text = False
        for number, line in enumerate(self._text, 1):
            was_inside = inside_text
            inside_text ^= (line.count('"""') + line.count("'''")) % 2 == 1
            if was_inside:
                continue
            header = _HEADER.match(line)
            key = _KEY.match(line)
            if header is not None:
                table = self._open_table(_parts(header[2]), is_array=header[1] == "[[")
                self._line_of.setdefault(table, number)
            elif key is not None:
                self._line_of.setdefault(table + _parts(key[1]), number)

    def _open_table(self, name: KeyPath, is_array: bool) -> KeyPath:
        if not is_array:
            return name
        index = self._table_counts.get(name, 0)
        self._table_counts[name] = index + 1
        return (*name, index)


class Problems:
    """The sentences of one ConfigError, in the order they were found; never a secret in them."""

    def __init__(self, file: str, text: str = "") -> None:
        self.sentences: list[str] = []
        self._file = file
        self._text = text
        self._lines: Lines | None = None

    def add(
        self,
        path: KeyPath,
        found: str,
        allowed: str,
        *,
        value: object = None,
        source: str | None = None,
    ) -> None:
        """Note one problem.

        `value` helps to find the line; `source` stands for the file when the value came from
        somewhere else (a command-line option).
        """
        where = source or self._place(path, value)
        self.sentences.append(f"{where}: {key_text(path)}: found {found}; allowed: {allowed}")

    def add_in(self, file: str, line: int, path: KeyPath, found: str, allowed: str) -> None:
        """Note one problem of a file that the value at `path` names."""
        where = f"{file}:{line}" if line else file
        self.sentences.append(f"{where}: {key_text(path)}: found {found}; allowed: {allowed}")

    def note(self, sentence: str, line: int | None = None) -> None:
        """Note a problem of the file as a whole."""
        self.sentences.append(f"{self._file}{f':{line}' if line else ''}: {sentence}")

    def _place(self, path: KeyPath, value: object) -> str:
        if self._lines is None:
            self._lines = Lines(self._text)
        line = self._lines.find(path, value)
        return self._file if line is None else f"{self._file}:{line}"


def key_text(path: KeyPath) -> str:
    """A path as people write it: `servers[0].endpoints[1]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def reason(text: str, error: ValueError) -> str:
    """The error's sentence as what was found; its advice is left to what is allowed."""
    sentence = str(error).partition(": write ")[0]
    for subject in (repr(text), text):
        if subject and sentence.startswith(f"{subject} "):
            return f"{subject}, which{sentence.removeprefix(subject)}"
    return sentence


def shown(value: object) -> str:
    """A value found in the file, with its kind, cut to a readable length."""
    text = repr(value)
    if len(text) > _FOUND_MAX:
        text = text[:_FOUND_MAX] + "..."
    return f"the {kind_of(value)} {_toml_like(text, value)}"


def kind_of(value: object) -> str:
    """What TOML calls a value."""
    kinds: Iterable[tuple[type, str]] = (
        (bool, "boolean"),
        (str, "string"),
        (int, "integer"),
        (float, "number"),
        (list, "array"),
        (dict, "table"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "date or time")


def _toml_like(text: str, value: object) -> str:
    return text.lower() if isinstance(value, bool) else text


def _parts(dotted: str) -> KeyPath:
    return tuple(a or b or c for a, b, c in _PART.findall(dotted))
