"""Classical machine learning, as scikit-learn's converter writes it: what is linear in it."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from export.audit.elementwise import entrywise
from export.audit.linear import Norms, layer, matrix_norms
from export.audit.moving import moved_shape
from export.audit.node import Node
from export.audit.values import Array, NoBoundError, Shape, Value, hypotenuse, root, times

POST = {b"NONE": 1.0, b"LOGISTIC": 0.25, b"SOFTMAX": 0.5}
"""The largest slope of what comes after the scores."""


def coefficients(node: Node) -> tuple[Value, Array]:
    """Return the input, and the matrix of the coefficients (out, in), measured."""
    x = node.input()
    numbers = np.asarray(node.attribute("coefficients", []), dtype=np.float64)
    inner = x.shape[-1] if x.shape else None
    if not isinstance(inner, int) or inner < 1 or numbers.size % inner or not numbers.size:
        raise NoBoundError("its coefficients do not fit the input")
    return x, numbers.reshape(-1, inner)


def after(node: Node) -> float:
    """Return the slope of what comes after the scores.

    Raises:
        NoBoundError: it has none.
    """
    post = node.attribute("post_transform", b"NONE")
    if post not in POST:
        raise NoBoundError(f"its transformation {post!r} has no bounded slope", rows=node.input().rows)
    return POST[post]


def classifier(node: Node) -> list[Value]:
    """LinearClassifier: a label, which jumps, and scores, linear up to what comes after them."""
    x, matrix = coefficients(node)
    measured = layer(node, "linear", matrix.shape, matrix_norms(matrix, node.seconds))
    factor = times(measured.sigma_upper, after(node))
    if len(matrix) == 1:
        factor = times(factor, root(2.0))  # of two classes, the other score mirrors the one
    label = Value(node.proto.output[0], None, floating=False, bound=math.inf, causes=(f"{node.place}: a label jumps",), rows=x.rows)
    shape: Shape = ((x.shape or ())[0], max(2, len(matrix)))
    return [label, *(Value(name, shape, bound=times(x.bound, factor), rows=x.rows, chain=x.chain) for name in node.proto.output[1:])]


def regressor(node: Node) -> Value:
    """LinearRegressor: a matrix."""
    x, matrix = coefficients(node)
    measured = layer(node, "linear", matrix.shape, matrix_norms(matrix, node.seconds))
    if node.attribute("post_transform", b"NONE") != b"NONE":
        raise NoBoundError("what comes after its sum has no rule", rows=x.rows)
    shape: Shape = ((x.shape or ())[0], len(matrix))
    return Value(node.proto.output[0], shape, bound=times(x.bound, measured.sigma_upper), rows=x.rows, chain=x.chain)


def scaler(node: Node) -> Value:
    """Scaler: one factor per column."""
    x = node.input()
    factor = np.abs(np.asarray(node.attribute("scale", [1.0]), dtype=np.float64))
    if len(factor) > 1 and (node.rank() != 2 or (x.shape or ())[1] != len(factor)):
        raise NoBoundError("its scale does not fit the input")
    largest = float(factor.max(initial=0.0))
    layer(node, "normalisation", factor.shape, Norms(largest, largest))
    return entrywise(node, x, factor if len(factor) > 1 else float(factor.max(initial=0.0)))


def normalizer(node: Node) -> Value:
    """Normalizer after a classifier: softmax adds up to 1 already, and logistic functions over their sum are a softmax of logarithms."""
    x = node.input()
    maker = x.maker
    if node.attribute("norm", b"MAX") != b"L1" or maker is None or maker.op != "ai.onnx.ml.LinearClassifier":
        raise NoBoundError("it divides by a norm that may be 0", rows=x.rows)
    post = maker.attribute("post_transform", b"NONE")
    if post == b"SOFTMAX":
        return Value(node.proto.output[0], x.shape, bound=x.bound, rows=x.rows, chain=x.chain)
    if post == b"LOGISTIC":  # p_i / sum p = softmax(log p), and log p has slope 1 where p has 1/4
        return Value(node.proto.output[0], x.shape, bound=times(x.bound, 2.0), rows=x.rows, chain=x.chain)
    raise NoBoundError("it divides by a norm that may be 0", rows=x.rows)


def imputer(node: Node) -> Value:
    """Imputer of what is not a number: every number stays."""
    if not math.isnan(float(node.attribute("replaced_value_float", 0.0))) or "imputed_value_int64s" in node.attributes:
        raise NoBoundError("it replaces a number, which jumps", rows=node.input().rows)
    return entrywise(node, node.input(), 1.0)


def together(node: Node) -> Value:
    """FeatureVectorizer: columns side by side."""
    parts = [node.input(place) for place in range(len(node.inputs))]
    widths = [part.shape[1] if part.shape is not None and len(part.shape) == 2 else None for part in parts]
    known = [width for width in widths if isinstance(width, int)]
    if len(known) != len(parts):
        raise NoBoundError("the number of its columns is not known")
    leading = {part.shape[0] for part in parts if part.shape}
    rows = len(leading) == 1 and all(part.rows for part in parts)
    bound = hypotenuse([part.bound for part in parts])
    return Value(node.proto.output[0], (leading.pop() if rows else "rows", sum(known)), bound=bound, rows=rows, chain=len(parts) == 1)


def extract(node: Node) -> Value:
    """ArrayFeatureExtractor: columns by a constant index, as often as one is named."""
    x, index = node.input(), node.constant(1).ravel()
    repeats = int(np.unique(index, return_counts=True)[1].max(initial=0))
    rows = x.rows and node.rank() >= 2
    shape: Sequence[int | str] | None = (*(x.shape or ())[:-1], int(index.size)) if node.rank() >= 2 else moved_shape(node, x, 0)
    return Value(
        node.proto.output[0], None if shape is None else tuple(shape), bound=times(x.bound, root(float(repeats))), rows=rows, chain=x.chain
    )


RULES: dict[str, Callable[[Node], Value | Sequence[Value]]] = {
    "ArrayFeatureExtractor": extract,
    "FeatureVectorizer": together,
    "Imputer": imputer,
    "LinearClassifier": classifier,
    "LinearRegressor": regressor,
    "Normalizer": normalizer,
    "Scaler": scaler,
}
"""The operators of ``ai.onnx.ml`` that have a bound."""
