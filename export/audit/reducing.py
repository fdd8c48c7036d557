"""Operators that join entries: pools, reductions, softmax."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from export.audit.linear import options
from export.audit.node import Node
from export.audit.sorting import pick_sorted
from export.audit.values import Dim, NoBoundError, Shape, Value, root, times
from specnorm_core.bounds import sigma_upper, up


def pool_geometry(node: Node) -> tuple[list[int], list[int], list[int], list[tuple[int, int]] | None]:
    """Return kernel, strides, dilations, pads."""
    kernel = [int(k) for k in node.attribute("kernel_shape", [])]
    if not kernel or node.rank() != len(kernel) + 2:
        raise NoBoundError("its kernel does not fit the input")
    return (kernel, *options(node, len(kernel)))


def pooled_sizes(node: Node) -> list[Dim]:
    """Return the size after the pool, per axis; one that is not known gets a name of its own."""
    kernel, strides, dilations, pads = pool_geometry(node)
    sizes: list[Dim] = []
    for i, n in enumerate((node.input().shape or ())[2:]):
        if not isinstance(n, int):
            sizes.append(f"{node.proto.output[0]}/{i}")
        elif pads is None:
            sizes.append(-(-n // strides[i]))
        else:
            free = n + sum(pads[i]) - dilations[i] * (kernel[i] - 1) - 1
            out = (-(-free // strides[i]) if node.attribute("ceil_mode", 0) else free // strides[i]) + 1
            if node.attribute("ceil_mode", 0) and (out - 1) * strides[i] >= n + pads[i][0]:
                out -= 1  # no window starts in the padding behind the image
            sizes.append(out)
    return sizes


def overlap(node: Node) -> float:
    """Return the square root of the number of windows that one pixel may lie in."""
    kernel, strides, dilations, _ = pool_geometry(node)
    windows = [-(-k // (s // math.gcd(s, d))) for k, s, d in zip(kernel, strides, dilations, strict=True)]
    return root(float(math.prod(windows)))


def pooled(node: Node, factor: float) -> list[Value]:
    """Return the value after a pool; the second output of MaxPool jumps."""
    x = node.input()
    shape: Shape = (*(x.shape or ())[:2], *pooled_sizes(node))
    first = Value(node.proto.output[0], shape, bound=times(x.bound, factor), rows=x.rows, chain=x.chain)
    rest = [
        Value(name, shape, floating=False, bound=math.inf, causes=(f"{node.place}: an index jumps",))
        for name in node.proto.output[1:]
        if name
    ]
    return [first, *rest]


def max_pool(node: Node) -> list[Value]:
    """MaxPool: root of the number of windows that share an entry, ``prod ceil(k / (s / gcd(s, d)))``."""
    return pooled(node, overlap(node))


def average_pool(node: Node) -> list[Value]:
    """AveragePool: the Kronecker product of one averaging matrix per axis, whose norms are proved one by one."""
    kernel, strides, dilations, pads = pool_geometry(node)
    size = (node.input().shape or ())[2:]
    if pads is None or not all(isinstance(n, int) and n <= 4096 for n in size):
        return pooled(node, overlap(node))
    factor = 1.0
    for i, (n, outputs) in enumerate(zip(size, pooled_sizes(node), strict=True)):
        padded = bool(node.attribute("count_include_pad", 0)) and not node.attribute("ceil_mode", 0)
        matrix = np.zeros((int(outputs), int(n)))
        for o in range(int(outputs)):
            places = o * strides[i] - pads[i][0] + dilations[i] * np.arange(kernel[i])
            inside = places[(places >= 0) & (places < int(n))]
            matrix[o, inside] = 1 / (kernel[i] if padded else max(1, len(inside)))
        rounding = 2.0**-52 * float(np.linalg.norm(matrix))
        factor = times(factor, up(sigma_upper(matrix) + rounding) if matrix.size else 0.0)
    return pooled(node, min(factor, overlap(node)))


def norm_pool(node: Node) -> list[Value]:
    """LpPool with p >= 2: the norm of a window moves by no more than the window."""
    if int(node.attribute("p", 2)) < 2:
        raise NoBoundError("its p is less than 2")
    return pooled(node, overlap(node))


def running_sum(node: Node) -> Value:
    """CumSum: a triangle of ones of size n has norm ``1 / (2 sin(pi / (4 n + 2)))``."""
    x = node.input()
    axis = node.axes([int(node.constant(1).ravel()[0])], node.rank())[0]
    size = (x.shape or ())[axis]
    rows = x.rows and axis != 0
    if not isinstance(size, int):
        raise NoBoundError("it sums over an axis of unknown size", rows=rows)
    n = size - 1 if node.attribute("exclusive", 0) else size
    factor = up(0.5 / math.sin(math.pi / (4 * n + 2)) * (1 + 2.0**-48)) if n > 1 else float(n)
    return Value(node.proto.output[0], x.shape, bound=times(x.bound, factor), rows=rows, chain=x.chain)


def global_pool(node: Node) -> Value:
    """GlobalAveragePool has norm ``1 / sqrt(pixels)``, GlobalMaxPool 1."""
    x = node.input()
    shape: Shape = (*(x.shape or ())[:2], *[1] * (node.rank() - 2))
    factor = mean_factor((x.shape or ())[2:]) if node.op == "GlobalAveragePool" else 1.0
    return Value(node.proto.output[0], shape, bound=times(x.bound, factor), rows=x.rows, chain=x.chain)


def mean_factor(sizes: Sequence[Dim]) -> float:
    """Return the norm of the mean: ``1 / sqrt(n)``, 1 where a size is not known."""
    known = [d for d in sizes if isinstance(d, int)]
    count = math.prod(max(1, d) for d in known)
    return 1.0 if count == 1 else min(1.0, up(1 / math.sqrt(count)) * (1 + 2.0**-51))


def sum_factor(sizes: Sequence[Dim]) -> float:
    """Return the norm of the sum: ``sqrt(n)``.

    Raises:
        NoBoundError: a size is not known.
    """
    if any(isinstance(d, str) for d in sizes):
        raise NoBoundError("it sums over an axis of unknown size")
    return root(float(math.prod(int(d) for d in sizes)))


def one(sizes: Sequence[Dim]) -> float:
    """Return 1: no entry counts more than once."""
    return 1.0


REDUCTIONS: dict[str, Callable[[Sequence[Dim]], float]] = {
    "ReduceL1": sum_factor,
    "ReduceL2": one,
    "ReduceLogSumExp": one,
    "ReduceMax": one,
    "ReduceMean": mean_factor,
    "ReduceMin": one,
    "ReduceSum": sum_factor,
}


def reduced_axes(node: Node) -> tuple[int, ...]:
    """Return the axes that a reduction runs over; one that is named twice counts once."""
    axes = node.option("axes", 1, None)
    if not axes:
        return () if node.attribute("noop_with_empty_axes", 0) else tuple(range(node.rank()))
    return tuple(dict.fromkeys(node.axes([int(a) for a in axes], node.rank())))


def reduction(node: Node) -> Value:
    """Reduce…: over single axes, largest and smallest entries are followed as parts of a sort."""
    x = node.input()
    axes = reduced_axes(node)
    keep = bool(node.attribute("keepdims", 1))
    sizes = x.shape or ()
    shape = tuple(1 if i in axes else d for i, d in enumerate(sizes) if keep or i not in axes)
    rows = x.rows and 0 not in axes
    if not axes and node.op != "ReduceMax":
        raise NoBoundError("it reduces over no axis", rows=rows)
    if node.op in {"ReduceMax", "ReduceMin"} and rows and len(axes) == 1 and isinstance(sizes[axes[0]], int) and int(sizes[axes[0]]) >= 2:
        picked = pick_sorted(node, x, axes[0], [0 if node.op == "ReduceMax" else int(sizes[axes[0]]) - 1])
        if picked is not None and picked.coordinates is not None:
            return reshaped(picked, shape)
    factor = REDUCTIONS[node.op]([sizes[axis] for axis in axes])
    return Value(node.proto.output[0], shape, bound=times(x.bound, factor), rows=rows, chain=x.chain)


def reshaped(value: Value, shape: Shape) -> Value:
    """Return a value whose kept axis of size 1 is dropped or not."""
    coordinates = value.coordinates
    if coordinates is None:
        raise NoBoundError("its entries cannot be followed")
    row = tuple(int(d) for d in shape[1:])
    moved = type(coordinates)(
        coordinates.origin, coordinates.bound, coordinates.index.reshape(row), coordinates.weight.reshape(row), coordinates.through
    )
    return Value(value.name, shape, rows=value.rows, chain=value.chain).with_coordinates(moved)


def softmax(node: Node) -> Value:
    """Softmax has norm 1/2 (absolute row sums ``2 p (1 - p)``), LogSoftmax ``sqrt(n)``; before opset 13 over all later axes."""
    x = node.input()
    old = node.opset < 13
    axis = node.axes([int(node.attribute("axis", 1 if old else -1))], node.rank())[0]
    sizes = (x.shape or ())[axis:] if old else (x.shape or ())[axis : axis + 1]
    factor = 0.5 if node.op == "Softmax" else sum_factor(sizes)
    return Value(node.proto.output[0], x.shape, bound=times(x.bound, factor), rows=x.rows and axis != 0, chain=x.chain)
