"""Operators that move or choose entries."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from export.audit.elementwise import broadcast, copied, entrywise, rows_of, stays
from export.audit.linear import measure_matrix
from export.audit.node import Node
from export.audit.values import MOST_COORDINATES, Coordinates, Dim, NoBoundError, Shape, Value, hypotenuse, root, times


def move(node: Node) -> list[Value]:
    """Entries are moved or left out; a Gather may repeat them, and counts the root of the most repeats.

    Where rows are kept, the operator is run on the numbers of the entries, so that later operators know where each came from.
    """
    x = node.input()
    if node.op == "Gather" and x.constant is not None and x.constant.ndim == 2 and x.floating:
        measure_matrix(node, x.constant, transposed=True, kind="embedding")
    if node.op == "Reshape" and node.input(1).constant is None:
        return [elsewhere(node, x)]
    rows = x.rows and KEEPS_ROWS[node.op](node, x)
    repeats = gather_repeats(node) if node.op == "Gather" else 1
    source = x.traced() if rows else None
    if source is not None and x.shape is not None:
        places = np.arange(source.index.size, dtype=np.int64).reshape((1, *source.index.shape))
        target = {1: np.array([1, *node.constant(1).ravel()[1:]])} if node.op == "Reshape" else {}
        moved = node.run({0: places, **target})
        parts = [replace(source, index=source.index.ravel()[m[0]], weight=source.weight.ravel()[m[0]]) for m in moved]
        return [
            replace(x, name=name, shape=(x.shape[0], *part.index.shape)).with_coordinates(part)
            for name, part in zip(node.proto.output, parts, strict=True)
        ]
    bound = times(x.bound, root(float(repeats)))
    return [
        replace(x, name=name, shape=moved_shape(node, x, place), bound=bound, rows=rows, coordinates=None)
        for place, name in enumerate(node.proto.output)
    ]


def elsewhere(node: Node, x: Value) -> Value:
    """Return a tensor in another shape that is only partly known: the same numbers."""
    target = node.input(1)
    if not target.fixed:
        raise NoBoundError("its shape depends on the input")
    whole = target.sizes is not None and all(isinstance(d, str) or d > 0 for d in target.sizes)
    return Value(node.proto.output[0], target.sizes if whole else None, bound=x.bound, chain=x.chain)


def identity(node: Node) -> list[Value]:
    """Identity, and Dropout outside training."""
    if node.op == "Dropout" and node.present(2) and bool(node.constant(2).any()):
        raise NoBoundError("it is in training mode", rows=True)
    if node.op == "Dropout" and node.opset < 7:
        raise NoBoundError(f"opset {node.opset} is too old to tell whether it is in training mode")
    x = node.input()
    mask = [Value(name, x.shape, floating=False, rows=x.rows) for name in node.proto.output[1:]]
    return [replace(x, name=node.proto.output[0], coordinates=x.traced() if x.rows else None), *mask]


def reshape_keeps_rows(node: Node, x: Value) -> bool:
    """A reshape keeps rows where its leading size is the batch and the others multiply to the size of one row."""
    row = x.row_size()
    if node.op == "Flatten":
        axis, rank = int(node.attribute("axis", 1)), len(x.shape or ())
        return (axis + rank if axis < 0 else axis) == 1
    target = [int(d) for d in node.constant(1).ravel()]
    if row is None or not target or x.shape is None:
        return False
    zero_copies = not node.attribute("allowzero", 0)
    rest: list[Dim] = [x.shape[i] if d == 0 and zero_copies and i < len(x.shape) else d for i, d in enumerate(target) if i]
    known = [d for d in rest if isinstance(d, int) and d > 0]
    size, product = int(np.prod(row, dtype=np.int64)), int(np.prod(known, dtype=np.int64))
    free = len(rest) - len(known)
    lead = target[0]
    if lead == -1 or (lead > 0 and lead == x.shape[0]):
        return free == 0 and product == size
    return (
        lead == 0
        and zero_copies
        and ((free == 0 and product == size) or (free == 1 and -1 in rest and product > 0 and size % product == 0))
    )


def axes_keep_rows(node: Node, x: Value) -> bool:
    """Squeeze and Unsqueeze keep rows where they name axes other than the first."""
    axes = node.option("axes", 1, None)
    if axes is None or x.shape is None:
        return False
    rank = len(x.shape) + (len(axes) if node.op == "Unsqueeze" else 0)
    return 0 not in node.axes([int(a) for a in axes], rank)


def slice_keeps_rows(node: Node, x: Value) -> bool:
    """A slice keeps rows where it does not touch axis 0."""
    starts = node.option("starts", 1, [])
    axes = node.option("axes", 3, list(range(len(starts))))
    return 0 not in node.axes([int(a) for a in axes], node.rank())


def axis_keeps_rows(default: int) -> Callable[[Node, Value], bool]:
    """Return the rule of an operator that acts along one axis."""
    return lambda node, x: node.axes([int(node.attribute("axis", default))], node.rank())[0] != 0


def transpose_keeps_rows(node: Node, x: Value) -> bool:
    """A transposition keeps rows where axis 0 stays first."""
    permutation = node.attribute("perm", None)
    return bool(permutation) and permutation[0] == 0


KEEPS_ROWS: dict[str, Callable[[Node, Value], bool]] = {
    "Compress": lambda node, x: "axis" in node.attributes and axis_keeps_rows(0)(node, x),
    "DepthToSpace": lambda node, x: True,
    "Flatten": reshape_keeps_rows,
    "Gather": axis_keeps_rows(0),
    "Reshape": reshape_keeps_rows,
    "Slice": slice_keeps_rows,
    "SpaceToDepth": lambda node, x: True,
    "Split": axis_keeps_rows(0),
    "Squeeze": axes_keep_rows,
    "Transpose": transpose_keeps_rows,
    "Unsqueeze": axes_keep_rows,
}


def gather_repeats(node: Node) -> int:
    """Return how often the index names the place that it names most often; negative places count from the end."""
    if node.input(1).fixed and node.input(1).constant is None:
        known = node.input(1).shape
        if known is None or not all(isinstance(d, int) for d in known):
            raise NoBoundError("it may name one place an unknown number of times", rows=False)
        return math.prod(int(d) for d in known)
    index = node.constant(1).astype(np.int64).ravel()
    axis = node.axes([int(node.attribute("axis", 0))], node.rank())[0]
    size = (node.input().shape or ())[axis]
    if not index.size:
        return 1
    if isinstance(size, int):
        index = np.where(index < 0, index + size, index)
        return int(np.unique(index, return_counts=True)[1].max())
    signs = [index[index < 0], index[index >= 0]]  # of unknown size, a negative place may be any of the others
    return sum(int(np.unique(part, return_counts=True)[1].max()) for part in signs if part.size)


def moved_shape(node: Node, x: Value, place: int) -> Shape | None:
    """Return the shape after a move of a tensor whose rows are not proved: only where every size is known."""
    if x.shape is None or not all(isinstance(d, int) for d in x.shape) or np.prod([int(d) for d in x.shape], dtype=float) > 2**24:
        return None
    if any(value is not None and value.constant is None for value in node.inputs[1:]):
        return None
    return tuple(node.run({0: np.zeros([int(d) for d in x.shape], dtype=np.float32)})[place].shape)


def pick(node: Node) -> Value:
    """GatherND and GatherElements: as often as the constant index names one entry, counted on the places themselves."""
    x = node.input()
    if x.shape is None or not all(isinstance(d, int) for d in x.shape) or math.prod(int(d) for d in x.shape) > MOST_COORDINATES:
        raise NoBoundError("how often it names one entry is not known, because the size of its input is not")
    shape = [int(d) for d in x.shape]
    places = node.run({0: np.arange(math.prod(shape), dtype=np.int64).reshape(shape)})[0]
    repeats = int(np.bincount(places.ravel()).max(initial=0))
    return Value(node.proto.output[0], tuple(places.shape), bound=times(x.bound, root(float(repeats))), chain=x.chain)


def scatter(node: Node) -> Value:
    """ScatterND and ScatterElements at fixed places, without reduction: each entry comes from the data or from the updates."""
    data, index, updates = node.input(0), node.input(1), node.input(2)
    if node.attribute("reduction", b"none") != b"none" or not index.fixed:
        raise NoBoundError("it adds up entries, or its places depend on the input")
    chain = (data.fixed or updates.fixed) and data.chain and updates.chain
    return Value(node.proto.output[0], data.shape, bound=hypotenuse([data.bound, updates.bound]), chain=chain)


def mask(node: Node) -> Value:
    """Trilu: entries are kept or become 0."""
    x = node.input()
    if node.present(1):
        node.constant(1)
    return Value(node.proto.output[0], x.shape, bound=x.bound, rows=x.rows and node.rank() >= 3, chain=x.chain)


def permute(node: Node) -> Value:
    """ReverseSequence: a permutation, other for each place in the batch."""
    if not node.input(1).fixed:
        raise NoBoundError("its lengths depend on the input")
    x = node.input()
    return Value(node.proto.output[0], x.shape, bound=x.bound, chain=x.chain)


def choose(node: Node) -> Value:
    """Where with a condition that does not depend on the input: each entry comes from one of two tensors."""
    condition, a, b = node.input(0), node.input(1), node.input(2)
    rows = rows_of(*node_values(node))
    if not condition.fixed:
        raise NoBoundError("its condition depends on the input", rows=rows)
    moving = [value for value in (a, b) if value.constant is None]
    others = [value for value in (condition, a, b) if not moving or value is not moving[0]]
    if len(moving) == 1 and condition.constant is not None and all(stays(moving[0].shape, value.shape) for value in others):
        return entrywise(node, moving[0], 1.0)
    shape = broadcast(broadcast(condition.shape, a.shape), b.shape)
    bound = hypotenuse([copied(a, shape), copied(b, shape)])
    return Value(node.proto.output[0], shape, bound=bound, rows=rows, chain=(a.fixed or b.fixed) and a.chain and b.chain)


def node_values(node: Node) -> list[Value]:
    """Return the inputs that are there."""
    return [value for value in node.inputs if value is not None]


def concat(node: Node) -> Value:
    """Concat: parts that come from one tensor count by the entries they share, others add up in squares."""
    parts = [node.input(place) for place in range(len(node.inputs))]
    rank = node.rank()
    axis = node.axes([int(node.attribute("axis", 1))], rank)[0]
    leading = {part.shape[0] for part in parts if part.shape}
    rows = axis != 0 and len(leading) == 1 and all(part.rows and part.constant is None for part in parts)
    shape = concat_shape(parts, axis)
    name = node.proto.output[0]
    traced = [part.traced() for part in parts]
    known = [t for t in traced if t is not None]
    if rows and axis > 0 and len(known) == len(parts) and len({t.origin for t in known}) == 1:
        index = np.concatenate([t.index for t in known], axis=axis - 1)
        weight = np.concatenate([t.weight for t in known], axis=axis - 1)
        through = {t.through for t in known}
        joined = Coordinates(known[0].origin, known[0].bound, index, weight, through.pop() if len(through) == 1 else name)
        result = Value(name, shape, rows=True, chain=all(part.chain for part in parts)).with_coordinates(joined)
        # entries that are different functions of one entry of the origin could not be told apart later
        return result if joined.distinct() or joined.through == "" else replace(result, coordinates=None)
    chain = sum(not part.fixed for part in parts) < 2 and all(part.chain for part in parts)
    return Value(name, shape, bound=hypotenuse([part.bound for part in parts]), rows=rows, chain=chain)


def concat_shape(parts: Sequence[Value], axis: int) -> Shape | None:
    """Return the shape of the parts put together."""
    shapes = [part.shape for part in parts]
    first = shapes[0]
    sizes = [shape[axis] for shape in shapes if shape is not None]
    if first is None or len(sizes) != len(parts):
        return None
    total: Dim = sum(int(d) for d in sizes) if all(isinstance(d, int) for d in sizes) else "+".join(map(str, sizes))
    return (*first[:axis], total, *first[axis + 1 :])
