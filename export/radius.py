"""The certificate as nodes of the graph: within ``certified_radius`` of an input no answer that is served has another class.

Let ``y`` be the computed logits, ``i`` the largest. Exact logits differ from computed ones by at most ``err(x) = a norm(x) + b`` in L2, so
a difference of two logits by at most ``sqrt(2) err(x)`` here, and by ``sqrt(2) (err(x) + a r)`` at distance r. The exact difference of the
logits i and j moves by at most ``L_ij r``. Hence class j cannot win within

    r_ij = (y_i - y_j - 2 sqrt(2) err(x)) / (L_ij + sqrt(2) a),

and the radius is the least of them. Where i is not the largest, some ``r_ij`` is negative; so the radius is ``max(0, max_i min_j r_ij)``
and no index has to be looked up. ``L_ij`` is at most ``sqrt(2) L``; a last layer whose rows lie close together gives much less.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from export.rounding import Affine

if TYPE_CHECKING:
    from export.to_onnx import Graph

RADIUS = "certified_radius"
MOST_PAIRS = 128
"""Classes up to which every pair has a constant of its own: a row then costs their square. Beyond it the largest serves for all."""
SLACK = 1 + 2.0**-20
"""For the graph's own few float32 operations and the rounding of its constants; a power of ``1 + 2^-24`` with room."""
LEAST = 2.0**-120
"""Two logits that always move together would have the constant 0."""
SMALLEST = 2.0**-64
"""Least ``k0``, far below what a float32 logit resolves unless all are tiny."""
SHRINK = np.float32(1 - 2.0**-20)
"""What a difference of logits is multiplied with: more than its own rounding, and that of the subtraction that follows."""


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
    k0 = max(2 * root * certificate.error.offset * SLACK, SMALLEST)
    exact = 1 / (np.maximum(certificate.pairs + root * certificate.error.slope, LEAST) * SLACK)
    c = np.nextafter(exact.astype(np.float32), np.float32(0))
    np.fill_diagonal(c, np.finfo(np.float32).min)
    return c, _above(k1), _above(k0)


def _above(value: float) -> np.float32:
    return np.float32(np.nextafter(np.float32(value), np.float32(np.inf)))


def write(graph: "Graph", certificate: Certificate, entries: int, logits: str) -> None:
    """Add the nodes of ``certified_radius (B,)`` for inputs of ``entries`` numbers."""
    c, k1, k0 = coefficients(certificate, entries)
    flat = graph.node("Reshape", ["input", graph.weight("radius.shape", np.array([0, entries], dtype=np.int64))], "radius.flat")
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
    graph.node("Where", [finite, graph.node("Max", [largest, zero], "radius.positive"), zero], RADIUS)


def _left(graph: "Graph", margin: str, error: str) -> str:
    """Return what is left of differences of logits, a hair smaller, after the error."""
    shrunk = graph.node("Mul", [margin, graph.weight("radius.shrink", SHRINK)], "radius.shrunk")
    return graph.node("Sub", [shrunk, error], "radius.left")


def _differences(graph: "Graph", logits: str) -> str:
    """Return every difference of two logits, ``(B, classes, classes)``."""
    columns = [
        graph.node("Unsqueeze", [logits, graph.weight(f"radius.at{axis}", np.array([axis], dtype=np.int64))], f"radius.along{axis}")
        for axis in (2, 1)
    ]
    return graph.node("Sub", columns, "radius.margins")


def _to_the_second(graph: "Graph", logits: str) -> str:
    """Return the difference of the two largest logits, ``(B, 1)``."""
    graph.weight("radius.k", np.array([2], dtype=np.int64))
    graph.nodes.append(helper.make_node("TopK", [logits, "radius.k"], ["radius.best", "radius.order"], name="radius.top", axis=1))
    columns = [
        graph.node("Gather", ["radius.best", graph.weight(f"radius.at{i}", np.array([i], dtype=np.int64))], f"radius.best{i}", axis=1)
        for i in (0, 1)
    ]
    return graph.node("Sub", columns, "radius.margins")
