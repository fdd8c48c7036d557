from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.totals import merge, value_of

LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "count": st.integers(0, 1000),
    "first": st.integers(0, 1000).map(lambda n: {"min": n}),
    "last": st.integers(0, 1000).map(lambda n: {"max": n}),
    "branch": st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000)),
}
TREES = st.fixed_dictionaries({}, optional=LEAVES)


@given(st.lists(TREES, max_size=5))
def test_counts_add_up_and_extremes_are_kept(trees: list[dict[str, Any]]) -> None:
    merged = merge(trees)
    assert merged.get("count", 0) == sum(tree.get("count", 0) for tree in trees)
    for name, extreme in (("first", min), ("last", max)):
        found = [value_of(tree[name]) for tree in trees if name in tree]
        assert (name in merged) == bool(found)
        assert not found or value_of(merged[name]) == extreme(found)
    for letter in "abc":
        assert merged.get("branch", {}).get(letter, 0) == sum(tree.get("branch", {}).get(letter, 0) for tree in trees)


@given(st.lists(TREES, max_size=5), st.integers(0, 5))
def test_it_is_the_same_in_whatever_steps_it_is_done_and_changes_nothing_given(trees: list[dict[str, Any]], at: int) -> None:
    before = repr(trees)
    assert merge((merge(trees[:at]), merge(trees[at:]))) == merge(trees) == merge(reversed(trees))
    assert repr(trees) == before


def test_a_model_may_be_called_like_an_extreme() -> None:
    tree = {"max": {"1": {"count": 2}}}
    assert merge((tree, tree)) == {"max": {"1": {"count": 4}}}
