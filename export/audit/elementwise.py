"""Operators that act on each entry by itself: their largest slopes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from export.audit.node import Node
from export.audit.values import Array, Coordinates, Dim, NoBoundError, Shape, Value, hypotenuse, plus, root, times

SELU = (1.0507010221481323, 1.6732631921768188)

SLOPES: dict[str, Callable[[Node], float]] = {
    "Abs": lambda node: 1.0,
    "Atan": lambda node: 1.0,
    "Asinh": lambda node: 1.0,
    "Celu": lambda node: 1.0 if node.attribute("alpha", 1.0) > 0 else math.inf,
    "Clip": lambda node: 1.0,  # its limits are constants, or the rule refuses it
    "Cos": lambda node: 1.0,
    "Elu": lambda node: max(1.0, abs(node.attribute("alpha", 1.0))),
    "Erf": lambda node: 1.1283791670955128,  # 2 / sqrt(pi) = 1.12837916709551257...
    "Gelu": lambda node: {b"none": 1.12891, b"tanh": 1.1292}.get(node.attribute("approximate", b"none"), math.inf),
    "HardSigmoid": lambda node: abs(node.attribute("alpha", 0.2)),
    "HardSwish": lambda node: 1.5,
    "LeakyRelu": lambda node: max(1.0, abs(node.attribute("alpha", 0.01))),
    "Mish": lambda node: 1.0885,
    "Neg": lambda node: 1.0,
    "PRelu": lambda node: max(1.0, float(np.abs(node.constant(1)).max(initial=0.0))),
    "Relu": lambda node: 1.0,
    "Selu": lambda node: times(abs(node.attribute("gamma", SELU[0])), max(1.0, abs(node.attribute("alpha", SELU[1])))),
    "Shrink": lambda node: 1.0 if node.attribute("bias", 0.0) == node.attribute("lambd", 0.5) >= 0 else math.inf,  # else it jumps
    "Sigmoid": lambda node: 0.25,
    "Sin": lambda node: 1.0,
    "Softplus": lambda node: 1.0,
    "Softsign": lambda node: 1.0,
    "Swish": lambda node: 1.09984,  # the slope of z sigmoid(z) at z = alpha x: alpha cancels
    "Tanh": lambda node: 1.0,
    "ThresholdedRelu": lambda node: 1.0 if node.attribute("alpha", 1.0) == 0 else math.inf,  # else it jumps
}

JUMPS = frozenset(
    {
        "Ceil",
        "Floor",
        "Round",
        "Sign",
        "Not",
        "IsNaN",
        "IsInf",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Tan",
    }
)
"""Entrywise operators without a bound: they keep rows apart and end every certificate."""
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Pow", "Mod"})
"""The same with several inputs, which are broadcast."""


def slope(node: Node) -> Value:
    """Entrywise: the bound grows by the largest slope."""
    x = node.input()
    for value in node.inputs[1:]:
        if value is not None and value.constant is None:
            raise NoBoundError(f"its input {value.name!r} is not a constant", rows=False)
    if node.op == "PRelu" and not stays(x.shape, node.input(1).shape):
        raise NoBoundError("its slopes are broadcast over rows or widen the input")
    factor = SLOPES[node.op](node)
    if not math.isfinite(factor):
        raise NoBoundError("its attributes give no bounded slope", rows=True)
    return entrywise(node, x, factor)


def entrywise(node: Node, x: Value, factor: float | Array) -> Value:
    """Return ``f_e(x_e)`` with slopes at most ``factor`` (one number, or one per entry of a row)."""
    name = node.proto.output[0]
    largest = float(np.max(factor, initial=0.0))
    result = Value(name, x.shape, bound=times(x.bound, largest), rows=x.rows, chain=x.chain)
    if x.coordinates is None or not x.coordinates.distinct():
        return result
    old = x.coordinates
    weight = np.broadcast_to(np.asarray(factor, dtype=np.float64), old.weight.shape) * old.weight
    weight = np.where((old.weight == 1) | (np.asarray(factor) == 1), weight, np.nextafter(weight, np.inf))
    return result_with(result, Coordinates(old.origin, old.bound, old.index, weight, through=name))


def result_with(value: Value, coordinates: Coordinates) -> Value:
    """Return ``value`` with ``coordinates`` and the smaller of both bounds."""
    return replace(value, coordinates=coordinates, bound=min(value.bound, coordinates.lipschitz()))


def scale(node: Node) -> Value:
    """Mul and Div by a constant; of two activations only where both are bounded."""
    a, b = node.input(0), node.input(1)
    x, c = (a, b) if b.constant is not None else (b, a)
    if c.constant is None or (node.op == "Div" and b.constant is None):
        return gated(node, a, b)
    magnitude = np.abs(c.constant.astype(np.float64))
    if node.op == "Div":
        if not magnitude.all():
            raise NoBoundError("it divides by zero", rows=rows_of(a, b))
        magnitude = np.nextafter(1 / magnitude, np.inf)
        magnitude = np.where(np.abs(c.constant) == 1, 1.0, magnitude)
    if stays(x.shape, c.shape):
        per_row = magnitude.reshape(magnitude.shape[1:]) if x.shape and magnitude.ndim == len(x.shape) else magnitude
        return entrywise(node, x, per_row)
    shape = broadcast(x.shape, c.shape)
    bound = times(copied(x, shape), float(magnitude.max(initial=0.0)))
    return Value(node.proto.output[0], shape, bound=bound, rows=rows_of(x, c), chain=x.chain)


def gated(node: Node, a: Value, b: Value) -> Value:
    """Return a product, or quotient, of two activations: ``sup|a| L_b + sup|b| L_a``, where these are finite.

    Raises:
        NoBoundError: an activation is not bounded, or the divisor may be 0.
    """
    rows = rows_of(a, b)
    largest = b.magnitude
    if node.op == "Div":
        least = max(b.range[0], -b.range[1])
        if least <= 0:
            raise NoBoundError("it divides by a tensor that depends on the input and may come near 0", rows=rows)
        largest = math.nextafter(1 / least, math.inf)
    if not (b.fixed or math.isfinite(a.magnitude)) or not (a.fixed or math.isfinite(largest)):
        raise NoBoundError("it combines two tensors that both depend on the input, and have no limits", rows=rows)
    shape = broadcast(a.shape, b.shape)
    steepest = times(a.magnitude, times(largest, largest) if node.op == "Div" else 1.0)
    parts = times(largest, copied(a, shape)), times(steepest, copied(b, shape))
    apart = rows and a.shape == b.shape and not a.fixed and not b.fixed and math.isfinite(disjoint([a, b]))
    bound = hypotenuse(parts) if apart else plus(*parts)
    return Value(node.proto.output[0], shape, bound=bound, rows=rows, chain=False)


def add(node: Node) -> Value:
    """Add, Sub, Sum and Mean: constants change nothing but the size, activations add up."""
    values = [node.input(place) for place in range(len(node.inputs))]
    moving = [value for value in values if not value.fixed or value.constant is None]
    name = node.proto.output[0]
    rows = rows_of(*values)
    if len(moving) == 1 and all(stays(moving[0].shape, value.shape) for value in values if value is not moving[0]) and node.op != "Mean":
        return entrywise(node, moving[0], 1.0)
    shape: Shape | None = values[0].shape
    for value in values[1:]:
        shape = broadcast(shape, value.shape)
    total = 0.0
    for value in values:
        total = plus(total, copied(value, shape))
    if rows and len(moving) == len(values):
        total = min(total, disjoint(moving))
    total = times(total, math.nextafter(1 / len(values), 1.0)) if node.op == "Mean" else total
    return Value(name, shape, bound=total, rows=rows, chain=sum(not v.fixed for v in values) < 2 and all(v.chain for v in values))


def disjoint(values: Sequence[Value]) -> float:
    """Return the bound of a sum of pieces of one tensor that share no entry: weights add up in squares; else infinite."""
    traced = [value.traced() for value in values]
    pieces = [piece for piece in traced if piece is not None]
    same = len({piece.origin for piece in pieces}) == 1 and len({piece.index.shape for piece in pieces}) == 1
    if len(pieces) != len(values) or not same:
        return math.inf
    index, weight = np.stack([piece.index for piece in pieces]), np.stack([piece.weight for piece in pieces])
    if len(np.unique(index)) != index.size:
        return math.inf
    squares = float(np.square(weight).sum(axis=0).max(initial=0.0))
    return times(pieces[0].bound, root(squares if (weight == 1).all() else squares * (1 + 2.0**-50 * (len(values) + 4))))


def rows_of(*values: Value) -> bool:
    """Say whether an entrywise operator of ``values``, broadcast, keeps rows apart and treats them alike."""
    moving = [value for value in values if value.constant is None]
    ranks = {len(value.shape) for value in moving if value.shape is not None}
    if not moving or len(ranks) != 1 or any(value.shape is None or not value.rows for value in moving):
        return False
    rank = ranks.pop()
    leading = {value.shape[0] for value in moving if value.shape}
    constants = [value.constant for value in values if value.constant is not None]
    return len(leading) == 1 and all(c.ndim < rank or (c.ndim == rank and c.shape[0] == 1) for c in constants)


def stays(x: Shape | None, other: Shape | None) -> bool:
    """Say whether broadcasting with ``other`` is proved to leave the shape ``x`` as it is, and to treat its rows alike."""
    if other is not None and all(d == 1 for d in other) and x is not None and len(other) <= len(x):
        return True
    if x is None or other is None or len(other) > len(x) or not x:
        return False
    if len(other) == len(x) and other[0] != 1:
        return False
    pairs: Sequence[tuple[Dim, Dim]] = list(zip(reversed(x), reversed(other), strict=False))
    return all(d in (1, n) for n, d in pairs)


def broadcast(a: Shape | None, b: Shape | None) -> Shape:
    """Return the common shape.

    Raises:
        NoBoundError: a size is not known, so a copy may hide in it.
    """
    if a is None or b is None:
        raise NoBoundError("a shape is not known, so a broadcast may hide in it")
    rank = max(len(a), len(b))
    left, right = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    for m, n in zip(left, right, strict=True):
        if m != n and 1 not in (m, n):
            raise NoBoundError(f"sizes {m} and {n} may be broadcast")
    return tuple(n if m == 1 else m for m, n in zip(left, right, strict=True))


def copied(value: Value, shape: Shape | None) -> float:
    """Return the bound of ``value`` broadcast to ``shape``.

    Raises:
        NoBoundError: it is copied along an axis of unknown size.
    """
    if value.fixed:
        return 0.0
    if value.shape is None or shape is None:
        raise NoBoundError("a shape is not known, so a broadcast may hide in it")
    copies = 1
    for m, n in zip((1,) * (len(shape) - len(value.shape)) + value.shape, shape, strict=True):
        if m != n and isinstance(n, str):
            raise NoBoundError(f"it is broadcast over an axis of unknown size {n!r}")
        copies *= n if m != n and isinstance(n, int) else 1
    return times(value.bound, root(float(copies)))
