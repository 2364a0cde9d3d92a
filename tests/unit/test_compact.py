"""The compact map answers as a dict would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uservpn.kit.compact import NUMBER_MAX, CompactMapBuilder

TEXTS = st.text(max_size=3) | st.text(alphabet="ab", max_size=2)


@given(st.lists(st.tuples(TEXTS, st.integers(0, 9) | st.integers(0, NUMBER_MAX))), st.lists(TEXTS))
def test_as_a_dict(pairs: list[tuple[str, int]], others: list[str]) -> None:
    builder = CompactMapBuilder()
    meant: dict[str, set[int]] = {}
    for text, number in pairs:
        builder.add(text, number)
        meant.setdefault(text, set()).add(number)
    compact = builder.build()
    assert len(compact) == len(meant)
    for text in [*meant, *others]:
        numbers = sorted(meant.get(text, ()))
        evens = [number for number in numbers if number % 2 == 0]
        last = numbers.index(evens[0]) + 1 if evens else len(numbers)
        assert compact.find([text]) == numbers[:last]


def test_many_texts_in_little_memory() -> None:
    builder = CompactMapBuilder()
    for number in range(50_000):
        builder.add(f"text {number}", number)
    compact = builder.build()
    assert compact.size < 17 * 50_000
    assert compact.find(f"text {number}" for number in range(50_000)) == list(range(50_000))
    assert compact.find(f"else {number}" for number in range(50_000)) == []


def test_one_text_with_many_numbers() -> None:
    builder = CompactMapBuilder()
    for number in range(40_001, 0, -2):
        builder.add("text", number)
        builder.add("other", 8)
    compact = builder.build()
    assert compact.find(["text", "other"]) == [*range(1, 40_002, 2), 8]
