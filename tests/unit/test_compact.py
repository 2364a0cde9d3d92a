"""The compact map answers as a dict would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uservpn.kit.compact import NUMBER_MAX, CompactMapBuilder

TEXTS = st.text(max_size=3) | st.text(alphabet="ab", max_size=2)


@given(st.lists(st.tuples(TEXTS, st.integers(0, NUMBER_MAX))), st.lists(TEXTS), st.booleans())
def test_as_a_dict(pairs: list[tuple[str, int]], others: list[str], first_only: bool) -> None:
    builder = CompactMapBuilder(first_only=first_only)
    meant: dict[str, set[int]] = {}
    for text, number in pairs:
        builder.add(text, number)
        meant.setdefault(text, set()).add(number)
    compact = builder.build()
    assert len(compact) == len(meant)
    for text in [*meant, *others]:
        numbers = sorted(meant.get(text, ()))
        assert compact.find([text]) == (numbers[:1] if first_only else numbers)


def test_many_texts_in_little_memory() -> None:
    builder = CompactMapBuilder(first_only=True)
    for number in range(50_000):
        builder.add(f"text {number}", number)
    compact = builder.build()
    assert compact.size < 13 * 50_000
    assert compact.find(f"text {number}" for number in range(50_000)) == list(range(50_000))
    assert compact.find(f"else {number}" for number in range(50_000)) == []


def test_one_text_with_many_numbers() -> None:
    builder = CompactMapBuilder(first_only=False)
    for number in range(20_000, 0, -1):
        builder.add("text", number)
        builder.add("other", 7)
    compact = builder.build()
    assert compact.find(["text", "other"]) == [*range(1, 20_001), 7]
