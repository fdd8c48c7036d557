"""What each operator does to the expressions of `relations`: linear ones, and functions of single numbers with their slopes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from export.audit import linear
from export.audit.elementwise import stays
from export.audit.moving import KEEPS_ROWS
from export.audit.node import Node
from export.audit.relations import MOST_ENTRIES, WIDEST, Expression, Real, Relations, norm, scaled
from export.audit.report import AuditError
from export.audit.values import NoBoundError, Value
from specnorm_core.convolution import geometry_of
from specnorm_core.convolution_bounds import dense
from specnorm_core.roundoff import UNIT


def follow(relations: Relations, node: Node, results: Sequence[Value]) -> None:
    """Add the expressions of what ``node`` gives, where it has a rule here and everything is known."""
    rule = FOLLOWED.get(node.op)
    given = [value for value in node.inputs if value is not None and value.constant is None]
    for value in results:
        relations.held.pop(value.name, None)  # two branches may give one name to two tensors
    if rule is None or relations.entries > MOST_ENTRIES or not given or not results:
        return
    if not all(value.rows and value.bound < np.inf for value in (*given, results[0])):
        return
    try:
        found = rule(relations, node)
    except (AuditError, MemoryError):
        raise
    except Exception:  # whatever it was: then nothing is known here, and the walk has a bound without
        return
    for value, expression in zip(results, found, strict=False):
        if expression is not None and value.row_size() == expression.shape and value.bound > 0:
            relations.held[value.name] = expression
            relations.entries += expression.entries


Found = Sequence[Expression | None]


def moved(relations: Relations, node: Node) -> Found:
    """Operators that move entries: the matrices' rows move the same way."""
    x, held = node.input(), relations.expression(node.input())
    if held is None or not KEEPS_ROWS[node.op](node, x):
        return ()
    places = np.arange(np.prod(held.shape), dtype=np.int64).reshape((1, *held.shape))
    target = {1: np.array([1, *node.constant(1).ravel()[1:]])} if node.op == "Reshape" else {}
    return [held.select(np.asarray(index[0], dtype=np.int64)) for index in node.run({0: places, **target})]


def same(relations: Relations, node: Node) -> Found:
    """Identity, Dropout."""
    return [relations.expression(node.input())]


def affine(relations: Relations, node: Node) -> Found:
    """Gemm and MatMul with a constant matrix behind, and nothing added that moves."""
    held, weight = relations.expression(node.input()), node.constant(1).astype(np.float64)
    if (
        held is None
        or weight.ndim != 2
        or len(held.shape) != 1
        or node.attribute("transA", 0)
        or (node.present(2) and not node.constant(2).size)
    ):
        return ()
    alpha = float(node.attribute("alpha", 1.0))
    matrix = weight if node.attribute("transB", 0) else weight.T
    off = 0.0 if alpha == 1 else UNIT * 2 * abs(alpha) * float(np.linalg.norm(weight))
    return [held.behind(alpha * matrix, (matrix.shape[0],), off)]


def convolved(relations: Relations, node: Node) -> Found:
    """Conv on an image of known, small size."""
    held, kernel = relations.expression(node.input()), node.constant(1).astype(np.float64)
    shape = linear.convolved_shape(node)[1:]
    strides, dilations, pads = linear.options(node, kernel.ndim - 2)
    if held is None or pads is None or len(held.shape) != kernel.ndim - 1 or not all(isinstance(d, int) for d in shape):
        return ()
    sizes, groups = tuple(int(d) for d in shape), int(node.attribute("group", 1))
    if not 0 < np.prod(sizes) <= WIDEST or held.shape[0] != kernel.shape[1] * groups:
        return ()
    if node.present(2):
        node.constant(2)
    geometry = geometry_of(kernel, stride=strides, padding=pads, dilation=dilations, groups=groups, mode="zeros", size=held.shape[1:])
    blocks = dense(kernel, geometry, held.shape[1:])
    return [held.behind(sparse.block_diag([sparse.csr_array(block) for block in blocks]), sizes)]


def normalised(relations: Relations, node: Node) -> Found:
    """BatchNormalization outside training, as the rule of the walk has checked it: one factor per channel."""
    held = relations.expression(node.input())
    if held is None:
        return ()
    variance = node.constant(4).astype(np.float64) + float(node.attribute("epsilon", 1e-5))
    factor = node.constant(1).astype(np.float64) / np.sqrt(variance)
    per_entry = np.broadcast_to(factor.reshape(-1, *[1] * (len(held.shape) - 1)), held.shape).ravel()
    return [scaled(held, per_entry, 8 * UNIT * float(np.abs(factor).max()))]


def multiplied(relations: Relations, node: Node) -> Found:
    """Mul and Div by a constant that does not widen the row."""
    place = 0 if node.input(0).constant is None else 1
    x, constant = node.input(place), node.constant(1 - place).astype(np.float64)
    held = relations.expression(x)
    if held is None or not stays(x.shape, constant.shape) or (node.op == "Div" and (place == 1 or not constant.all())):
        return ()
    row = constant[0] if constant.ndim == len(held.shape) + 1 else constant
    factor = np.broadcast_to(1 / row if node.op == "Div" else row, held.shape).ravel()
    return [scaled(held, factor, 2 * UNIT * float(np.abs(factor).max()) if node.op == "Div" else 0.0)]


def added(relations: Relations, node: Node) -> Found:
    """Add, Sub and Sum: constants fall out, rows of one system and one shape add up."""
    values = [node.input(place) for place in range(len(node.inputs))]
    moving = [(place, value) for place, value in enumerate(values) if value.constant is None]
    shape = moving[0][1].shape
    if not all(value.shape == shape if value.constant is None else stays(shape, value.shape) for value in values):
        return ()
    total: Expression | None = None
    for place, value in moving:
        held = relations.expression(value)
        sign = -1.0 if node.op == "Sub" and place == 1 else 1.0
        if held is None or (total is not None and held.system is not total.system):
            return ()
        total = scaled(held, np.full(int(np.prod(held.shape)), sign)) if total is None else total.plus(held, sign)
    return [total]


def joined(relations: Relations, node: Node) -> Found:
    """Concat along an axis other than the batch: places are joined, and the matrices below one another."""
    parts = [relations.expression(node.input(place)) for place in range(len(node.inputs))]
    axis = node.axes([int(node.attribute("axis", 1))], node.rank())[0]
    held = [part for part in parts if part is not None]
    if axis == 0 or len(held) != len(parts) or any(part.system is not held[0].system for part in held):
        return ()
    ends = np.cumsum([0] + [int(np.prod(part.shape)) for part in held])
    places = [np.arange(a, b).reshape(part.shape) for a, b, part in zip(ends, ends[1:], held, strict=False)]
    order = np.concatenate(places, axis=axis - 1)
    stacked: dict[int, Any] = {}
    for i in sorted({i for part in held for i in part.parts}):
        width = held[0].system.sizes[i]
        rows = [part.parts.get(i, sparse.csr_array((int(np.prod(part.shape)), width))) for part in held]
        stacked[i] = sparse.csr_array(sparse.vstack(rows))
    errors = {i: sum(part.errors.get(i, 0.0) for part in held) * (1 + 2.0**-40) for i in stacked}
    whole = Expression(held[0].system, (int(ends[-1]),), stacked, errors)
    return [whole.select(order)]


def bent(relations: Relations, node: Node) -> Found:
    """An entrywise function of `SLOPES`."""
    x = node.input()
    low, high = SLOPES[node.op](node)
    return [relations.apply(relations.expression(x), low, high, x.bound)]


def chosen(relations: Relations, node: Node) -> Found:
    """Max and Min of two rows of one system; the two share one variable."""
    if len(node.inputs) != 2 or any(value is None or value.constant is not None for value in node.inputs):
        return ()
    a, b = sorted((node.input(0), node.input(1)), key=lambda value: value.name)
    u, v = relations.expression(a), relations.expression(b)
    if u is None or v is None or u.system is not v.system or a.shape != b.shape:
        return ()
    return [extreme(relations, u, v, max(a.bound, b.bound), (u, v), largest=node.op == "Max")]


def extreme(relations: Relations, u: Expression, v: Expression, guess: float, key: tuple[Any, ...], *, largest: bool) -> Expression | None:
    """Return ``max(u, v)`` or ``min(u, v)``."""
    bent = relations.apply(u.plus(v, -1.0), 0.0, 1.0, guess, key)
    if bent is None:
        return None
    return v.plus(bent) if largest else u.plus(bent, -1.0)


def reduced(relations: Relations, node: Node) -> Found:
    """ReduceMax and ReduceMin over an axis of two; sums and means over any."""
    x, held = node.input(), relations.expression(node.input())
    axes = node.axes([int(a) for a in node.option("axes", 1, None) or ()], node.rank())
    if held is None or not axes or 0 in axes:
        return ()
    kept = tuple(d for i, d in enumerate(held.shape, start=1) if i not in axes)
    shape = tuple(1 if i in axes else d for i, d in enumerate(held.shape, start=1)) if node.attribute("keepdims", 1) else kept
    places = np.moveaxis(np.arange(np.prod(held.shape)).reshape(held.shape), [a - 1 for a in axes], range(len(axes)))
    groups = places.reshape(-1, int(np.prod(kept)))
    if node.op in {"ReduceMax", "ReduceMin"}:
        if len(groups) != 2:
            return ()
        u, v = (held.select(group.reshape(shape)) for group in groups)
        return [extreme(relations, u, v, x.bound, (held, *axes), largest=node.op == "ReduceMax")]
    return [summed(held, groups, shape, mean=node.op == "ReduceMean")]


def pooled(relations: Relations, node: Node) -> Found:
    """GlobalAveragePool."""
    held = relations.expression(node.input())
    if held is None:
        return ()
    groups = np.arange(np.prod(held.shape)).reshape(held.shape[0], -1).T
    return [summed(held, groups, (held.shape[0], *[1] * (len(held.shape) - 1)), mean=True)]


def summed(x: Expression, groups: NDArray[np.int64], shape: tuple[int, ...], *, mean: bool) -> Expression:
    """Return the sums, or means, over the first axis of the places in ``groups``."""
    count, kept = groups.shape
    weight = 1 / count if mean else 1.0
    rows = np.broadcast_to(np.arange(kept), groups.shape)
    matrix = sparse.csr_array((np.full(groups.size, weight), (rows.ravel(), groups.ravel())), shape=(kept, int(np.prod(x.shape))))
    return x.behind(matrix, shape, UNIT * norm(matrix) if mean else 0.0)


def slopes(low: float, high: float) -> Callable[[Node], tuple[Real | float, Real | float]]:
    """Return the rule of a function whose slopes do not depend on its attributes."""
    return lambda node: (low, high)


def leaky(node: Node) -> tuple[Real | float, Real | float]:
    """LeakyRelu and PRelu: 1 on one side, the given slope on the other."""
    if node.op == "LeakyRelu":
        slope: Any = float(node.attribute("alpha", 0.01))
    else:
        slope = node.constant(1).astype(np.float64)
        slope = slope[0] if slope.ndim == node.rank() else slope
    return np.minimum(slope, 1.0), np.maximum(slope, 1.0)


def positive(name: str, default: float, least: float) -> Callable[[Node], tuple[Real | float, Real | float]]:
    """Return the rule of a rising function whose largest slope is ``max(least, attribute)``."""

    def rule(node: Node) -> tuple[Real | float, Real | float]:
        slope = float(node.attribute(name, default))
        if slope < 0:
            raise NoBoundError("its slope falls")
        return 0.0, max(least, slope)

    return rule


SLOPES: dict[str, Callable[[Node], tuple[Real | float, Real | float]]] = {
    **dict.fromkeys(["Relu", "Tanh", "Softplus", "Softsign", "Atan", "Asinh"], slopes(0.0, 1.0)),
    "Abs": slopes(-1.0, 1.0),
    "Elu": positive("alpha", 1.0, 1.0),
    "Erf": slopes(0.0, 1.1283791670955128),
    "HardSigmoid": positive("alpha", 0.2, 0.0),
    "HardSwish": slopes(-0.5, 1.5),
    "LeakyRelu": leaky,
    "PRelu": leaky,
    "Sigmoid": slopes(0.0, 0.25),
}
"""Least and largest slope."""

FOLLOWED: dict[str, Callable[[Relations, Node], Found]] = {
    **dict.fromkeys(sorted(KEEPS_ROWS), moved),
    **dict.fromkeys(sorted(SLOPES), bent),
    **dict.fromkeys(["Add", "Sub", "Sum"], added),
    **dict.fromkeys(["Gemm", "MatMul"], affine),
    **dict.fromkeys(["Identity", "Dropout"], same),
    **dict.fromkeys(["Max", "Min"], chosen),
    **dict.fromkeys(["Mul", "Div"], multiplied),
    **dict.fromkeys(["ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum"], reduced),
    "BatchNormalization": normalised,
    "Concat": joined,
    "Conv": convolved,
    "GlobalAveragePool": pooled,
}
