"""Normalisations: by fixed statistics an affine map, by those of the row itself bounded only through epsilon."""

import math
from dataclasses import replace

import numpy as np

from export.audit.elementwise import entrywise
from export.audit.linear import Norms, convolution_bound, layer, matrix_norms
from export.audit.node import Node
from export.audit.values import Array, NoBoundError, Value, plus, times
from specnorm_core.bounds import up

ROUND = 1 + 2.0**-50


def batch_normalization(node: Node) -> list[Value]:
    """BatchNormalization outside training: one factor per channel, or what it makes of the layer before it, where that is less."""
    if node.attribute("training_mode", 0) or node.opset < 9 or len([name for name in node.proto.output if name]) > 1:
        raise NoBoundError("it is in training mode, which mixes the rows", rows=False)
    gain, variance = node.constant(1).astype(np.float64), node.constant(4).astype(np.float64)
    total = variance + float(node.attribute("epsilon", 1e-5))
    if gain.ndim != 1 or gain.shape != variance.shape or not (total > 0).all():
        raise NoBoundError("its variance plus epsilon is not positive", rows=True)
    factor = np.abs(gain) / np.sqrt(total) * ROUND
    largest = float(factor.max(initial=0.0))
    layer(node, "normalisation", gain.shape, Norms(largest / ROUND**2, largest))
    x = node.input()
    if node.rank() < 2 or (x.shape or ())[1] != len(gain):
        raise NoBoundError("its channels do not fit the input")
    result = entrywise(node, x, factor.reshape(-1, *[1] * (node.rank() - 2)))
    folded = times(*through(x.maker, factor)) if x.maker is not None else math.inf
    return [result if folded >= result.bound else replace(result, bound=folded, coordinates=None)]


def through(maker: Node, factor: Array) -> tuple[float, float]:
    """Return the bound of what goes into the layer before, and the norm of that layer with its outputs scaled; infinite where unknown.

    Signs change no norm of a sum of scaled rows, so magnitudes stand for the factors.
    """
    weight = maker.inputs[1].constant if len(maker.inputs) > 1 and maker.inputs[1] is not None else None
    source = maker.inputs[0]
    if weight is None or source is None or maker.op not in {"Conv", "Gemm"} or (maker.present(2) and maker.input(2).constant is None):
        return math.inf, 1.0
    out_first = maker.op == "Conv" or bool(maker.attribute("transB", 0))
    matrix = weight.astype(np.float64) if out_first else weight.astype(np.float64).T
    scaled = matrix * factor.reshape(-1, *[1] * (weight.ndim - 1))
    try:
        norm = convolution_bound(maker, scaled).value if maker.op == "Conv" else matrix_norms(scaled, maker.seconds).upper
    except NoBoundError:
        return math.inf, 1.0
    taps = math.sqrt(math.prod(weight.shape[2:]))
    norm = plus(norm, 2.0**-49 * taps * float(np.linalg.norm(scaled)) * ROUND)
    return source.bound, times(norm, abs(float(maker.attribute("alpha", 1.0))) if maker.op == "Gemm" else 1.0)


def through_epsilon(node: Node, gain: Array, epsilon: float, *, first_axis: int) -> Value:
    """Return ``gain (x - mean) / sqrt(var + epsilon)``: steepest where the row is constant.

    Raises:
        NoBoundError: epsilon is not positive.
    """
    x = node.input()
    rows = x.rows and first_axis > 0
    largest = float(np.abs(gain.astype(np.float64)).max(initial=0.0))
    if not epsilon > 0:
        raise NoBoundError("it divides by a deviation that may be 0", rows=rows)
    factor = up(up(largest / math.sqrt(epsilon)))
    layer(node, "normalisation", gain.shape, Norms(largest / math.sqrt(epsilon), factor))
    if any(name for name in node.proto.output[1:]):
        raise NoBoundError("it also gives its statistics", rows=rows)
    return Value(node.proto.output[0], x.shape, bound=times(x.bound, factor), rows=rows, chain=x.chain)


def over_last_axes(node: Node) -> Value:
    """LayerNormalization and RMSNormalization: largest gain over the root of epsilon, which is sound and seldom of use."""
    axis = node.axes([int(node.attribute("axis", -1))], node.rank())[0]
    return through_epsilon(node, node.constant(1), float(node.attribute("epsilon", 1e-5)), first_axis=axis)


def over_pixels(node: Node) -> Value:
    """InstanceNormalization and GroupNormalization: largest gain over the root of epsilon."""
    return through_epsilon(node, node.constant(1), float(node.attribute("epsilon", 1e-5)), first_axis=1)


def local_response(node: Node) -> Value:
    """LRN: absolute row and column sums of the slopes are at most ``bias^-beta (max(1, 2 beta - 1) + beta (size - 1))``."""
    x = node.input()
    size, bias = int(node.attribute("size", 0)), float(node.attribute("bias", 1.0))
    alpha, beta = float(node.attribute("alpha", 1e-4)), float(node.attribute("beta", 0.75))
    if not (bias > 0 and alpha >= 0 and beta >= 0 and size >= 1):
        raise NoBoundError("its attributes give no bounded slope", rows=x.rows)
    factor = up(up(bias**-beta * (1 + 2.0**-48)) * (max(1.0, 2 * beta - 1) + beta * (size - 1)) * ROUND)
    return Value(node.proto.output[0], x.shape, bound=times(x.bound, factor), rows=x.rows, chain=x.chain)
