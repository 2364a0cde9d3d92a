"""Reads the lists of sites that people have: one condition a line, in one of three forms.

- `domains`: a domain a line, which stands for everything below it too; also addresses and networks, the
  lines of hosts files (`0.0.0.0 ads.example`), and a kind in front of a value (`keyword bank`).
- `clash`: the rule providers of Clash and mihomo, as YAML (`payload:`) or as text: behaviours domain,
  ipcidr and classical, told apart line by line.
- `autoproxy`: AutoProxy lists such as gfwlist, plain or in base64, with `@@` exceptions.

What is malformed is a problem with its line. What is right but asks for something that the entry cannot
know (the program's name, the path of a URL) is left out and counted: `ListNotes.skipped`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Final

from uservpn.chooser.autoproxy import HEAD as AUTOPROXY_HEAD
from uservpn.chooser.autoproxy import autoproxy_line, from_base64
from uservpn.chooser.clash import CLASSICAL, clash_line, clash_text_line, yaml_items
from uservpn.chooser.conditions import Condition
from uservpn.chooser.hosts import number_of
from uservpn.chooser.index import Kind
from uservpn.chooser.lines import COMMENT, Malformed, Marks, condition, marked, shown
from uservpn.chooser.patterns import Unsupported

PROBLEMS_MAX: Final = 20
"""Of one list; the rest is counted."""
FORM_LINES_MAX: Final = 1000
"""The form of a list is found out from its first lines."""


class Form(enum.Enum):
    """How a list is written."""

    AUTO = "auto"
    """Whichever of the others it looks like."""
    DOMAINS = "domains"
    CLASH = "clash"
    AUTOPROXY = "autoproxy"


@dataclass(slots=True)
class ListNotes:
    """What is to be said about a list."""

    problems: list[tuple[int, str, str]] = field(default_factory=list)
    """Line, what was found, what is allowed; PROBLEMS_MAX at most."""
    problem_count: int = 0
    skipped: dict[str, tuple[int, int]] = field(default_factory=dict)
    """How many lines of what kind were left out, and the first one's number."""

    def wrong(self, line: int, found: str, allowed: str) -> None:
        """Note a malformed line."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append((line, found, allowed))

    def beyond(self, line: int, what: str) -> None:
        """Note a line that is left out."""
        count, first = self.skipped.get(what, (0, line))
        self.skipped[what] = (count + 1, first)


class ListFile:
    """A list in one of the forms; `conditions` goes through it once."""

    def __init__(self, text: str, form: Form = Form.AUTO) -> None:
        """`form` AUTO becomes the form that is found."""
        self.notes = ListNotes()
        text = text.removeprefix("\ufeff")
        decoded = from_base64(text) if form in (Form.AUTO, Form.AUTOPROXY) else None
        text = text if decoded is None else decoded
        self.form = _form_of(text) if form is Form.AUTO else form
        self._text = text
        self.has_exceptions = self.form is Form.AUTOPROXY and _has_line(text, "@@")

    @property
    def line_count(self) -> int:
        """Lines, the empty ones too."""
        return self._text.count("\n") + 1

    def conditions(self) -> Iterator[Condition]:
        """Each condition with its line; what is wrong or left out goes to `notes`."""
        if self.form is Form.AUTOPROXY:
            return self._read(_lines(self._text), autoproxy_line)
        if self.form is Form.DOMAINS:
            return self._read(_lines(self._text), _domains_line)
        if _has_line(self._text, "payload:"):
            return self._read(yaml_items(_lines(self._text)), clash_line)
        return self._read(_lines(self._text), clash_text_line)

    def _read(
        self,
        lines: Iterable[tuple[int, str | Malformed]],
        read: Callable[[str, int], Iterable[Condition]],
    ) -> Iterator[Condition]:
        for number, line in lines:
            try:
                if isinstance(line, Malformed):
                    raise line
                if text := line.strip():
                    yield from read(text, number)
            except Unsupported as error:
                self.notes.beyond(number, str(error))
            except Malformed as error:
                self.notes.wrong(number, error.found, error.allowed)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line with its number; never all of them at once."""
    start = 0
    for number in count(1):
        end = text.find("\n", start)
        if end < 0:
            yield number, text[start:]
            return
        yield number, text[start:end]
        start = end + 1


def _has_line(text: str, beginning: str) -> bool:
    return text.startswith(beginning) or f"\n{beginning}" in text


# --- which form -------------------------------------------------------------------------------


def _form_of(text: str) -> Form:
    """By the first lines that say something; a list of bare names is one of domains."""
    for _, line in islice(_lines(text), FORM_LINES_MAX):
        line = line.strip()
        if line.lower().startswith(AUTOPROXY_HEAD) or line.startswith(("||", "@@", "|http")):
            return Form.AUTOPROXY
        if line.startswith(("payload:", "+.")) or CLASSICAL.fullmatch(line):
            return Form.CLASH
    return Form.DOMAINS


# --- domains ----------------------------------------------------------------------------------

_PLAIN: Final = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z][a-z0-9-]{0,62}", re.ASCII).fullmatch
"""A domain in its normal form, and no address: nearly every line of nearly every list."""
_WORDS: Final = {
    "exact": Kind.EXACT,
    "suffix": Kind.SUFFIX,
    "keyword": Kind.KEYWORD,
    "wildcard": Kind.WILDCARD,
    "regex": Kind.REGEX,
    "cidr": Kind.CIDR,
    "port": Kind.PORT,
    "country": Kind.COUNTRY,
}
_LINE_FORM: Final = (
    "a domain, an address or a network, or one of " + ", ".join(_WORDS) + " with a value behind it"
)
_HOSTS_ADDRESSES: Final = frozenset({"0.0.0.0", "127.0.0.1", "::", "::1"})


def _domains_line(text: str, line: int) -> Iterator[Condition]:
    if _PLAIN(text) and len(text) < 254:
        yield Condition(Kind.SUFFIX, text, line)
        return
    if text.startswith(COMMENT):
        return
    word, _, rest = text.partition(" ")
    kind = _WORDS.get(word)
    if kind is not None and rest:
        if kind is not Kind.REGEX:
            rest = rest.partition(" #")[0]
        yield condition(kind, rest.strip(), line)
        return
    words = text.partition("#")[0].split()
    if words and words[0] in _HOSTS_ADDRESSES and len(words) > 1:
        for name in words[1:]:
            if "." in name and number_of(name) is None:  # not `localhost`
                yield condition(Kind.EXACT, name, line)
    elif len(words) == 1:
        yield marked(words[0], line, _DOMAINS_MARKS)
    else:
        raise Malformed(shown(repr(text)), _LINE_FORM)


_DOMAINS_MARKS: Final = Marks(Kind.SUFFIX, Kind.SUFFIX, Kind.BELOW, Kind.WILDCARD)
