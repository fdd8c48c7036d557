"""Numbers of several processes as one: trees whose leaves add up, or are the most or the least of all."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

Tree = dict[str, Any]

_EXTREMES: Final = {"max": max, "min": min}


def merge(trees: Iterable[Mapping[str, Any]]) -> Tree:
    """Return one tree of many.

    A branch is a dict; numbers at the same place add up; ``{"max": n}`` and ``{"min": n}`` are leaves of which the largest and
    the smallest is kept; of texts the first is.
    """
    merged: Tree = {}
    for tree in trees:
        for name, value in tree.items():
            merged[name] = _both(merged[name], value) if name in merged else _copy(value)
    return merged


def value_of(leaf: Any) -> float:
    """Return the number of a leaf."""
    number: float = next(iter(leaf.values())) if isinstance(leaf, dict) else leaf
    return number


def _both(one: Any, other: Any) -> Any:
    if isinstance(one, str):
        return one
    if not isinstance(one, dict):
        return one + other
    kind = next(iter(one), "")
    if kind in _EXTREMES and len(one) == 1 and isinstance(one[kind], int | float):
        return {kind: _EXTREMES[kind](one[kind], other[kind])}
    return merge((one, other))


def _copy(value: Any) -> Any:
    return {name: _copy(inner) for name, inner in value.items()} if isinstance(value, dict) else value
