"""AutoProxy lists, such as gfwlist: filters on URLs, of which a proxy knows only scheme and host.

    ||example.com       the domain and all below it      |https://host/path    just this host
    example.com         the same                         /regex/               on scheme://host/
    .example.com        the same                         @@...                 an exception
    word                hosts with the word in them      ! ...                 a comment

A path behind a host is let go; a filter that has nothing but a path is beyond judgement.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from uservpn.chooser.conditions import Condition
from uservpn.chooser.hosts import number_of
from uservpn.chooser.index import Kind
from uservpn.chooser.lines import condition
from uservpn.chooser.patterns import Unsupported

HEAD: Final = "[autoproxy"
"""How the first line begins, in small letters."""
_BASE64: Final = re.compile(r"[A-Za-z0-9+/=\s]+", re.ASCII)
_BASE64_SIZE_MIN: Final = 16
_SCHEME: Final = re.compile(r"\|?(?:https?|http\*|\*)://", re.ASCII | re.IGNORECASE)
_HOST_END: Final = re.compile(r"[/:?|^]")
_HOST_CHARS: Final = re.compile(r"[A-Za-z0-9_.*-]+", re.ASCII)


class _Filter(NamedTuple):
    """What a filter says about the host."""

    host: str
    """With a `*` here and there."""
    is_domain: bool
    """`||`: all below it, too."""
    is_start: bool
    """`|`, or a scheme: nothing stands in front of the host."""
    has_end: bool
    """Nothing of the host stands behind it."""


def from_base64(text: str) -> str | None:
    """The list inside, as gfwlist is published; None: `text` is something else."""
    if len(text) < _BASE64_SIZE_MIN or not _BASE64.fullmatch(text[:200]):
        return None
    try:
        decoded = binascii.a2b_base64(text).decode("utf-8")
    except ValueError:  # binascii.Error and UnicodeDecodeError are some
        return None
    return decoded if decoded.lower().startswith(HEAD) else None


def autoproxy_line(text: str, line: int) -> Iterator[Condition]:
    """The conditions of one line. Raises Malformed and Unsupported."""
    if text.startswith("!") or text.lower().startswith(HEAD):
        return
    is_exception = text.startswith("@@")
    text = text.removeprefix("@@")
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        yield condition(Kind.URL, text[1:-1], line, is_exception)
        return
    for kind, value in _conditions(_filter(text)):
        yield condition(kind, value, line, is_exception)


def _filter(text: str) -> _Filter:
    is_domain = text.startswith("||")
    is_start = text.startswith("|") or _SCHEME.match(text) is not None
    rest = text[2:] if is_domain else _SCHEME.sub("", text, count=1).removeprefix("|")
    end = _HOST_END.search(rest)
    host = re.sub(r"\*{2,}", "*", rest[: end.start()] if end else rest)
    is_host = _HOST_CHARS.fullmatch(host) is not None or (is_start and not host.isascii())
    if not is_host or not host.strip("*."):
        raise Unsupported(_ON_PATHS)
    return _Filter(host, is_domain, is_start, end is not None)


_ON_PATHS: Final = "filters on the path of a URL"


def _conditions(filter: _Filter) -> list[tuple[Kind, str]]:
    host = filter.host
    if "*" in host.removeprefix("*"):
        return _wildcards(filter)
    name = host.strip("*.")
    if number_of(name) is not None:
        return [(Kind.CIDR, name)]
    if filter.is_domain or host[0] in "*.":
        return [(Kind.SUFFIX, name)]
    if filter.is_start:
        return [(Kind.EXACT, name)]
    if "." in name:
        return [(Kind.SUFFIX, name)]
    if filter.has_end:  # `word/path`
        raise Unsupported(_ON_PATHS)
    return [(Kind.KEYWORD, name)]


def _wildcards(filter: _Filter) -> list[tuple[Kind, str]]:
    """For a host with a `*` in it or behind it."""
    if "." not in filter.host and not filter.is_start:  # `search*word`
        raise Unsupported(_ON_PATHS)
    begin = "" if filter.is_start else "*"
    stop = "" if filter.has_end or filter.is_domain else "*"
    wild = re.sub(r"\*{2,}", "*", begin + filter.host + stop)
    return [(Kind.WILDCARD, wild)] + ([(Kind.WILDCARD, "*." + wild)] if filter.is_domain else [])
