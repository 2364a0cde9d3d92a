"""What `exit = ...` means, and which exits a target admits, in which order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uservpn.chooser.targets import (
    Action,
    Candidate,
    Group,
    Pick,
    Selector,
    Target,
    parse_selector,
    parse_target,
    spread_order,
)
from uservpn.types import NodeId

EXITS = [
    Candidate(NodeId(1), "nyc", "US"),
    Candidate(NodeId(2), "fra", "DE"),
    Candidate(NodeId(3), "lax", "US"),
    Candidate(NodeId(4), "", ""),
]
GROUPS = {
    "fast": Group(Pick.FASTEST, (Selector(country="US"), Selector(number=2))),
    "order": Group(
        Pick.FALLBACK, (Selector(name="fra"), Selector(country="US"), Selector(number=1))
    ),
    "wide": Group(Pick.SPREAD, (Selector(country="US"), Selector(number=2))),
}


def tiers(value: int | str, *avoid: str, site: str = "example.com") -> list[list[int]]:
    target = parse_target(value, GROUPS, avoid)
    return [[int(node) for node in tier] for tier in target.tiers(EXITS, site)]


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (2, [[2]]),
        ("2", [[2]]),
        ("fra", [[2]]),
        ("us", [[1, 3]]),
        ("US", [[1, 3]]),
        ("auto", [[1, 2, 3, 4]]),
        ("fast", [[1, 2, 3]]),
        ("order", [[2], [1, 3]]),
        ("direct", []),
        ("reject", []),
        (9, []),
        ("mars", []),
    ],
)
def test_the_exits_that_a_target_admits(value: int | str, meant: list[list[int]]) -> None:
    assert tiers(value) == meant


def test_no_exit_is_named_twice() -> None:
    assert [node for tier in tiers("order") for node in tier] == [2, 1, 3]


def test_countries_not_to_use_hold_for_unknown_ones_too() -> None:
    assert tiers("auto", "us") == [[2]]
    assert tiers("fast", "de", "fr") == [[1, 3]]
    assert tiers("us", "US") == []
    assert tiers(4, "cn") == []


def test_a_site_keeps_its_own_order_and_sites_are_shared_out() -> None:
    nodes = [NodeId(number) for number in (1, 2, 3)]
    orders = {f"{n}.example": spread_order(f"{n}.example", nodes) for n in range(3000)}
    firsts = Counter(order[0] for order in orders.values())
    assert all(900 < count < 1100 for count in firsts.values())
    for site, order in orders.items():
        assert spread_order(site, nodes[::-1]) == order
        left = [node for node in order if node != 2]
        assert spread_order(site, left) == left
    assert tiers("wide", site="1.example") == [[int(node)] for node in orders["1.example"]]


@pytest.mark.parametrize("value", [0, 255, -1, "", "a b", "1a", "xx", "uk", "ü", "x" * 33])
def test_what_names_no_exit(value: int | str) -> None:
    with pytest.raises(ValueError, match=r"no number, name or country|no country of ISO 3166"):
        parse_target(value, GROUPS)


def test_reserved_words_are_no_selectors() -> None:
    for word in ("auto", "direct", "reject"):
        assert parse_target(word, GROUPS).action is Action(word)
        with pytest.raises(ValueError, match="no number, name or country"):
            parse_selector(word)


def test_direct_and_reject_avoid_nothing() -> None:
    with pytest.raises(ValueError, match="never uses"):
        parse_target("direct", GROUPS, ["cn"])


def test_a_target_as_a_text() -> None:
    assert (
        str(parse_target("fast", GROUPS, ["cn", "Ru"], is_strict=True)) == "fast, not cn ru, strict"
    )
    assert str(Target()) == "auto"
    assert [str(member) for member in GROUPS["order"].members] == ["fra", "us", "1"]


@given(st.text() | st.integers())
def test_whatever_is_written_is_a_target_or_a_sentence(value: int | str) -> None:
    try:
        target = parse_target(value, GROUPS)
    except ValueError as error:
        assert str(error)
    else:
        assert target.action is not Action.EXIT or target.members
