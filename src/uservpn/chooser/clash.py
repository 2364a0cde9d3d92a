"""Rule providers of Clash and mihomo: YAML with a `payload:`, or text; behaviours domain, ipcidr, classical.

The behaviour is told apart item by item: KIND,value is classical, a network ipcidr, all else domain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from uservpn.chooser.conditions import Condition
from uservpn.chooser.index import Kind
from uservpn.chooser.lines import COMMENT, Malformed, Marks, condition, marked, shown
from uservpn.chooser.patterns import Unsupported

CLASSICAL: Final = re.compile(r"([A-Z][A-Z0-9-]*),(.*)", re.ASCII)
_MARKS: Final = Marks(Kind.EXACT, Kind.BELOW, Kind.ONE_LABEL, Kind.LABELS)
_KINDS: Final = {
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
_OTHERS: Final = re.compile(
    r"GEOSITE|IP-SUFFIX|IP-ASN|SRC-(GEOIP|IP-ASN|IP-CIDR|IP-SUFFIX|PORT)|IN-(PORT|TYPE|USER|NAME)|"
    r"PROCESS-(PATH|NAME)(-REGEX)?|UID|NETWORK|DSCP|RULE-SET|AND|OR|NOT|SUB-RULE|MATCH|USER-AGENT|URL-REGEX"
)
"""Kinds that Clash, mihomo or Surge know, and that the entry of uservpn cannot judge."""
_OPTIONS: Final = frozenset({"no-resolve"})
"""Names are never resolved here anyway."""


def clash_line(text: str, line: int) -> Iterator[Condition]:
    """An item of a payload, of whichever behaviour. Raises Malformed and Unsupported."""
    classical = CLASSICAL.fullmatch(text)
    if classical is None:
        if any(char in text for char in " ,"):
            raise Malformed(shown(repr(text)), "a domain, a network or KIND,value")
        yield marked(text, line, _MARKS)
        return
    word, rest = classical.groups()
    if _OTHERS.fullmatch(word):
        raise Unsupported(f"rules of the kind {word}")
    kind = _KINDS.get(word)
    if kind is None:
        raise Malformed(f"the kind {shown(word)!r}", f"one of {', '.join(_KINDS)}")
    value, options = rest, ""
    if kind is not Kind.REGEX:
        value, _, options = rest.partition(",")
    for option in options.split(",") if options else ():
        if option.strip() == "src":
            raise Unsupported("rules on the source address")
        if option.strip() not in _OPTIONS:
            allowed = "only no-resolve behind the value (where the rule leads is `exit` in uservpn)"
            raise Malformed(f"the option {shown(option)!r}", allowed)
    for part in value.split("/") if kind is Kind.PORT else (value,):
        if kind is Kind.COUNTRY and part.strip().upper() == "LAN":
            raise Unsupported("rules of the kind GEOIP,LAN")
        yield condition(kind, part.strip(), line)


def clash_text_line(text: str, line: int) -> Iterator[Condition]:
    """A line of a rule provider in the format text."""
    if not text.startswith(COMMENT):
        yield from clash_line(text, line)


def yaml_items(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str | Malformed]]:
    """The items of `payload:` with their lines, from the part of YAML that such files are written in."""
    is_inside = False
    for number, line in lines:
        text = line.strip()
        if not text or text.startswith("#") or text in ("---", "..."):
            continue
        if text.startswith("- ") and is_inside:
            item = _yaml_scalar(text[2:].strip())
            if item is None:
                yield number, Malformed(shown(repr(text)), "an item such as - 'example.com'")
            else:
                yield number, item
        elif re.fullmatch(r"payload:\s*(\[\s*\])?\s*(#.*)?", line.rstrip()):
            is_inside = True
        else:
            allowed = "payload: and below it one item a line, such as - 'example.com'"
            yield number, Malformed(shown(repr(text)), allowed)


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
