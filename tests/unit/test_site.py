"""Sites: the list's own test cases, the package publicsuffixlist as oracle, and what is no domain."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from publicsuffixlist import PublicSuffixList

from scripts.suffixes import rules_of
from uservpn.chooser import suffixes
from uservpn.chooser.site import site_of

ORACLE = PublicSuffixList()
DATA = (files("publicsuffixlist") / "public_suffix_list.dat").read_text(encoding="utf-8")
CASES = re.findall(
    r"^checkPublicSuffix\('([^']+)', (?:'([^']+)'|null)\);",
    (files("publicsuffixlist") / "test_psl.txt").read_text(encoding="utf-8"),
    re.MULTILINE,
)
RULES = [rule.lstrip("!").replace("*.", "wild.") for rule in suffixes.RULES.split()]


def ascii_of(name: str) -> str:
    return name.encode("idna").decode("ascii").lower()


def test_the_list_s_own_cases() -> None:
    assert len(CASES) > 70
    for host, registrable in CASES:
        if host.startswith("."):
            continue  # no host at all
        assert site_of(host) == ascii_of(registrable or host), host


def test_the_list_is_the_one_that_the_package_ships() -> None:
    """Else: make suffixes."""
    assert f"// VERSION: {suffixes.VERSION}\n" in DATA
    assert rules_of(DATA) == suffixes.RULES.split()


@given(
    st.sampled_from(RULES) | st.sampled_from(["example", "home.arpa", "internal"]),
    st.lists(st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True), max_size=3),
)
def test_as_publicsuffixlist_has_it(suffix: str, labels: list[str]) -> None:
    host = ".".join([*labels, suffix])
    assert site_of(host) == (ORACLE.privatesuffix(host) or host)


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("www.example.co.uk", "example.co.uk"),
        ("WWW.Example.COM.", "example.com"),
        ("a.b.foo.github.io", "foo.github.io"),
        ("github.io", "github.io"),
        ("10.127.1", "10.127.1"),
        ("co.uk", "co.uk"),
        ("www.ck", "www.ck"),
        ("a.www.ck", "www.ck"),
        ("www.city.kawasaki.jp", "city.kawasaki.jp"),
        ("www.bücher.example", "xn--bcher-kva.example"),
        ("www.xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("食狮.公司.cn", "xn--85x722f.xn--55qx5d.cn"),
        ("食狮。公司。cn", "xn--85x722f.xn--55qx5d.cn"),
        ("localhost", "localhost"),
        ("Intranet.", "intranet"),
        ("203.0.113.7", "203.0.113.7"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_one_site_whatever_the_spelling(host: str, site: str) -> None:
    assert site_of(host) == site
    assert site_of(site) == site


@given(st.text(max_size=300))
def test_anything_at_all_has_a_site(host: str) -> None:
    site = site_of(host)
    assert site_of(site) == site
