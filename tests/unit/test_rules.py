"""The compiled rules against a matcher that goes through them one by one, and what they say."""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uservpn.chooser import rules
from uservpn.chooser.conditions import OWN, Condition, Ports, read_condition
from uservpn.chooser.hosts import normal_host
from uservpn.chooser.index import Kind, wildcard_holds
from uservpn.chooser.patterns import Pattern
from uservpn.chooser.rules import RuleSet, RuleSetBuilder
from uservpn.chooser.targets import Action, Target

ROUNDS = int(os.environ.get("USERVPN_FUZZ", "1"))

# --- one by one ---------------------------------------------------------------------------------


def condition_holds(condition: Condition, host: str, port: int, country: str | None) -> bool | None:
    """As the documents say it, and nothing clever."""
    kind, value = condition.kind, str(condition.value)
    if isinstance(condition.value, Pattern):
        value = condition.value.text
    scheme = "https" if port == 443 else "http"
    if kind is Kind.COUNTRY:
        return None if country is None else country == ("DE" if value == OWN else value)
    if isinstance(condition.value, Ports):
        return condition.value.low <= port <= condition.value.high
    if kind is Kind.CIDR:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(value)
        except ValueError:
            return False
    return {
        Kind.ALL: lambda: True,
        Kind.EXACT: lambda: host == value,
        Kind.SUFFIX: lambda: host == value or host.endswith("." + value),
        Kind.BELOW: lambda: host.endswith("." + value),
        Kind.ONE_LABEL: lambda: (
            host.endswith("." + value) and "." not in host.removesuffix("." + value)
        ),
        Kind.KEYWORD: lambda: value in host,
        Kind.WILDCARD: lambda: fnmatch.fnmatchcase(host, value),
        Kind.LABELS: lambda: (
            re.fullmatch(value.replace(".", r"\.").replace("*", r"[^.]*"), host) is not None
        ),
        Kind.REGEX: lambda: re.search(value, host) is not None,
        Kind.URL: lambda: re.search(value, f"{scheme}://{host}/") is not None,
    }[kind]()


def both(states: list[bool | None]) -> bool | None:
    return False if False in states else None if None in states else True


def either(states: list[bool | None]) -> bool | None:
    return True if True in states else None if None in states else False


def one_by_one(
    written: list[list[list[Condition]]], host: str, port: int, country: str | None
) -> tuple[int | None, bool]:
    needs_country = False
    for rule, conditions in enumerate(written):
        exceptions = [c for some in conditions for c in some if c.is_exception]
        state = both(
            [
                either(
                    [condition_holds(c, host, port, country) for c in some if not c.is_exception]
                )
                for some in conditions
            ]
        )
        if any(condition_holds(c, host, port, country) for c in exceptions):
            state = False
        if state:
            return rule, needs_country
        needs_country |= state is None
    return None, needs_country


# --- what hypothesis draws ----------------------------------------------------------------------

LABELS = st.sampled_from(["a", "b", "ab", "www", "com", "x1"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
ADDRESSES = st.sampled_from(
    ["10.1.2.3", "10.1.9.9", "10.200.0.1", "192.0.2.1", "2001:db8::1", "2001:db9::"]
)
NETWORKS = st.sampled_from(
    [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.3",
        "10.1.2.3/32",
        "0.0.0.0/0",
        "2001:db8::/32",
        "2001:d00::/24",
        "::/0",
        "2001:db8::1/128",
    ]
)
HOSTS = NAMES | ADDRESSES
PORTS = st.sampled_from([80, 443, 8080, 8443])
COUNTRIES = st.sampled_from([None, "", "DE", "US", "CN"])
VALUES = {
    Kind.EXACT: NAMES | ADDRESSES,
    Kind.SUFFIX: NAMES,
    Kind.BELOW: NAMES,
    Kind.ONE_LABEL: NAMES,
    Kind.KEYWORD: st.sampled_from(["a", "w.c", "www", "b.a", "10.1", "ab.com", ":db8"]),
    Kind.WILDCARD: st.sampled_from(
        ["*a", "a*b", "*.com", "w?w.*", "a.*", "?", "1*", "*b.co?", "x1"]
    ).filter(lambda text: text != "?"),
    Kind.LABELS: st.sampled_from(["*.a", "www.*.com", "*.*.com", "a.*", "*.ab.*"]),
    Kind.REGEX: st.sampled_from([r"^a", r"b$", r"^(www|ab)\.", r"\d", r"a.b", r"(a|b)+\.com$"]),
    Kind.URL: st.sampled_from([r"^https://", r"//www", r"com/$", r"^http://(a|b)\."]),
    Kind.CIDR: NETWORKS,
    Kind.PORT: st.sampled_from(["80", "443", "8000-9000", "1-65535"]),
    Kind.COUNTRY: st.sampled_from(["de", "us", "own"]),
}


@st.composite
def alternatives(draw: st.DrawFn, least: int = 1, most: int = 3) -> list[Condition]:
    kind = draw(st.sampled_from(list(VALUES)))
    texts = draw(st.lists(VALUES[kind], min_size=least, max_size=most))
    return [read_condition(kind, text) for text in texts]


@st.composite
def lines(draw: st.DrawFn) -> list[Condition]:
    """A file: conditions of any kinds, exceptions among them."""
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=6))
    listed = []
    for line, kind in enumerate(kinds, 1):
        is_exception = draw(st.booleans()) and kind not in (Kind.PORT, Kind.COUNTRY)
        listed.append(read_condition(kind, draw(VALUES[kind]), line, is_exception))
    return listed


EVERYTHING = st.just([Condition(Kind.ALL, "")])
RULES = st.tuples(
    st.lists(alternatives(), min_size=1, max_size=3) | st.lists(EVERYTHING, min_size=1, max_size=1),
    st.none() | lines(),
)


def build(written: list[tuple[list[list[Condition]], list[Condition] | None]]) -> RuleSet:
    builder = RuleSetBuilder("DE")
    for number, (conditions, listed) in enumerate(written):
        builder.add(
            Target(Action.REJECT, text=f"target{number}"),
            conditions,
            listed=listed,
            line_count=len(listed or ()),
            has_exceptions=any(condition.is_exception for condition in listed or ()),
            file="list.txt" if listed else "",
        )
    return builder.build(b"")


@settings(max_examples=150 * ROUNDS, deadline=None)
@given(
    st.lists(RULES, max_size=8),
    st.lists(st.tuples(HOSTS, PORTS, COUNTRIES), min_size=1, max_size=8),
)
def test_the_first_rule_that_holds(
    written: list[tuple[list[list[Condition]], list[Condition] | None]],
    asked: list[tuple[str, int, str | None]],
) -> None:
    ruleset = build(written)
    flat = [[*conditions, *([listed] if listed else [])] for conditions, listed in written]
    for host, port, country in asked:
        verdict = ruleset.match(host, port, country)
        found = None if verdict.match is None else verdict.match.rule
        assert (found, verdict.needs_country) == one_by_one(flat, host, port, country), (host, port)
        if verdict.match is not None:
            assert verdict.match.target.text == f"target{found}"
            assert f"-> target{found} (chooser.rules[{found}])" in verdict.match.text


@given(st.text("ab*?.", max_size=8), st.text("ab.", max_size=10))
def test_wildcards_are_those_of_a_shell(pattern: str, text: str) -> None:
    assert wildcard_holds(pattern, text) == fnmatch.fnmatchcase(text, pattern)


URL_PATTERNS = st.sampled_from(
    [
        r"^https?:\/\/([^\/]+\.)*abc\.(com|ab)\/",
        "www.*ab",
        "//ab",
        "http",
        "tps://",
        r"b\.com/$",
        "://",
        "abc+c",
        "[0-9]+db8::",
        r"\[2001",
        "ttp",
        "(com/|ab/)$",
        "abab",
    ]
)


@given(st.lists(URL_PATTERNS, min_size=1, max_size=4), HOSTS | st.just("www.abc.com"), PORTS)
def test_patterns_on_urls_are_found_wherever_their_letters_stand(
    sources: list[str], host: str, port: int
) -> None:
    some = ruleset(*([rule("url regex", source)] for source in sources))
    match = some.match(host, port).match
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if port == 443 else 'http'}://{shown}/"
    meant = [number for number, source in enumerate(sources) if re.search(source, url)]
    assert (None if match is None else match.rule) == (meant[0] if meant else None)


# --- said in words ------------------------------------------------------------------------------


def rule(kind: str, *texts: str) -> list[Condition]:
    return [read_condition(Kind(kind), text) for text in texts]


def ruleset(*written: list[list[Condition]], own: str = "DE") -> RuleSet:
    builder = RuleSetBuilder(own)
    for conditions in written:
        builder.add(Target(Action.REJECT, text="no"), conditions)
    return builder.build(b"")


@pytest.mark.parametrize(
    ("kind", "text", "host", "meant"),
    [
        ("exact", "www.example.com", "WWW.example.com.", "exact www.example.com"),
        ("suffix", "Example.com", "a.example.com", "suffix example.com"),
        ("below", "example.com", "a.example.com", "suffix .example.com"),
        ("one label below", "example.com", "a.example.com", "suffix *.example.com"),
        ("suffix", "bücher.example", "www.xn--bcher-kva.example", "suffix xn--bcher-kva.example"),
        ("keyword", "BANK", "my-bank.example", "keyword bank"),
        ("wildcard", "*.cdn-??.net", "a.cdn-01.net", "wildcard *.cdn-??.net"),
        ("regex", r"^ads?\d*\.", "ad12.example", r"regex ^ads?\d*\."),
        ("cidr", "10.1.2.3/8", "10.200.1.1", "cidr 10.0.0.0/8"),
        ("cidr", "2001:DB8::/32", "[2001:db8::7]", "cidr 2001:db8::/32"),
        ("cidr", "::ffff:192.0.2.0/120", "192.0.2.9", "cidr 192.0.2.0/24"),
        ("exact", "192.0.2.9", "::ffff:192.0.2.9", "exact 192.0.2.9"),
        ("port", "8000-8999", "example.com", "port 8000-8999"),
        ("port", "8080", "example.com", "port 8080"),
        ("country", "own", "example.com", "country own"),
    ],
)
def test_each_kind_and_its_words(kind: str, text: str, host: str, meant: str) -> None:
    match = ruleset([rule("exact", "else.where")], [rule(kind, text)]).match(host, 8080, "DE").match
    assert match is not None
    assert match.text == f"rule 2: {meant} -> no (chooser.rules[1])"


def test_words_for_a_line_of_a_file() -> None:
    listed = [read_condition(Kind.SUFFIX, f"site{line}.example", line) for line in range(1, 9)]
    builder = RuleSetBuilder()
    builder.add(
        Target(text="auto"), [rule("port", "443")], listed=listed, line_count=8, file="x/list.txt"
    )
    match = builder.build(b"").match("www.site5.example", 443).match
    assert match is not None
    assert match.text == "rule 1: suffix site5.example in x/list.txt:5 -> auto (chooser.rules[0])"


def test_a_country_is_asked_for_only_where_it_can_decide() -> None:
    both_of = [rule("suffix", "example.com"), rule("country", "cn", "own")]
    some = ruleset(both_of, [rule("suffix", "com")], [rule("country", "us")])
    assert some.match("example.net", 80) == (None, True)  # rule 3 may hold
    verdict = some.match("example.com", 80)
    assert verdict.needs_country and verdict.match is not None and verdict.match.rule == 1
    assert not some.match("other.com", 80).needs_country  # rule 2 holds before rule 3
    for country, meant in (("CN", 0), ("DE", 0), ("US", 1), ("", 1)):
        verdict = some.match("example.com", 80, country)
        assert not verdict.needs_country and verdict.match is not None
        assert verdict.match.rule == meant


def test_a_name_is_in_no_network() -> None:
    some = ruleset([rule("cidr", "0.0.0.0/0", "::/0")])
    for host in ("example.com", "10.1.2", "10.1.2.3.4", "010.1.2.3", "1.2.3.256", "::1::", "a:b"):
        assert some.match(host, 80).match is None
    assert some.match("10.1.2.3", 80).match and some.match("[::1]", 80).match


def test_sets_with_one_source_are_equal() -> None:
    one, same, other = (RuleSetBuilder().build(digest) for digest in (b"1", b"1", b"2"))
    assert one == same and hash(one) == hash(same) and one != other and one != object()


# --- many ---------------------------------------------------------------------------------------


def test_a_hundred_thousand_rules_keep_their_order() -> None:
    """Every rule of its own: names that overlap, each before a wider one or behind it."""
    builder = RuleSetBuilder("DE")
    for number in range(50_000):
        builder.add(
            Target(text=f"t{number}"), [rule("suffix", f"s{number}.d{number % 500}.example")]
        )
    for number in range(500):
        builder.add(Target(), [rule("suffix", f"d{number}.example")])
    for number in range(39_500):
        builder.add(Target(), [rule("exact", f"www.s{number}.d{number % 500}.example")])  # too late
    for number in range(10_000):
        network = f"10.{number >> 8}.{number & 255}.0/24"
        builder.add(Target(), [rule("cidr", network), rule("port", "443")])
    some = builder.build(b"")
    assert len(some) == 100_000

    def first(host: str, port: int = 443) -> int | None:
        match = some.match(host, port).match
        return None if match is None else match.rule

    for number in range(0, 50_000, 97):
        assert first(f"www.s{number}.d{number % 500}.example") == number
    assert first("www.d77.example") == 50_077
    assert first("d500.example") is None
    for number in range(0, 10_000, 97):
        assert first(f"10.{number >> 8}.{number & 255}.9") == 90_000 + number
        assert first(f"10.{number >> 8}.{number & 255}.9", 80) is None
    assert some.size < 20_000_000


def test_a_hundred_thousand_lines_take_little_memory() -> None:
    builder = RuleSetBuilder()
    listed = [Condition(Kind.SUFFIX, f"site{line}.example", line) for line in range(1, 100_001)]
    builder.add(Target(), [], listed=listed, line_count=100_000, file="list.txt")
    some = builder.build(b"")
    assert some.size < 2_000_000
    match = some.match("www.site77777.example", 443).match
    assert match is not None and match.text.startswith(
        "rule 1: suffix site77777.example in list.txt:77777"
    )


def test_as_many_keywords_as_there_are() -> None:
    words = [
        f"{a}{b}{c}-{d}" for a in "abcdefghij" for b in "klmno" for c in "pqrst" for d in "uvwxyz"
    ]
    some = ruleset(*([rule("keyword", word)] for word in words))
    for number, word in enumerate(words):
        match = some.match(f"x{word}x.example", 80).match
        assert match is not None and match.rule == number
    assert some.match("nothing-of-it.example", 80).match is None


def test_conditions_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "ORDERS_MAX", 10)
    builder = RuleSetBuilder()
    for _ in range(5):
        builder.add(Target(), [rule("suffix", "com")])
    with pytest.raises(ValueError, match="more than 10"):
        builder.add(Target(), [rule("suffix", "com")])


def test_conditions_on_ports_alone_have_a_limit_of_their_own() -> None:
    builder = RuleSetBuilder()
    listed = [read_condition(Kind.PORT, str(port), port) for port in range(1, rules.OPEN_MAX + 2)]
    with pytest.raises(ValueError, match="ports, countries"):
        builder.add(Target(), [], listed=listed, line_count=len(listed), file="ports.txt")
    some = RuleSetBuilder()
    some.add(Target(), [], listed=listed[:-1], line_count=len(listed), file="ports.txt")
    match = some.build(b"").match("example.com", 4999).match
    assert match is not None and match.text.startswith("rule 1: port 4999 in ports.txt:4999")


# --- conditions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *[
            ("exact", text)
            for text in ("", " ", "a b", "a..b", ".a", "http://a", "a/b", "x" * 64, "*.a")
        ],
        *[
            ("suffix", text)
            for text in ("", ".example.com", "*.example.com", "10.0.0.1", "a" * 300)
        ],
        *[("keyword", text) for text in ("", "a b", "ü", "a/b", "a*b")],
        *[("wildcard", text) for text in ("", "*", "*.*", "??", "a b", "[a]*")],
        *[("label wildcard", text) for text in ("*", "a*.com", "w?w.com")],
        *[
            ("cidr", text)
            for text in ("", "10.0.0.0/33", "10.0.0/8", "a/8", "10.0.0.0/", "::/129", "1/8")
        ],
        *[
            ("port", text)
            for text in ("", "0", "65536", "9-8", "a", "-1", "1-", "80,443", "1" * 5000)
        ],
        *[("country", text) for text in ("", "x", "xx", "usa", "uk")],
    ],
)
def test_a_condition_that_never_could_hold_is_refused(kind: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        read_condition(Kind(kind), text)


@settings(max_examples=100 * ROUNDS, deadline=None)
@given(st.sampled_from([kind for kind in Kind if kind is not Kind.ALL]), st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(kind: Kind, text: str) -> None:
    try:
        condition = read_condition(kind, text)
    except ValueError as error:
        assert str(error)
        return
    some = ruleset([[condition]])
    for host in ("example.com", normal_host(text) or "x", "10.0.0.1", "::1"):
        some.match(host, 443, "DE")


@given(st.text(max_size=300), st.integers(0, 70_000), st.none() | st.text(max_size=3))
def test_any_host_gets_an_answer(host: str, port: int, country: str | None) -> None:
    written = [[rule(kind.value, text)] for kind, text in EXAMPLES.items()]
    ruleset(*written).match(host, port, country)


EXAMPLES = {
    Kind.SUFFIX: "example.com",
    Kind.ONE_LABEL: "example.com",
    Kind.KEYWORD: "a",
    Kind.WILDCARD: "a*b",
    Kind.LABELS: "a.*",
    Kind.REGEX: "a.*b",
    Kind.URL: "^http",
    Kind.CIDR: "::/0",
    Kind.PORT: "80",
    Kind.COUNTRY: "de",
}
