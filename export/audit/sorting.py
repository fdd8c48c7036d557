"""Operators that sort entries. A sort in any of its exported forms is a permutation: norm 1."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from export.audit.elementwise import broadcast, copied, entrywise, rows_of, stays
from export.audit.node import Node
from export.audit.values import Array, Coordinates, NoBoundError, Value, hypotenuse, times


def sorted_origin(source: Coordinates, groups: Array) -> Coordinates | None:
    """Return the tensor that holds ``source`` with each group of places sorted, largest first, over the group's own places.

    Args:
        source: where the entries come from.
        groups: ``(..., size)`` entries of ``source.index`` that are sorted together.
    """
    if not source.distinct() or len(np.unique(groups)) != groups.size:
        return None
    ordered = np.sort(groups.reshape(-1, groups.shape[-1]), axis=1)
    key = ordered[np.argsort(ordered[:, 0])]
    weight = float(source.weight.max(initial=0.0))
    groups_digest = hashlib.sha256(key.astype(np.int64).tobytes()).hexdigest()
    name = f"sorted({source.origin}|{source.through}|{key.shape}|{groups_digest})"
    index = np.sort(groups, axis=-1)
    return Coordinates(name, times(source.bound, weight), index, np.ones(index.shape))


def extremum(node: Node) -> Value:
    """Max and Min: of two pieces of one tensor, the sorted pieces; against a constant, an entrywise map; otherwise squares add up."""
    if len(node.inputs) == 1:
        return entrywise(node, node.input(), 1.0)
    values = [node.input(place) for place in range(len(node.inputs))]
    moving = [value for value in values if value.constant is None]
    if len(moving) == 1 and all(stays(moving[0].shape, value.shape) for value in values if value is not moving[0]):
        return entrywise(node, moving[0], 1.0)
    name = node.proto.output[0]
    if len(moving) == len(values) == 2 and rows_of(*values):
        a, b = (value.traced() for value in values)
        if a is not None and b is not None and a.origin == b.origin and a.through == b.through and a.index.shape == b.index.shape:
            both = replace(a, index=np.stack([a.index, b.index]), weight=np.stack([a.weight, b.weight]))
            found = sorted_origin(both, np.stack([a.index, b.index], axis=-1))
            if found is not None:
                chosen = replace(found, index=found.index[..., 0 if node.op == "Max" else 1], weight=np.ones(a.index.shape))
                return Value(name, values[0].shape, rows=True, chain=all(v.chain for v in values)).with_coordinates(chosen)
    shape = values[0].shape
    for value in values[1:]:
        shape = broadcast(shape, value.shape)
    bounds = [copied(value, shape) for value in values]
    chain = sum(not value.fixed for value in values) < 2 and all(value.chain for value in values)
    return Value(name, shape, bound=hypotenuse(bounds), rows=rows_of(*values), chain=chain)


def pick_sorted(node: Node, x: Value, axis: int, ranks: Sequence[int]) -> Value | None:
    """Return the entries at ``ranks`` of ``x`` sorted along ``axis``, largest first; None where that cannot be followed."""
    source = x.traced()
    if source is None or axis == 0 or x.shape is None or not ranks:
        return None
    found = sorted_origin(source, np.moveaxis(source.index, axis - 1, -1))
    if found is None or max(ranks) >= found.index.shape[-1]:
        return None
    index = np.moveaxis(found.index[..., list(ranks)], -1, axis - 1)
    shape = (*x.shape[:axis], len(ranks), *x.shape[axis + 1 :])
    picked = replace(found, index=index, weight=np.ones(index.shape))
    return Value(node.proto.output[0], shape, rows=True, chain=x.chain).with_coordinates(picked)


def top_k(node: Node) -> list[Value]:
    """TopK: values are the first entries of a sort (norm 1), indices jump."""
    x = node.input()
    axis = node.axes([int(node.attribute("axis", -1))], node.rank())[0]
    if not node.attribute("sorted", 1):
        raise NoBoundError("the order of its values is not defined", rows=x.rows and axis != 0)
    k = int(node.option("k", 1, [1])[0]) if node.opset >= 10 else int(node.attribute("k", 1))
    size = (x.shape or ())[axis]
    rows = x.rows and axis != 0
    values: Value | None = None
    if rows and isinstance(size, int) and k <= size:
        ranks = list(range(k)) if node.attribute("largest", 1) else list(range(size - 1, size - 1 - k, -1))
        values = pick_sorted(node, x, axis, ranks)
    names = list(node.proto.output)
    shape = None if x.shape is None else (*x.shape[:axis], k, *x.shape[axis + 1 :])
    if values is None:
        values = Value(names[0], shape, bound=x.bound, rows=rows, chain=x.chain)
    indices = [
        Value(name, shape, floating=False, bound=math.inf, causes=(f"{node.place}: an index jumps",), rows=rows) for name in names[1:]
    ]
    return [values, *indices]
