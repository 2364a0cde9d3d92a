"""Regular expressions: as Python's `re` finds them, in linear time, and what is refused."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uservpn.chooser import automata, patterns
from uservpn.chooser.automata import Automaton
from uservpn.chooser.patterns import Pattern, Unsupported

ROUNDS = int(os.environ.get("USERVPN_FUZZ", "1"))

ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "c",
        ".",
        r"\.",
        r"\d",
        r"\w",
        "[ab]",
        "[^a]",
        "[a-c]",
        r"[\d.]",
        "-",
        "^",
        "$",
        "x{",
        "A",
    ]
)


def combined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    grouped = st.builds("({})".format, parts) | st.builds("(?:{})".format, parts)
    repeated = st.builds(
        "(?:{}){}".format,
        parts,
        st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{,2}", "{1,}", "{0}"]),
    )
    several = st.lists(parts, min_size=1, max_size=3)
    return grouped | repeated | several.map("".join) | several.map("|".join)


PATTERNS = st.recursive(ATOMS, combined, max_leaves=12)
TEXTS = st.text(alphabet="abc1.-x{", min_size=1, max_size=12)


def found(text: str, *sources: str) -> set[int]:
    return Automaton((Pattern(source), at) for at, source in enumerate(sources)).find(text)


@settings(max_examples=100 * ROUNDS, deadline=None)
@given(st.lists(PATTERNS, min_size=1, max_size=4), st.lists(TEXTS, min_size=1, max_size=6))
@example(["^$", "$", "a$|b", "^a|b$"], ["a", "ba", "cb", "b"])
@example(["(a|b)*c", "(a*)*b", "(^a)*b"], ["ab", "aac", "c"])
def test_found_is_what_re_finds(sources: list[str], texts: list[str]) -> None:
    automaton = Automaton((Pattern(source), at) for at, source in enumerate(sources))
    for text in texts:
        meant = {
            at
            for at, source in enumerate(sources)
            if re.search(source, text, re.ASCII | re.IGNORECASE)
        }
        assert automaton.find(text) == meant, text
        assert automaton.find(text) == meant, text


@settings(max_examples=100 * ROUNDS, deadline=None)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=8))
@example("a(bc)+d", ["abcbcd"])
@example("(ab|cd)ef?g{2}h{1,2}", ["abegghh"])
def test_its_literals_are_in_whatever_it_finds(source: str, texts: list[str]) -> None:
    literals = Pattern(source).literals
    for text in texts:
        if re.search(source, text, re.ASCII | re.IGNORECASE):
            assert all(literal in text.lower() for literal in literals)


@pytest.mark.parametrize(
    ("source", "literals"),
    [
        (r"^ads?[0-9]*\.example\.", ["ad", ".example."]),
        ("a(bc)+d", ["a", "bc", "d"]),
        ("a(?:bc)d|e", []),
        ("(abc)(d(e)f)[xy]g", ["abcdef", "g"]),
        ("ab*c{2}d?", ["a", "c"]),
    ],
)
def test_the_literals_of_a_pattern(source: str, literals: list[str]) -> None:
    assert Pattern(source).literals == literals


@settings(max_examples=100 * ROUNDS, deadline=None)
@given(st.text(alphabet="ab()[]{}|*+?^$\\.-,1dwPQ:<>", max_size=20))
def test_a_pattern_is_read_as_re_reads_it_or_refused(source: str) -> None:
    try:
        automaton = Automaton([(Pattern(source), 0)])
    except ValueError as error:
        assert str(error)
        return
    try:
        meant = re.compile(source, re.ASCII | re.IGNORECASE)
    except (re.error, FutureWarning):  # [[a] means something else some day
        return  # more is taken here: nothing that could do harm
    for text in ("a", "b", "ab", "a1-b", "(a)", "{1}"):
        assert bool(automaton.find(text)) == bool(meant.search(text)), text


@pytest.mark.parametrize(
    "source", ["(a+)+$", "(a|a)*$", "(a*)*$", "(.*a){12}$", "a?" * 40 + "a" * 40]
)
def test_what_ruins_others_takes_one_step_a_letter(source: str) -> None:
    automaton = Automaton([(Pattern(source), 0)])
    steps = 0
    step = Automaton._step

    def counted(self: Automaton, *arguments: object) -> list[int]:
        nonlocal steps
        steps += 1
        return step(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Automaton, "_step", counted)
        automaton.find("a" * 250 + "!")
    assert steps <= 3 * 251


@pytest.mark.parametrize(
    "source",
    [
        r"(a)\1",
        "(?=a)b",
        "(?!a)b",
        "(?<=a)b",
        "(?<!a)b",
        r"\bfoo\b",
        "a++",
        r"[\W]",
        r"\u0041",
        "(?x)a",
    ],
)
def test_right_but_beyond_an_automaton(source: str) -> None:
    with pytest.raises(Unsupported):
        Pattern(source)


@pytest.mark.parametrize(
    "source",
    [
        "(",
        ")",
        "a)",
        "(a",
        "[",
        "[a",
        "*",
        "+a",
        "a**",
        "|*",
        "{2}",
        "a{3,2}",
        "a{999}",
        "\\",
        "[b-a]",
        "x" * (patterns.PATTERN_SIZE_MAX + 1),
        "((a{100}){100}){100}",
        "(" * 60 + ")" * 60,
    ],
)
def test_malformed_or_too_big(source: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        Pattern(source)
    assert not isinstance(caught.value, Unsupported)


def test_all_of_them_together_are_bounded() -> None:
    many = [(Pattern("a{250}"), at) for at in range(2 * automata.TOTAL_MAX // 750)]
    with pytest.raises(ValueError, match="together"):
        Automaton(many)


def test_what_is_built_while_matching_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automata, "_CACHE_MAX", 500)
    sources = [r"(a|b)*a(a|b){6}$", "ab.*ba", "^b+a"]
    automaton = Automaton((Pattern(source), at) for at, source in enumerate(sources))
    for number in range(1 << 11):
        text = f"{number:011b}".replace("0", "a").replace("1", "b")
        meant = {at for at, source in enumerate(sources) if re.search(source, text)}
        assert automaton.find(text) == meant
        assert automaton._spent <= 500 + 1000


def test_the_patterns_of_a_number() -> None:
    automaton = Automaton([(Pattern("a"), 1), (Pattern("b"), 2), (Pattern("c"), 1)])
    assert automaton.texts_of(1) == ["a", "c"]
    assert automaton.find("xcb") == {1, 2}
