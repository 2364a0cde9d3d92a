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

import binascii
import enum
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from uservpn.chooser.conditions import FORMS, Condition, read_condition, read_network
from uservpn.chooser.hosts import normal_host, number_of
from uservpn.chooser.index import Kind
from uservpn.chooser.patterns import Unsupported

PROBLEMS_MAX: Final = 20
"""Of one list; the rest is counted."""
SHOWN_MAX: Final = 80


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
        decoded = _from_base64(text) if form in (Form.AUTO, Form.AUTOPROXY) else None
        text = text if decoded is None else decoded
        self.form = _form_of(text) if form is Form.AUTO else form
        self._lines = text.splitlines()
        self.has_exceptions = self.form is Form.AUTOPROXY and any(
            line.startswith("@@") for line in self._lines
        )

    @property
    def line_count(self) -> int:
        """Lines, the empty ones too."""
        return len(self._lines)

    def conditions(self) -> Iterator[Condition]:
        """Each condition with its line; what is wrong or left out goes to `notes`."""
        if self.form is Form.AUTOPROXY:
            return self._read(enumerate(self._lines, 1), _autoproxy_line)
        if self.form is Form.DOMAINS:
            return self._read(enumerate(self._lines, 1), _domains_line)
        if any(line.startswith("payload:") for line in self._lines):
            return self._read(_yaml_items(self._lines, self.notes), _clash_line)
        return self._read(enumerate(self._lines, 1), _clash_text_line)

    def _read(
        self, lines: Iterable[tuple[int, str]], read: Callable[[str, int], Iterable[Condition]]
    ) -> Iterator[Condition]:
        for number, line in lines:
            text = line.strip()
            if not text:
                continue
            try:
                yield from read(text, number)
            except Unsupported as error:
                self.notes.beyond(number, str(error))
            except _Malformed as error:
                self.notes.wrong(number, error.found, error.allowed)


class _Malformed(Exception):
    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(found)
        self.found = found
        self.allowed = allowed


def _condition(kind: Kind, text: str, line: int, is_exception: bool = False) -> Condition:
    """The condition; _Malformed for a wrong value."""
    try:
        return read_condition(kind, text, line, is_exception)
    except Unsupported:
        raise
    except ValueError as error:
        raise _Malformed(_shown(f"{kind.value} {error}"), FORMS[kind]) from None


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."


# --- which form -------------------------------------------------------------------------------

_BASE64: Final = re.compile(r"[A-Za-z0-9+/=\s]+", re.ASCII)
_CLASSICAL: Final = re.compile(r"([A-Z][A-Z0-9-]*),(.*)", re.ASCII)
_AUTOPROXY_HEAD: Final = "[autoproxy"


def _from_base64(text: str) -> str | None:
    """The AutoProxy list inside, as gfwlist is published; None: it is something else."""
    if not _BASE64.fullmatch(text[:200]) or len(text) < 16:
        return None
    try:
        decoded = binascii.a2b_base64(text).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    return decoded if decoded.lower().startswith(_AUTOPROXY_HEAD) else None


def _form_of(text: str) -> Form:
    """By the first lines that say something; a list of bare names is one of domains."""
    for line in text.splitlines()[:1000]:
        line = line.strip()
        if line.lower().startswith(_AUTOPROXY_HEAD) or line.startswith(("||", "@@", "|http")):
            return Form.AUTOPROXY
        if line.startswith(("payload:", "+.")) or _CLASSICAL.fullmatch(line):
            return Form.CLASH
    return Form.DOMAINS


# --- domains ----------------------------------------------------------------------------------

_COMMENT: Final = ("#", "!", ";", "//")
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
    if text.startswith(_COMMENT):
        return
    word, _, rest = text.partition(" ")
    kind = _WORDS.get(word)
    if kind is not None and rest:
        if kind is not Kind.REGEX:
            rest = rest.partition(" #")[0]
        yield _condition(kind, rest.strip(), line)
        return
    words = text.partition("#")[0].split()
    if words and words[0] in _HOSTS_ADDRESSES and len(words) > 1:
        for name in words[1:]:
            if "." in name and number_of(name) is None:  # not `localhost`
                yield _condition(Kind.EXACT, name, line)
    elif len(words) == 1:
        yield _marked(words[0], line, _DOMAINS_MARKS)
    else:
        raise _Malformed(_shown(repr(text)), _LINE_FORM)


@dataclass(frozen=True, slots=True)
class _Marks:
    """What a name means by the mark in front of it, or without one."""

    none: Kind
    dot: Kind
    star: Kind
    """`*.` in front, and no other `*`."""
    stars: Kind
    """`*` anywhere else."""


_DOMAINS_MARKS: Final = _Marks(Kind.SUFFIX, Kind.SUFFIX, Kind.BELOW, Kind.WILDCARD)
_CLASH_MARKS: Final = _Marks(Kind.EXACT, Kind.BELOW, Kind.ONE_LABEL, Kind.LABELS)


def _marked(text: str, line: int, marks: _Marks) -> Condition:
    """A name with or without a mark, an address or a network."""
    if text.startswith("+."):
        return _condition(Kind.SUFFIX, text[2:], line)
    if text.startswith("."):
        return _condition(marks.dot, text[1:], line)
    if text.startswith("*.") and "*" not in text[1:]:
        return _condition(marks.star, text[2:], line)
    if "*" in text:
        return _condition(marks.stars, text, line)
    if "/" in text or number_of(normal_host(text)) is not None:
        try:
            return Condition(Kind.CIDR, read_network(text), line)
        except ValueError:
            raise _Malformed(_shown(repr(text)), _LINE_FORM) from None
    return _condition(marks.none, text, line)


# --- clash ------------------------------------------------------------------------------------

_CLASH_KINDS: Final = {
    "DOMAIN": Kind.EXACT,
    "DOMAIN-SUFFIX": Kind.SUFFIX,
    "DOMAIN-KEYWORD": Kind.KEYWORD,
    "DOMAIN-WILDCARD": Kind.WILDCARD,
    "DOMAIN-REGEX": Kind.REGEX,
    "IP-CIDR": Kind.CIDR,
    "IP-CIDR6": Kind.CIDR,
    "GEOIP": Kind.COUNTRY,
    "DST-PORT": Kind.PORT,
}
_CLASH_OTHERS: Final = re.compile(
    r"GEOSITE|IP-SUFFIX|IP-ASN|SRC-(GEOIP|IP-ASN|IP-CIDR|IP-SUFFIX|PORT)|IN-(PORT|TYPE|USER|NAME)|"
    r"PROCESS-(PATH|NAME)(-REGEX)?|UID|NETWORK|DSCP|RULE-SET|AND|OR|NOT|SUB-RULE|MATCH|USER-AGENT|URL-REGEX"
)
"""Kinds that Clash, mihomo or Surge know, and that the entry of uservpn cannot judge."""
_OPTIONS: Final = frozenset({"no-resolve"})
"""Names are never resolved here anyway."""


def _clash_line(text: str, line: int) -> Iterator[Condition]:
    """An item of a payload, of whichever behaviour."""
    classical = _CLASSICAL.fullmatch(text)
    if classical is None:
        if any(char in text for char in " ,"):
            raise _Malformed(_shown(repr(text)), "a domain, a network or KIND,value")
        yield _marked(text, line, _CLASH_MARKS)
        return
    word, rest = classical.groups()
    if _CLASH_OTHERS.fullmatch(word):
        raise Unsupported(f"rules of the kind {word}")
    kind = _CLASH_KINDS.get(word)
    if kind is None:
        raise _Malformed(f"the kind {_shown(word)!r}", f"one of {', '.join(_CLASH_KINDS)}")
    value, options = rest, ""
    if kind is not Kind.REGEX:
        value, _, options = rest.partition(",")
    for option in options.split(",") if options else ():
        if option.strip() == "src":
            raise Unsupported("rules on the source address")
        if option.strip() not in _OPTIONS:
            allowed = "only no-resolve behind the value (where the rule leads is `exit` in uservpn)"
            raise _Malformed(f"the option {_shown(option)!r}", allowed)
    for part in value.split("/") if kind is Kind.PORT else (value,):
        if kind is Kind.COUNTRY and part.strip().upper() == "LAN":
            raise Unsupported("rules of the kind GEOIP,LAN")
        yield _condition(kind, part.strip(), line)


def _clash_text_line(text: str, line: int) -> Iterator[Condition]:
    if not text.startswith(_COMMENT):
        yield from _clash_line(text, line)


def _yaml_items(lines: list[str], notes: ListNotes) -> Iterator[tuple[int, str]]:
    """The items of `payload:`, from the part of YAML that such files are written in."""
    is_inside = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#") or text in ("---", "..."):
            continue
        if text.startswith("- ") and is_inside:
            item = _yaml_scalar(text[2:].strip())
            if item is None:
                notes.wrong(number, _shown(repr(text)), "an item such as - 'example.com'")
            else:
                yield number, item
        elif re.fullmatch(r"payload:\s*(\[\s*\])?\s*(#.*)?", line):
            is_inside = True
        else:
            allowed = "payload: and below it one item a line, such as - 'example.com'"
            notes.wrong(number, _shown(repr(text)), allowed)


def _yaml_scalar(text: str) -> str | None:
    """A plain or quoted scalar on one line, a comment behind it left out."""
    if text.startswith("'"):
        match = re.fullmatch(r"'((?:[^']|'')*)'\s*(?:#.*)?", text)
        return None if match is None else match[1].replace("''", "'")
    if text.startswith('"'):
        match = re.fullmatch(r'"((?:[^"\\]|\\["\\/])*)"\s*(?:#.*)?', text)
        return None if match is None else re.sub(r"\\(.)", r"\1", match[1])
    if text.startswith(("[", "{", "&", "|", ">", "!", "%", "@", "`")):
        return None
    return re.split(r"\s#", text, maxsplit=1)[0].strip()


# --- autoproxy --------------------------------------------------------------------------------

_SCHEME: Final = re.compile(r"^\|?(?:https?|http\*|\*)://", re.ASCII | re.IGNORECASE)
_HOST_END: Final = re.compile(r"[/:?|^]")
_ON_PATHS: Final = "filters on the path of a URL"
_HOST_CHARS: Final = re.compile(r"[A-Za-z0-9_.*-]+", re.ASCII)


def _autoproxy_line(text: str, line: int) -> Iterator[Condition]:
    """One filter. Of a URL only scheme and host are known here, so a path is let go."""
    if text.startswith("!") or text.lower().startswith(_AUTOPROXY_HEAD):
        return
    is_exception = text.startswith("@@")
    text = text.removeprefix("@@")
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        yield _condition(Kind.URL, text[1:-1], line, is_exception)
        return
    for kind, value in _autoproxy_host(text):
        yield _condition(kind, value, line, is_exception)


def _autoproxy_host(text: str) -> list[tuple[Kind, str]]:
    """The conditions on the host that a filter on URLs comes to."""
    is_domain = text.startswith("||")
    is_start = text.startswith("|") or _SCHEME.match(text) is not None
    rest = text[2:] if is_domain else _SCHEME.sub("", text).removeprefix("|")
    end = _HOST_END.search(rest)
    host = re.sub(r"\*{2,}", "*", rest[: end.start()] if end else rest)
    is_host = _HOST_CHARS.fullmatch(host) is not None or (is_start and not host.isascii())
    if not is_host or not host.strip("*."):
        raise Unsupported(_ON_PATHS)
    if "*" in host.removeprefix("*"):
        return _autoproxy_wildcard(host, is_domain, is_start, has_end=end is not None)
    name = host.strip("*.")
    if number_of(name) is not None:
        return [(Kind.CIDR, name)]
    if is_domain or "." in name.rstrip(".") or host[0] in "*.":
        return [
            (
                Kind.EXACT if is_start and not is_domain and host[0] not in "*." else Kind.SUFFIX,
                name,
            )
        ]
    if is_start:
        return [(Kind.EXACT, name)]
    if end is not None:
        raise Unsupported(_ON_PATHS)
    return [(Kind.KEYWORD, name)]


def _autoproxy_wildcard(
    host: str, is_domain: bool, is_start: bool, has_end: bool
) -> list[tuple[Kind, str]]:
    """A host with a `*` in it or behind it."""
    if "." not in host and not is_start:
        raise Unsupported(_ON_PATHS)
    begin = "" if is_start else "*"
    stop = "" if has_end or is_domain else "*"
    wild = re.sub(r"\*{2,}", "*", begin + host + stop)
    return [(Kind.WILDCARD, wild)] + ([(Kind.WILDCARD, "*." + wild)] if is_domain else [])
