"""The certificate as nodes of the graph: within ``certified_radius`` of an input no answer that is served has another class.

Let ``y`` be the computed logits, ``i`` the largest. Exact logits differ from computed ones by at most ``err(x) = a norm(x) + b`` in L2, so
a difference of two logits by at most ``sqrt(2) err(x)`` here, and by ``sqrt(2) (err(x) + a r)`` at distance r. The exact difference of the
logits i and j moves by at most ``L_ij r``. Hence class j cannot win within

    r_ij = (y_i - y_j - 2 sqrt(2) err(x)) / (L_ij + sqrt(2) a),

and the radius is the least of them. Where i is not the largest, some ``r_ij`` is negative; so the radius is ``max(0, max_i min_j r_ij)``
and no index has to be looked up. ``L_ij`` is at most ``sqrt(2) L``; a last layer whose rows lie close together gives much less. It is at
most ``2^62``, so that within it no row is so long that float32 might overflow (see `export.audit.rounding`).

The nodes are one fixed form, so whoever verifies a file writes them again and compares, constants by inequalities in rationals.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.audit.rounding import Affine
from export.bundle import Tensor
from export.graph import Graph

RADIUS = "certified_radius"
TENSOR = Tensor(name=RADIUS, datatype="FP32", shape=(-1,))
MOST_PAIRS = 128
"""Classes up to which every pair has a constant of its own: a row then costs their square. Beyond it the largest serves for all."""
SLACK = 1 + 2.0**-20
"""For the graph's own few float32 operations and the rounding of its constants; a power of ``1 + 2^-24`` with room."""
NEEDED = 1 + Fraction(1, 2**21)
"""The same, without the room that lets another machine prove constants again that differ in their last bits: eight roundings."""
LEAST = 2.0**-120
"""Two logits that always move together would have the constant 0."""
SMALLEST = 2.0**-64
"""Least ``k0``, far below what a float32 logit resolves unless all are tiny."""
FLUSHED = 2.0**-62
"""Times the root of their number: what the norm of numbers whose squares are below the normal range may lose, twice."""
MOST = np.float32(2.0**62)
SHRINK = np.float32(1 - 2.0**-20)
"""What a difference of logits is multiplied with: more than its own rounding, and that of the subtraction that follows."""
ROOT = Fraction(14142135623730951, 10**16)
"""Above the square root of 2, by less than ``2^-53``."""


@dataclass(frozen=True)
class Certificate:
    """What the radius is computed from: Lipschitz constants of the differences of two logits, and the bound of their float32 error.

    ``pairs`` is ``(classes, classes)``; its diagonal does not count.
    """

    pairs: NDArray[np.float64]
    error: Affine


def pairs_of(lipschitz: float, classes: int) -> NDArray[np.float64]:
    """Return the constants of pairs that follow from the bound of all logits: ``sqrt(2) L``."""
    return np.full((classes, classes), lipschitz * math.sqrt(2) * (1 + 2.0**-50))


def coefficients(certificate: Certificate, entries: int) -> tuple[NDArray[np.float32], np.float32, np.float32]:
    """Return ``(c, k1, k0)`` of ``r_ij = (y_i - y_j - (k1 norm(x) + k0)) c_ij``, each rounded towards a smaller radius.

    The diagonal of c is the lowest float32: since ``k0`` is not tiny, a class is then farther from itself than from any other.
    """
    root = math.sqrt(2) * (1 + 2.0**-50)
    norm_slack = 1 + (entries + 4) * 2.0**-24  # the computed norm of x may be too low by this
    k1 = 2 * root * certificate.error.slope * SLACK * norm_slack
    k0 = max(2 * root * certificate.error.offset * SLACK + k1 * math.sqrt(entries) * FLUSHED, SMALLEST)
    exact = 1 / (np.maximum(certificate.pairs + root * certificate.error.slope, LEAST) * SLACK)
    c = np.nextafter(exact.astype(np.float32), np.float32(0))
    np.fill_diagonal(c, np.finfo(np.float32).min)
    return c, _above(k1), _above(k0)


def _above(value: float) -> np.float32:
    return np.float32(np.nextafter(np.float32(value), np.float32(np.inf)))


def attached(body: onnx.ModelProto, certificate: Certificate) -> onnx.ModelProto:
    """Return ``body``, of one input and with the logits as its first output, with the output ``certified_radius (B,)``."""
    source, logits = body.graph.input[0], body.graph.output[0]
    graph = Graph()
    write(graph, certificate, entries_of(body), source.name, logits.name)
    batch = logits.type.tensor_type.shape.dim[0].dim_param
    model = onnx.ModelProto()
    model.CopyFrom(body)
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.weights)
    model.graph.output.append(helper.make_tensor_value_info(RADIUS, TensorProto.FLOAT, [batch]))
    return model


def entries_of(body: onnx.ModelProto) -> int:
    """Return the numbers in a row of the input."""
    return math.prod(dim.dim_value for dim in body.graph.input[0].type.tensor_type.shape.dim[1:])


def detached(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Graph]:
    """Return what the other outputs need, and all the rest: where the file is true, the nodes and constants of the radius."""
    body, rest = onnx.ModelProto(), Graph()
    body.CopyFrom(model)
    outputs = [output for output in model.graph.output if output.name != RADIUS]
    needed = {output.name for output in outputs}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        wanted = not needed.isdisjoint(node.output)
        (nodes if wanted else rest.nodes).append(node)
        needed.update(node.input if wanted else ())
    rest.nodes.reverse()
    rest.weights = [weight for weight in model.graph.initializer if weight.name not in needed]
    weights = [weight for weight in model.graph.initializer if weight.name in needed]
    for field, kept in (("node", nodes[::-1]), ("initializer", weights), ("output", outputs)):
        body.graph.ClearField(field)
        getattr(body.graph, field).extend(kept)
    return body, rest


def faults(body: onnx.ModelProto, found: Graph, certificate: Certificate) -> Iterator[str]:
    """Yield what keeps ``found`` from computing a radius that ``certificate`` allows; each the end of a sentence."""
    entries = entries_of(body)
    expected = Graph()
    write(expected, certificate, entries, body.graph.input[0].name, body.graph.output[0].name)
    for node in expected.nodes:
        if node not in found.nodes:
            yield f"its node {node.name!r} is not the one that computes the radius of these logits"
    if len(found.nodes) != len(expected.nodes):
        yield f"it has {len(found.nodes)} nodes that the other outputs do not need, the radius {len(expected.nodes)}"
    weights = {weight.name: weight for weight in found.weights}
    if sorted(weight.name for weight in found.weights) != sorted(weight.name for weight in expected.weights):
        yield "its constants are not those of the radius"
        return
    held = {name: numpy_helper.to_array(weight) for name, weight in weights.items()}
    for weight in expected.weights:
        own, value = numpy_helper.to_array(weight), held[weight.name]
        if (own.shape, own.dtype) != (value.shape, value.dtype):
            yield f"its constant {weight.name!r} has another shape or type"
        elif weight.name in SAFE:
            if not (np.isfinite(value).all() and SAFE[weight.name](value, certificate, entries)):
                yield f"its constant {weight.name!r} makes the radius larger than the bytes prove"
        elif not np.array_equal(own, value):
            yield f"its constant {weight.name!r} is {value.ravel()[:4]}, not {own.ravel()[:4]}"


def safe_c(c: NDArray[np.float32], certificate: Certificate, entries: int) -> bool:
    """Say whether ``0 <= c (L_ij + sqrt(2) a) <= 1`` with room for the graph's rounding, for the pairs that each c serves."""
    slope = ROOT * Fraction(certificate.error.slope)
    other = ~np.eye(len(certificate.pairs), dtype=bool)
    every = np.broadcast_to(c, certificate.pairs.shape)
    own = bool((np.diagonal(every) == np.finfo(np.float32).min).all()) if c.ndim else True
    pairs = set(zip(every[other].tolist(), certificate.pairs[other].tolist(), strict=True))
    return own and all(0 <= Fraction(one) * (max(Fraction(pair) + slope, Fraction(LEAST)) * NEEDED) <= 1 for one, pair in pairs)


def safe_k1(k1: NDArray[np.float32], certificate: Certificate, entries: int) -> bool:
    """Say whether k1 is at least ``2 sqrt(2) a``, with room for the rounding of the norm."""
    norm = 1 + Fraction(entries + 4, 2**24)
    return Fraction(float(k1)) >= 2 * ROOT * Fraction(certificate.error.slope) * norm * NEEDED


def safe_k0(k0: NDArray[np.float32], certificate: Certificate, entries: int) -> bool:
    """Say whether k0 is at least ``2 sqrt(2) b``, with room for a norm that underflows, and not tiny."""
    flushed = Fraction(certificate.error.slope) * Fraction(math.isqrt(entries) + 1) * Fraction(FLUSHED)
    return Fraction(float(k0)) >= max(2 * ROOT * (Fraction(certificate.error.offset) + flushed) * NEEDED, Fraction(SMALLEST))


SAFE = {"radius.c": safe_c, "radius.k1": safe_k1, "radius.k0": safe_k0}
"""The constants that the certificate gives: on which side of it is each safe?"""


def write(graph: Graph, certificate: Certificate, entries: int, source: str, logits: str) -> None:
    """Add the nodes of ``certified_radius (B,)`` for inputs ``source`` of ``entries`` numbers."""
    c, k1, k0 = coefficients(certificate, entries)
    flat = graph.node("Reshape", [source, graph.weight("radius.shape", np.array([0, entries], dtype=np.int64))], "radius.flat")
    one = graph.weight("radius.one", np.array([1], dtype=np.int64))
    norm = graph.node("ReduceL2", [flat, one], "radius.norm", keepdims=1)
    relative = graph.node("Mul", [norm, graph.weight("radius.k1", k1)], "radius.relative")
    error = graph.node("Add", [relative, graph.weight("radius.k0", k0)], "radius.error")
    if len(c) <= MOST_PAIRS:
        left = _left(graph, _differences(graph, logits), graph.node("Unsqueeze", [error, one], "radius.aligned"))
        two = graph.weight("radius.two", np.array([2], dtype=np.int64))
        every = graph.weight("radius.every", np.array([1, 2], dtype=np.int64))
        signed = graph.node("Mul", [left, graph.weight("radius.c", c)], "radius.signed")
        least = graph.node("ReduceMin", [signed, two], "radius.least", keepdims=0)
        largest = graph.node("ReduceMax", [least, one], "radius.largest", keepdims=0)
    else:
        every = one
        left = _left(graph, _to_the_second(graph, logits), error)
        smallest = np.float32(c[~np.eye(len(c), dtype=bool)].min())
        signed = graph.node("Mul", [left, graph.weight("radius.c", smallest)], "radius.signed")
        largest = graph.node("Squeeze", [signed, one], "radius.largest")
    # Runtimes differ on whether a minimum passes NaN on; a sum does. What is not finite has no radius.
    spread = graph.node("ReduceL1", [left, every], "radius.spread", keepdims=0)
    finite = graph.node("LessOrEqual", [spread, graph.weight("radius.finite", np.float32(np.finfo(np.float32).max))], "radius.is_finite")
    zero = graph.weight("radius.zero", np.float32(0))
    within = graph.node("Clip", [largest, zero, graph.weight("radius.most", MOST)], "radius.within")
    graph.node("Where", [finite, within, zero], RADIUS)


def _left(graph: Graph, margin: str, error: str) -> str:
    """Return what is left of differences of logits, a hair smaller, after the error."""
    shrunk = graph.node("Mul", [margin, graph.weight("radius.shrink", SHRINK)], "radius.shrunk")
    return graph.node("Sub", [shrunk, error], "radius.left")


def _differences(graph: Graph, logits: str) -> str:
    """Return every difference of two logits, ``(B, classes, classes)``."""
    columns = [
        graph.node("Unsqueeze", [logits, graph.weight(f"radius.at{axis}", np.array([axis], dtype=np.int64))], f"radius.along{axis}")
        for axis in (2, 1)
    ]
    return graph.node("Sub", columns, "radius.margins")


def _to_the_second(graph: Graph, logits: str) -> str:
    """Return the difference of the two largest logits, ``(B, 1)``."""
    graph.weight("radius.k", np.array([2], dtype=np.int64))
    graph.nodes.append(helper.make_node("TopK", [logits, "radius.k"], ["radius.best", "radius.order"], name="radius.top", axis=1))
    columns = [
        graph.node("Gather", ["radius.best", graph.weight(f"radius.at{i}", np.array([i], dtype=np.int64))], f"radius.best{i}", axis=1)
        for i in (0, 1)
    ]
    return graph.node("Sub", columns, "radius.margins")
