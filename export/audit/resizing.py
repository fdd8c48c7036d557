"""Operators that copy entries or blend neighbours: Resize, Upsample, Expand, Tile."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from export.audit.elementwise import broadcast, copied
from export.audit.node import Node
from export.audit.values import Dim, NoBoundError, Value, root, times
from specnorm_core.bounds import up

Real = NDArray[np.float64]
LONGEST = 2**14
"""Longest axis whose matrix is written down."""
COORDINATES: dict[bytes, Callable[[Real, int, float, int], Real]] = {
    b"align_corners": lambda o, n, scale, m: o * (n - 1) / (m - 1) if m > 1 else 0 * o,
    b"asymmetric": lambda o, n, scale, m: o / scale,
    b"half_pixel": lambda o, n, scale, m: (o + 0.5) / scale - 0.5,
    b"pytorch_half_pixel": lambda o, n, scale, m: (o + 0.5) / scale - 0.5 if m > 1 else 0 * o,
}
"""Where an output pixel lies among ``n`` input pixels."""
NEAREST: dict[bytes, Callable[[Real], Real]] = {
    b"ceil": np.ceil,
    b"floor": np.floor,
    b"round_prefer_ceil": lambda x: np.floor(x + 0.5),
    b"round_prefer_floor": lambda x: np.ceil(x - 0.5),
}


def resize(node: Node) -> Value:
    """Resize and Upsample, nearest or linear: one matrix per axis, whose norm is at most the root of largest row sum times column sum."""
    x = node.input()
    rank = node.rank()
    mode = node.attribute("mode", b"nearest")
    blend = {b"nearest": nearest, b"linear": linear}.get(mode)
    if blend is None or node.attribute("antialias", 0):
        raise NoBoundError(f"mode {mode!r} has no rule")
    scales, sizes = targets(node, rank)
    factor, shape = 1.0, list[Dim]()
    for axis, n in enumerate(x.shape or ()):
        scale, size = scales[axis], sizes[axis]
        if scale == 1 or (isinstance(n, int) and size == n):
            shape.append(n)
            continue
        if isinstance(n, int):
            m = int(size) if size is not None else math.floor(n * (scale or 0))
            lengths = [(n, m)]
            scale = m / n if scale is None else scale
        elif scale is not None and scale >= 1 and scale == int(scale) and transform(node) != b"align_corners":
            lengths, m = [(k, k * int(scale)) for k in range(1, 5)], None  # each column is at a border or inside: four pixels show them all
        else:
            raise NoBoundError(f"it resizes an axis of unknown size {n!r}")
        shape.append(f"{node.proto.output[0]}/{axis}" if m is None else m)
        factor = times(factor, max(schur(blend(node, k, scale, outputs)) for k, outputs in lengths))
    return Value(
        node.proto.output[0], tuple(shape), bound=times(x.bound, factor), rows=x.rows and shape[0] == (x.shape or ())[0], chain=x.chain
    )


def transform(node: Node) -> bytes:
    """Return how coordinates are transformed; Upsample and the first Resize know one way."""
    return b"asymmetric" if node.opset < 11 else bytes(node.attribute("coordinate_transformation_mode", b"half_pixel"))


def targets(node: Node, rank: int) -> tuple[list[float | None], list[int | None]]:
    """Return the scale and the size of each axis, whichever is given."""
    place = 1 if node.opset < 11 or node.op == "Upsample" else 2
    axes = node.axes([int(a) for a in node.attribute("axes", range(rank))], rank)
    scales: list[float | None] = [1.0] * rank
    sizes: list[int | None] = [None] * rank
    given = node.option("scales", place, [])
    if node.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise NoBoundError("it keeps the aspect ratio in a way that has no rule")
    if given:
        for axis, scale in zip(axes, given, strict=True):
            scales[axis] = float(scale)
    else:
        for axis, size in zip(axes, node.constant(3).ravel(), strict=True):
            scales[axis], sizes[axis] = None, int(size)
    return scales, sizes


def centres(node: Node, n: int, scale: float, m: int) -> Real:
    """Return where the output pixels lie among the input pixels.

    Raises:
        NoBoundError: the transformation has no rule, or an axis is too long.
    """
    how = transform(node)
    if how not in COORDINATES or not 0 < m <= LONGEST or not 0 < n <= LONGEST or n * m > 2**24:
        raise NoBoundError(f"its coordinates {how!r} or sizes {n} to {m} have no rule")
    return np.asarray(COORDINATES[how](np.arange(m, dtype=np.float64), n, scale, m))


def nearest(node: Node, n: int, scale: float, m: int) -> Real:
    """Return the matrix that picks the nearest pixel."""
    how = b"floor" if node.opset < 11 else node.attribute("nearest_mode", b"round_prefer_floor")
    places = np.clip(NEAREST[how](centres(node, n, scale, m)), 0, n - 1).astype(np.int64)
    matrix = np.zeros((m, n))
    matrix[np.arange(m), places] = 1
    return matrix


def linear(node: Node, n: int, scale: float, m: int) -> Real:
    """Return the matrix that blends two neighbours, the border repeated."""
    if node.attribute("exclude_outside", 0):
        raise NoBoundError("exclude_outside has no rule")
    centre = np.clip(centres(node, n, scale, m), 0, n - 1)
    below = np.floor(centre).astype(np.int64)
    above, share = np.minimum(below + 1, n - 1), centre - below
    matrix = np.zeros((m, n))
    np.add.at(matrix, (np.arange(m), below), 1 - share)
    np.add.at(matrix, (np.arange(m), above), share)
    return matrix


def schur(matrix: Real) -> float:
    """Return the root of the largest row sum times the largest column sum of a matrix without negative entries, rounded up."""
    product = float(matrix.sum(axis=1).max()) * float(matrix.sum(axis=0).max())
    exact = (matrix == np.floor(matrix)).all()
    return root(product if exact else up(product * (1 + 2.0**-40)))


def tile(node: Node) -> Value:
    """Tile: each entry occurs as often as the repeats say."""
    x = node.input()
    repeats = [int(r) for r in node.constant(1).ravel()]
    shape = x.shape or ()
    if len(repeats) != node.rank():
        raise NoBoundError(f"{len(repeats)} repeats do not fit {node.rank()} axes")
    sizes: list[Dim] = [d if r == 1 else d * r if isinstance(d, int) else f"{r}*{d}" for d, r in zip(shape, repeats, strict=True)]
    bound = times(x.bound, root(float(math.prod(repeats))))
    return Value(node.proto.output[0], tuple(sizes), bound=bound, rows=x.rows and repeats[0] == 1, chain=x.chain)


def expand(node: Node) -> Value:
    """Expand: a broadcast, each entry copied as often as the shape grows."""
    x, target = node.input(), node.input(1)
    if target.sizes is None:
        raise NoBoundError("its shape is not known, so a broadcast may hide in it")
    shape = broadcast(x.shape, target.sizes)
    same_rank = x.shape is not None and len(x.shape) == len(shape) and x.shape[0] == shape[0]
    return Value(node.proto.output[0], shape, bound=copied(x, shape), rows=x.rows and same_rank, chain=x.chain)
