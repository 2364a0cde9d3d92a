"""The lists that people have, in the forms in which others' tools write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uservpn.chooser.index import Kind
from uservpn.chooser.lists import PROBLEMS_MAX, Form, ListFile
from uservpn.chooser.rules import RuleSet, RuleSetBuilder
from uservpn.chooser.targets import Target

ROUNDS = int(os.environ.get("USERVPN_FUZZ", "1"))

LISTS = Path(__file__).with_name("lists")


def ruleset(listed: ListFile) -> RuleSet:
    builder = RuleSetBuilder()
    builder.add(
        Target(),
        [],
        listed=listed.conditions(),
        line_count=listed.line_count,
        has_exceptions=listed.has_exceptions,
        file="list",
    )
    return builder.build(b"")


def read(name: str, form: Form = Form.AUTO) -> tuple[ListFile, RuleSet]:
    listed = ListFile((LISTS / name).read_text(encoding="utf-8"), form)
    return listed, ruleset(listed)


def holds(some: RuleSet, host: str, port: int = 443, country: str = "") -> bool:
    return some.match(host, port, country).match is not None


def wrong(text: str, form: Form = Form.AUTO) -> list[tuple[int, str, str]]:
    listed = ListFile(text, form)
    list(listed.conditions())
    return listed.notes.problems


# --- domains ------------------------------------------------------------------------------------


def test_a_list_of_domains() -> None:
    listed, some = read("domains.txt")
    assert listed.form is Form.DOMAINS and not listed.notes.problems and not listed.notes.skipped
    inside = [
        "example.com",
        "a.b.example.com",
        "mixed.example",
        "www.mixed.example",
        "dotted.example",
    ]
    inside += ["a.dotted.example", "a.b.below.example", "img12.wild.example"]
    inside += [
        "www.xn--bcher-kva.example",
        "192.0.2.7",
        "10.9.8.7",
        "2001:db8::9",
        "www.only.example",
    ]
    inside += ["my-bank.test", "x.cdn-01.example", "ad7.test", "198.51.100.200"]
    outside = ["example.org", "notexample.com", "below.example", "a.www.only.example", "192.0.2.8"]
    outside += ["x.cdn-1.example", "2001:db9::"]
    assert [host for host in inside if not holds(some, host)] == []
    assert [host for host in outside if holds(some, host)] == []
    assert holds(some, "else.test", 8080) and holds(some, "else.test", 443, "CN")


def test_a_hosts_file_blocks_just_the_names_in_it() -> None:
    listed, some = read("hosts")
    assert listed.form is Form.DOMAINS and not listed.notes.problems
    assert all(
        holds(some, host) for host in ("ads.example", "track.ads.example", "metrics.example")
    )
    outside = ("localhost", "localhost.localdomain", "x.ads.example", "0.0.0.0", "127.0.0.1")
    assert [host for host in outside if holds(some, host)] == ["localhost.localdomain"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("two words", "'two words'"),
        ("exact a b", "exact 'a b'"),
        ("http://example.com/", "'http://example.com/'"),
        ("cidr 10.0.0.0/99", "cidr '10.0.0.0/99'"),
        ("port 0", "port '0'"),
        ("country xx", "country 'xx'"),
        ("regex (", "regex a '(' without its ')'"),
        ("a..b", "suffix 'a..b'"),
        ("x" * 64 + ".com", "suffix"),
    ],
)
def test_a_malformed_line_is_told_with_its_number(line: str, found: str) -> None:
    ((number, what, allowed),) = wrong(f"example.com\n\n# comment\n{line}\nexample.org\n")
    assert number == 4 and what.startswith(found) and allowed


def test_many_malformed_lines_are_counted() -> None:
    listed = ListFile("good.example\n" + "a b c\n" * 1000)
    assert len(list(listed.conditions())) == 1
    assert len(listed.notes.problems) == PROBLEMS_MAX and listed.notes.problem_count == 1000


# --- clash --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clash-domain.yaml", "clash-domain.txt"])
def test_a_rule_provider_of_domains(name: str) -> None:
    listed, some = read(name)
    assert listed.form is Form.CLASH and not listed.notes.problems and not listed.notes.skipped
    inside = ["suffix.example", "a.b.suffix.example", "a.b.below.example", "a.onelabel.example"]
    inside += ["exact.example", "www.x.labels.example", "xn--bcher-kva.example"]
    outside = ["below.example", "a.b.onelabel.example", "onelabel.example", "a.exact.example"]
    outside += ["www.x.y.labels.example", "labels.example"]
    assert [host for host in inside if not holds(some, host)] == []
    assert [host for host in outside if holds(some, host)] == []


def test_a_rule_provider_of_networks() -> None:
    listed, some = read("clash-ipcidr.yaml")
    assert listed.form is Form.CLASH and not listed.notes.problems
    assert all(
        holds(some, ip) for ip in ("192.0.2.1", "203.0.113.7", "2001:db8:1::", "198.51.100.9")
    )
    assert not any(
        holds(some, ip) for ip in ("192.0.3.1", "203.0.113.8", "2001:db9::", "example.com")
    )


@pytest.mark.parametrize("name", ["clash-classical.yaml", "clash-classical.txt"])
def test_a_classical_rule_provider(name: str) -> None:
    listed, some = read(name)
    assert listed.form is Form.CLASH and not listed.notes.problems
    inside = ["exact.example", "a.suffix.example", "a-keyword-b.test", "a.wild-01.example"]
    inside += ["abc.regex.example", "dee.regex.example", "192.0.2.200", "2001:db8::5"]
    outside = ["a.exact.example", "deee.regex.example", "192.0.3.1", "both.example"]
    assert [host for host in inside if not holds(some, host)] == []
    assert [host for host in outside if holds(some, host)] == []
    assert holds(some, "else.test", 443, "CN") and not holds(some, "else.test", 443, "US")
    assert [port for port in (8443, 9001, 9003) if holds(some, "else.test", port)] == [8443, 9001]
    assert {what: count for what, (count, _) in listed.notes.skipped.items()} == {
        "rules of the kind IP-ASN": 2,
        "rules of the kind PROCESS-NAME": 1,
        "rules of the kind SRC-IP-CIDR": 1,
        "rules of the kind AND": 1,
        "rules of the kind GEOIP,LAN": 1,
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("payload:\n  - DOMAIN,a b\n", 2),
        ("payload:\n  - DOMAIN-SUFIX,example.com\n", 2),
        ("payload:\n  - DOMAIN,example.com,PROXY\n", 2),
        ("payload:\n  - 'unfinished\n", 2),
        ("payload:\n  - example.com\nrules:\n  - x\n", 3),
        ("payload: ['a.example', 'b.example']\n", 1),
        ("payload:\n  - {a: b}\n", 2),
        ("payload:\n  - IP-CIDR,10.0.0.0/40\n", 2),
        ("payload:\n  - 10.0.0.0/40\n", 2),
        ("payload:\n  key: value\n", 2),
        ("  - example.com\npayload:\n", 1),
    ],
)
def test_a_malformed_rule_provider(text: str, line: int) -> None:
    assert [number for number, _, _ in wrong(text, Form.CLASH)] == [line]


def test_an_empty_payload_and_quotes() -> None:
    assert wrong("---\npayload: []\n") == []
    assert wrong("payload: # nothing yet\n...\n") == []
    some = ruleset(
        ListFile("payload:\n- 'DOMAIN-REGEX,^it''s-a'\n- \"DOMAIN-REGEX,\\\\.b$\" # c\n")
    )
    assert holds(some, "it's-a") and holds(some, "a.b")


# --- autoproxy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["autoproxy.txt", "gfwlist.txt"])
def test_an_autoproxy_list(name: str) -> None:
    listed, some = read(name)
    assert listed.form is Form.AUTOPROXY and not listed.notes.problems
    inside = [
        "203.0.113.31",
        "198.51.100.7",
        "a.blocked.example",
        "blocked.example",
        "2600.example",
    ]
    inside += ["x.sub.partly.example", "dotted.example", "a.slashed.example", "plain.example"]
    inside += [
        "wild.test",
        "a.wild.test",
        "img1.pics.example",
        "x.img.pics.example",
        "exact.example",
    ]
    inside += ["a.starred.example", "schemed.example", "my.videos12.example", "freedomword.test"]
    inside += ["a.b.regexed.co.uk", "regexed.ac", "only-https.test"]
    outside = ["fine.blocked.example", "x.fine.blocked.example", "www.plain.example"]
    outside += ["partly.example", "a.exact.example", "x.ok.wild.example", "regexed.de"]
    outside += ["search.safeweb.test", "a.schemed.example"]
    assert [host for host in inside if not holds(some, host)] == []
    assert [host for host in outside if holds(some, host)] == []
    assert not holds(some, "only-https.test", 80)
    assert listed.notes.skipped == {"filters on the path of a URL": (4, 28)}


def test_what_is_no_base64_of_a_list_is_read_as_it_is() -> None:
    assert ListFile("YWJjZGVmZ2hpamtsbW5vcA==\n").form is Form.DOMAINS
    assert ListFile("abcdefghijklmnopqrstuvwx\n").form is Form.DOMAINS


def test_a_form_that_is_named_is_not_guessed() -> None:
    assert holds(ruleset(ListFile("example.com\n", Form.DOMAINS)), "www.example.com")
    assert not holds(ruleset(ListFile("example.com\n", Form.CLASH)), "www.example.com")
    assert holds(ruleset(ListFile("example.com\n", Form.AUTOPROXY)), "www.example.com")
    marked = "+.plus.example\nexample.com\n"  # so Clash writes
    assert ListFile(marked).form is Form.CLASH
    assert holds(ruleset(ListFile(marked, Form.DOMAINS)), "www.example.com")


# --- anything -----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(
            "payload:\n",
            "  - ",
            "||",
            "@@",
            "|http://",
            "/",
            "*",
            ".",
            "example.com",
            "\n",
            "DOMAIN,",
            "'",
        ),
        *(
            "IP-CIDR,",
            "10.0.0.0/8",
            "0.0.0.0 ",
            "#",
            "!",
            "regex (",
            "+.",
            ",no-resolve",
            "[AutoProxy]\n",
        ),
    ]
)


@settings(max_examples=100 * ROUNDS, deadline=None)
@given(st.lists(PIECES | st.text(max_size=5), max_size=20).map("".join), st.sampled_from(Form))
def test_any_text_is_a_list_with_conditions_problems_or_both(text: str, form: Form) -> None:
    listed = ListFile(text, form)
    some = ruleset(listed)
    for host in ("example.com", "www.example.com", "10.1.1.1", "::1"):
        some.match(host, 443)
    assert all(0 < line <= listed.line_count for line, _, _ in listed.notes.problems)


def test_a_byte_order_mark_is_no_part_of_a_list() -> None:
    listed = ListFile("\ufeffexample.com\r\nexample.org\r\n")
    assert [(c.kind, c.value) for c in listed.conditions()] == [
        (Kind.SUFFIX, "example.com"),
        (Kind.SUFFIX, "example.org"),
    ]
