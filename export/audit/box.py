"""Bounds on a box of inputs: between which limits each channel lies, layer by layer, and what a layer is then worth.

On a convex set a function moves by no more than its largest slope there. So a unit that is never active within the box adds nothing, one
that always is, is linear, and what has no slope bound on the whole space may have one here. A channel is a place on axis 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from export.audit import entries, formulas, intervals
from export.audit.elementwise import SLOPES, entrywise
from export.audit.formulas import Term, constant
from export.audit.intervals import Interval
from export.audit.linear import options
from export.audit.node import Node
from export.audit.normalising import through
from export.audit.reducing import reduced_axes
from export.audit.report import AuditError
from export.audit.values import Array, NoBoundError, Value, times
from specnorm_core.bounds import up
from specnorm_core.roundoff import TINY, gamma

Box = Mapping[str, Sequence[tuple[float, float]]]
"""By input: one pair of limits, or one per channel."""


def boxed(value: Value, pairs: Sequence[tuple[float, float]]) -> Value:
    """Return an input of the graph with the limits that it is said to lie in.

    Raises:
        AuditError: the limits are none, or do not fit the channels.
    """
    low, high = np.array(pairs, dtype=np.float64).T
    if not (np.isfinite(low) & np.isfinite(high) & (low <= high)).all():
        raise AuditError(f"the box of {value.name!r} needs finite limits, the lower first")
    channels = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
    if not value.floating or len(low) not in (1, channels):
        raise AuditError(f"the box of {value.name!r} has {len(low)} pairs of limits, and the input {channels or 'no'} channels")
    each = Interval(np.broadcast_to(low, channels), np.broadcast_to(high, channels)) if isinstance(channels, int) else None
    return replace(value, limits=(float(low.min()), float(high.max())), channels=each)


def narrowed(node: Node, value: Value) -> Value:
    """Return the first output of a node with the limits of its channels, and with the bound that follows from those of its input."""
    channels = attempted(lambda: CHANNELS[node.op](node) if node.op in CHANNELS else None)
    wide = attempted(lambda: SUMS[node.op](node) if node.op in SUMS else None)
    for found in (channels, wide):
        if found is not None and not (np.isnan(found.low).any() or np.isnan(found.high).any()):
            low, high = float(found.low.min()), float(found.high.max())
            value = replace(value, limits=(max(low, value.limits[0]), min(high, value.limits[1])))
    value = replace(value, channels=channels)
    return value if value.causes else softened(node, flattened(node, value))


def attempted(find: Callable[[], Interval | None]) -> Interval | None:
    """Return what was found, if anything."""
    try:
        return find()
    except (NoBoundError, ValueError, TypeError, IndexError):
        return None


def flattened(node: Node, value: Value) -> Value:
    """Return an activation with the bound that its slopes within the limits of each channel give, that of the layer before included."""
    x = node.inputs[0]
    if (
        node.op not in entries.TERMS
        or x is None
        or x.channels is None
        or sum(v is not None and v.constant is None for v in node.inputs) != 1
    ):
        return value
    try:
        terms = [Term("x") if v is x else constant(v.range[0]) for v in given(node) if v is x or single(v)]
        if len(terms) != len(given(node)):
            return value
        slopes = formulas.both(entries.TERMS[node.op](node, terms), x.channels)[1].largest()
    except (NoBoundError, ValueError):
        return value
    slopes = np.broadcast_to(slopes, x.channels.low.shape)
    if not np.isfinite(slopes).all() or x.shape is None:
        return value
    better = entrywise(node, x, slopes.reshape(-1, *[1] * (len(x.shape) - 2)))
    if better.bound < value.bound:
        value = replace(value, bound=better.bound, coordinates=better.coordinates)
    folded = times(*through(x.maker, slopes)) if x.maker is not None else math.inf
    return value if folded >= value.bound else replace(value, bound=folded, coordinates=None)


def softened(node: Node, value: Value) -> Value:
    """Return a Softmax with its bound where no probability ``p`` comes near 1/2: at most ``p``, and at most ``2 p (1 - p)``."""
    if node.op != "Softmax":
        return value
    x = node.input()
    spread = x.range[1] - x.range[0]
    size = (x.shape or (None,))[int(node.attribute("axis", -1))]
    if node.opset < 13 or not isinstance(size, int) or not math.isfinite(spread):
        return value
    most = 1 / (1 + (size - 1) * math.exp(-spread)) * (1 + 2.0**-40)
    factor = min(0.5, most, 2 * most * (1 - most) * (1 + 2.0**-40) if most < 0.5 else 0.5)
    return replace(value, bound=min(value.bound, times(x.bound, up(factor))))


def given(node: Node) -> list[Value]:
    """Return the inputs that are data."""
    return [value for value in node.inputs[: entries.DATA.get(node.op)] if value is not None]


def single(value: Value) -> bool:
    """Say whether it is one finite constant number."""
    return value.constant is not None and value.constant.size == 1 and bool(np.isfinite(value.constant).all())


def channels_of(value: Value, count: int) -> Interval:
    """Return the limits of each of ``count`` channels: its own, those of a constant, or those of all its entries.

    Raises:
        ValueError: it has another number of channels.
    """
    if value.channels is not None:
        return Interval(np.broadcast_to(value.channels.low, count), np.broadcast_to(value.channels.high, count))
    low, high = value.range
    return Interval(np.full(count, low), np.full(count, high))


def entrywise_channels(node: Node) -> Interval | None:
    """Return the limits of an entrywise operator of tensors of the same channels, and of constants."""
    values = given(node)
    shapes = [v.shape for v in values if v.constant is None]
    if any(shape is None or len(shape) < 2 or shape[1] != shapes[0][1] or len(shape) != len(shapes[0]) for shape in shapes if shapes[0]):
        return None
    if not shapes or shapes[0] is None or not isinstance(shapes[0][1], int):
        return None
    count, rank = shapes[0][1], len(shapes[0])
    variables = [Term("x", number=float(i + 1)) for i in range(len(values))]
    terms = [constant(v.range[0]) if single(v) else x for v, x in zip(values, variables, strict=True)]
    sides = [constant_channels(v, count, rank) if v.constant is not None else channels_of(v, count) for v in values]
    return spread(formulas.over(entries.TERMS[node.op](node, terms), sides), count)


def constant_channels(value: Value, count: int, rank: int) -> Interval:
    """Return the smallest and largest number of a constant for each channel of what it is broadcast with."""
    array = np.asarray(value.constant, dtype=np.float64)
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    others = tuple(axis for axis in range(rank) if axis != 1)
    return Interval(np.broadcast_to(array.min(axis=others), count), np.broadcast_to(array.max(axis=others), count))


def spread(found: Interval, count: int) -> Interval:
    """Return limits as one pair per channel."""
    return Interval(np.broadcast_to(found.low, count), np.broadcast_to(found.high, count))


def summed(weight: Array, x: Interval, bias: Array | float = 0.0) -> Interval:
    """Return the limits of ``weight x + bias``, rounded outwards: the middle, and what lies on both sides of it."""
    W = weight.astype(np.float64)
    with np.errstate(all="ignore"):  # no limit makes numbers that are none, and these no limit
        middle, half = x.low / 2 + x.high / 2, (x.high / 2 - x.low / 2) * (1 + 2.0**-50)
        size = np.abs(W) @ (np.abs(middle) + half) + np.abs(bias)
        slack = (gamma(W.shape[1] + 8) * size + W.shape[1] * TINY) * (1 + 2.0**-40)
        centre, reach = W @ middle + bias, np.abs(W) @ half
        return intervals.outward(centre - reach - slack, centre + reach + slack, 2.0**-50)


def gemm_channels(node: Node) -> Interval | None:
    """Return the limits of each unit of a Gemm with constants."""
    if node.attribute("transA", 0) or node.rank() != 2:
        return None
    weight = node.constant(1) if node.attribute("transB", 0) else node.constant(1).T
    bias = np.broadcast_to(node.constant(2).astype(np.float64).reshape(-1), len(weight)) if node.present(2) else 0.0
    alpha, beta = (Interval.of(float(node.attribute(name, 1.0))) for name in ("alpha", "beta"))
    return alpha * summed(weight, channels_of(node.input(), weight.shape[1])) + beta * Interval.of(bias)


def matmul_channels(node: Node) -> Interval | None:
    """Return the limits of each unit of a matrix with a constant on its right."""
    weight = node.constant(1)
    return summed(weight.T, channels_of(node.input(), len(weight))) if node.rank() == 2 and weight.ndim == 2 else None


def conv_channels(node: Node) -> Interval | None:
    """Return the limits of each channel of a Conv or ConvTranspose: every tap meets its channel, or nothing."""
    kernel, groups = node.constant(1), int(node.attribute("group", 1))
    taps, pads = math.prod(kernel.shape[2:]), options(node, kernel.ndim - 2)[2]
    if node.op == "Conv":
        flat = kernel.reshape(groups, len(kernel) // groups, -1)
    else:
        flat = kernel.reshape(groups, -1, kernel.shape[1], taps).swapaxes(1, 2).reshape(groups, kernel.shape[1], -1)
    x = channels_of(node.input(), groups * flat.shape[2] // taps)
    if node.op != "Conv" or pads is None or any(map(any, pads)):
        x = Interval(np.minimum(x.low, 0.0), np.maximum(x.high, 0.0))
    bias = node.constant(2).astype(np.float64) if node.present(2) else np.zeros(groups * flat.shape[1])
    parts = [
        summed(block, Interval(np.repeat(low, taps), np.repeat(high, taps)), b)
        for block, low, high, b in zip(flat, *(side.reshape(groups, -1) for side in (x.low, x.high, bias)), strict=True)
    ]
    return Interval(np.concatenate([part.low for part in parts]), np.concatenate([part.high for part in parts]))


def normalised_channels(node: Node) -> Interval | None:
    """Return the limits of each channel after BatchNormalization outside training."""
    gain, bias, mean, variance = (Interval.of(node.constant(place).astype(np.float64)) for place in (1, 2, 3, 4))
    root = intervals.square_root(variance + Interval.of(float(node.attribute("epsilon", 1e-5))))
    return (channels_of(node.input(), len(gain.low)) - mean) * gain * intervals.reciprocal(root) + bias


def kept_channels(node: Node) -> Interval | None:
    """Return the limits of the channels that go in: pixels are chosen, or averaged."""
    x = node.input().channels
    if x is None or any(d != 1 for d in node.attribute("dilations", [1])):
        return None
    return x if node.op != "AveragePool" else Interval(np.minimum(x.low, 0.0), np.maximum(x.high, 0.0))


def flat_channels(node: Node) -> Interval | None:
    """Return the limits of each entry of a row: those of its channel."""
    x = node.input()
    sizes = x.row_size()
    if x.channels is None or sizes is None or int(node.attribute("axis", 1)) != 1:
        return None
    pixels = math.prod(sizes[1:])
    return Interval(np.repeat(x.channels.low, pixels), np.repeat(x.channels.high, pixels))


def product_limits(node: Node) -> Interval | None:
    """Return the limits of a matrix product, of whatever axes: those of one product of two entries, as often as it adds them up."""
    a, b = node.input(0), node.input(1)
    size = (a.shape or (None,))[-1]
    if not isinstance(size, int):
        return None
    if b.constant is not None and b.constant.ndim == 2:
        return summed(b.constant.T, Interval(np.full(size, a.range[0]), np.full(size, a.range[1])))
    return Interval.of(float(size)) * (Interval.of(*a.range) * Interval.of(*b.range))


def sum_limits(node: Node) -> Interval | None:
    """Return the limits of a sum: those of an entry, as often as it adds them up."""
    sizes = [(node.input().shape or ())[axis] for axis in reduced_axes(node)]
    known = [d for d in sizes if isinstance(d, int)]
    return Interval.of(float(math.prod(known))) * Interval.of(*node.input().range) if len(known) == len(sizes) else None


def reach(node: Node) -> Interval:
    """Return the limits of what a function that is 0 at 0 makes of the numbers from -1 to 1, and in proportion of others."""
    most = 1.0 if node.op in SHARES else SLOPES[node.op](node)
    return Interval.of(-most, most)


def through_nought(node: Node) -> Interval | None:
    """Return the limits of the channels after a function that is 0 at 0: as far from it as its slope allows."""
    x = node.input()
    return None if x.channels is None else reach(node) * Interval.of(x.channels.largest())


def all_through_nought(node: Node) -> Interval | None:
    """Return the same for all entries together."""
    return reach(node) * Interval.of(node.input().magnitude)


def standard_limits(node: Node) -> Interval | None:
    """Return the limits of n normalised numbers: none is further than ``sqrt(n)`` from their mean, before gain and bias."""
    sizes = (node.input().shape or ())[int(node.attribute("axis", -1)) :]
    if not sizes or not all(isinstance(d, int) for d in sizes):
        return None
    n = math.prod(int(d) for d in sizes)
    gain, bias = (float(np.abs(node.constant(place)).max()) if node.present(place) else 0.0 for place in (1, 2))
    return Interval.of(-1.0, 1.0) * (Interval.of(up(math.sqrt(n))) * Interval.of(gain) + Interval.of(bias))


SHARES = frozenset({"Gelu", "HardSwish", "Mish", "Swish"})
"""Activations that keep a share of each number, between nothing and all of it."""
NOUGHT = (*sorted(SHARES), "Asinh", "Celu", "Elu", "PRelu", "Selu", "Softsign")
"""Activations that are 0 at 0."""
CHANNELS: dict[str, Callable[[Node], Interval | None]] = {
    **dict.fromkeys(sorted(entries.TERMS), entrywise_channels),
    **dict.fromkeys(["AveragePool", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"], kept_channels),
    **dict.fromkeys(NOUGHT, through_nought),
    "BatchNormalization": normalised_channels,
    "Conv": conv_channels,
    "ConvTranspose": conv_channels,
    "Flatten": flat_channels,
    "Gemm": gemm_channels,
    "MatMul": matmul_channels,
}
"""How the limits of channels follow from those of the input."""
SUMS: dict[str, Callable[[Node], Interval | None]] = {
    **dict.fromkeys(["LayerNormalization", "RMSNormalization"], standard_limits),
    **dict.fromkeys(NOUGHT, all_through_nought),
    "MatMul": product_limits,
    "ReduceSum": sum_limits,
}
"""How the limits of all entries do, where channels do not lie on axis 1."""
