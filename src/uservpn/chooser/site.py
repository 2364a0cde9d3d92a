"""The site of a host: its registrable domain, by the public suffix list in `suffixes`.

A site is what keeps one exit for a session, so `www.example.co.uk` and `cdn.example.co.uk` are one
site, `example.co.uk`, while `a.github.io` and `b.github.io`, which belong to different people, are
two: the list's private section counts. A numeric address is its own site, in forms such as `127.1` too;
so are a name of one label, and a name that is a public suffix itself.

The list is loaded at the first question and stays the one text it is (0.2 MiB): a top-level domain's
part of it is searched as a whole, 50 us for `.com`, 1 us for most. Answers are kept for the hosts asked
for last, so that a host costs this once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Final

from uservpn.chooser.hosts import normal_host, number_of

CACHE_MAX: Final = 1024
"""Hosts whose sites are remembered; the one not asked for longest is forgotten."""


@lru_cache(maxsize=CACHE_MAX)
def site_of(host: str) -> str:
    """The site of `host`, a name or a numeric address in any spelling; names in ASCII form."""
    host = normal_host(host)
    labels = host.split(".")
    if "" in labels or labels[-1].isdecimal() or number_of(host) is not None:
        return host
    count = _suffix_count(labels) + 1
    return host if count >= len(labels) else ".".join(labels[-count:])


def _suffix_count(labels: list[str]) -> int:
    """How many labels the public suffix has. The longest rule wins, an exception before all."""
    text, parts = _list()
    start, end = parts.get(labels[-1], (0, 0))
    if end == 0:
        return 1
    for skipped in range(len(labels) - 1):
        name = ".".join(labels[skipped:])
        wild = ".".join(("*", *labels[skipped + 1 :]))
        if text.find(f"\n!{name}\n", start, end) >= 0:
            return len(labels) - skipped - 1
        if text.find(f"\n{name}\n", start, end) >= 0 or text.find(f"\n{wild}\n", start, end) >= 0:
            return len(labels) - skipped
    return 1


@cache
def _list() -> tuple[str, dict[str, tuple[int, int]]]:
    """The list's text, one rule a line, and where in it each top-level domain's rules stand."""
    from uservpn.chooser.suffixes import RULES  # 140 kB, for nodes with an entry that is used

    return RULES, {domain: (start, end) for domain, start, end in _parts(RULES)}


def _parts(text: str) -> Iterator[tuple[str, int, int]]:
    """Each part begins and ends with a line feed, its neighbours' too."""
    start, at = 0, 0
    domain = ""
    while (end := text.find("\n", at + 1)) >= 0:
        last = text[text.rindex(".", at, end) + 1 : end]
        if last != domain:
            if domain:
                yield domain, start, at + 1
            domain, start = last, at
        at = end
    yield domain, start, len(text)
