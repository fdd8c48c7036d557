"""Operators that are linear in the input: Gemm, MatMul, Conv, ConvTranspose, BatchNormalization."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits

from export.audit.borders import Border, border_of
from export.audit.elementwise import broadcast, copied, stays
from export.audit.node import Node
from export.audit.report import AuditedLayer
from export.audit.values import Array, Dim, NoBoundError, Shape, Value, plus, root, times
from specnorm_core.bounds import Deadline, Proved, conv_sigma_estimate, prove_conv_sigma, prove_sigma, sigma_estimate

FARTHEST = 2**16
"""Largest stride, dilation and padding: no small file can ask for a large array."""


class Norms(NamedTuple):
    """A norm from below and from above, and what makes the latter looser than it might be."""

    estimate: float
    upper: float
    looser: str = ""


def measure_matrix(node: Node, weight: Array, *, transposed: bool, kind: str = "linear") -> AuditedLayer:
    """Return the norms of a weight matrix; ``shape`` is (out, in).

    Raises:
        NoBoundError: it holds a number that is not finite, or none at all.
    """
    matrix = weight if transposed else weight.T
    return layer(node, kind, matrix.shape, matrix_norms(matrix, node.seconds))


def matrix_norms(matrix: Array, seconds: float = math.inf) -> Norms:
    """Return the estimate and the proved bound of the norm of a matrix, as good as ``seconds`` allow.

    Raises:
        NoBoundError: it has none.
    """
    try:
        upper, looser = prove_sigma(matrix, Deadline(seconds))
        return Norms(sigma_estimate(matrix, Deadline(seconds / 4)), upper, looser)
    except ValueError as error:
        raise NoBoundError(f"its weight has no norm: {error}") from None


def largest_of(norms: Sequence[Norms]) -> Norms:
    """Return the norms of several maps, of which each entry meets one."""
    return Norms(max(n.estimate for n in norms), max(n.upper for n in norms), next((n.looser for n in norms if n.looser), ""))


def layer(node: Node, kind: str, shape: tuple[int, ...], norms: Norms) -> AuditedLayer:
    """Add a row to the report and return it."""
    estimate, upper, looser = norms
    if not math.isfinite(upper):
        raise NoBoundError("the norm of its weight is beyond the largest float64")
    name = node.proto.name or node.proto.output[0]
    found = AuditedLayer(
        name=name,
        op=node.op,
        kind=kind,
        shape=tuple(map(int, shape)),
        sigma_estimate=min(estimate, upper),
        sigma_upper=upper,
        looser=looser or None,
    )
    node.layers.append(found)
    return found


def affine(node: Node) -> Value:
    """Gemm: ``alpha A B + beta C`` with a constant B."""
    x, weight = node.input(0), node.constant(1)
    if weight.ndim != 2:
        raise NoBoundError(f"its weight has {weight.ndim} axes")
    measured = measure_matrix(node, weight, transposed=bool(node.attribute("transB", 0)))
    if node.attribute("transA", 0):
        raise NoBoundError("transA mixes the rows of the input")
    if x.shape is None or len(x.shape) != 2:
        raise NoBoundError("its input is not known to be a matrix")
    out, inner = measured.shape
    if x.shape[1] != inner:
        raise NoBoundError(f"the input has {x.shape[1]} columns, the weight {inner}")
    bound = times(times(x.bound, measured.sigma_upper), abs(float(node.attribute("alpha", 1.0))))
    shape: Shape = (x.shape[0], out)
    rows, chain = x.rows, x.chain
    if node.present(2):
        c = node.input(2)
        if c.constant is None:
            joined = broadcast(c.shape, shape)
            bound = plus(bound, times(copied(c, joined), abs(float(node.attribute("beta", 1.0)))))
            rows, chain = (
                rows and c.rows and c.shape is not None and len(c.shape) == 2 and joined == shape and c.shape[0] == x.shape[0],
                False,
            )
        elif not stays(shape, c.constant.shape):
            rows = False
    return Value(node.proto.output[0], shape, bound=bound, rows=rows, chain=chain)


def product(node: Node) -> Value:
    """MatMul with a constant on one side; of two activations only where both are bounded."""
    a, b = node.input(0), node.input(1)
    if b.constant is not None:
        return times_matrices(node, a, b.constant)
    name = node.proto.output[0]
    if a.constant is not None:
        weight = a.constant
        if weight.ndim != 2:
            raise NoBoundError("its constant is no matrix that fits the input")
        sigma = measure_matrix(node, weight, transposed=True).sigma_upper
        if node.rank(1) < 2 or b.shape is None or b.shape[-2] != weight.shape[1]:
            raise NoBoundError("its constant is no matrix that fits the input")
        shape = (*b.shape[:-2], weight.shape[0], b.shape[-1])
        return Value(name, shape, bound=times(b.bound, sigma), rows=b.rows and node.rank(1) >= 3, chain=b.chain)
    rows = (
        a.rows and b.rows and a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape) >= 3 and a.shape[0] == b.shape[0]
    )
    left, right = matrix_bound(a), matrix_bound(b)
    if not (b.fixed or math.isfinite(left)) or not (a.fixed or math.isfinite(right)):
        raise NoBoundError("it multiplies two tensors that both depend on the input, and have no limits", rows=rows)
    if a.shape is None or b.shape is None or len(a.shape) < 2 or len(b.shape) != len(a.shape) or a.shape[:-2] != b.shape[:-2]:
        raise NoBoundError("the shapes of its two activations do not fit", rows=rows)
    bound = plus(times(left, b.bound), times(right, a.bound))
    return Value(name, (*a.shape[:-1], b.shape[-1]), bound=bound, rows=rows, chain=False)


def matrix_bound(value: Value) -> float:
    """Return a bound of the spectral norm of the matrices in an activation: that of Frobenius, from its limits."""
    size = [d for d in (value.shape or ())[-2:] if isinstance(d, int)]
    return times(value.magnitude, root(float(math.prod(size)))) if len(size) == 2 else math.inf


def times_matrices(node: Node, a: Value, weight: Array) -> Value:
    """MatMul of an activation with a constant vector, matrix or stack of matrices: the largest of their norms."""
    if weight.ndim > 2:
        stack = weight.reshape(-1, *weight.shape[-2:])
        norms = largest_of([matrix_norms(matrix.T, node.seconds / len(stack)) for matrix in stack])
        sigma = layer(node, "linear", weight.shape, norms).sigma_upper
    else:
        sigma = measure_matrix(node, weight.reshape(len(weight), -1) if weight.ndim else weight, transposed=False).sigma_upper
    inner = weight.shape[0] if weight.ndim == 1 else weight.shape[-2]
    if not a.shape or a.shape[-1] != inner or (weight.ndim > 2 and len(a.shape) < 2):
        raise NoBoundError("its constant does not fit the input")
    batch = broadcast(a.shape[:-2], tuple(weight.shape[:-2])) if weight.ndim > 2 else a.shape[:-2]
    bound = times(copied(replace(a, shape=a.shape[:-2]), batch), sigma)
    shape = batch + a.shape[-2:-1] + tuple(weight.shape[-1:] if weight.ndim > 1 else ())
    fits = weight.ndim <= 2 or weight.ndim < len(a.shape) or (weight.ndim == len(a.shape) and weight.shape[0] == 1)
    return Value(node.proto.output[0], shape, bound=bound, rows=a.rows and len(a.shape) >= 2 and fits, chain=a.chain)


def options(node: Node, axes: int) -> tuple[list[int], list[int], list[tuple[int, int]] | None]:
    """Return strides, dilations and pads as pairs (None: chosen by ``auto_pad``)."""
    strides = [int(s) for s in node.attribute("strides", [1] * axes)]
    dilations = [int(d) for d in node.attribute("dilations", [1] * axes)]
    pads = [int(p) for p in node.attribute("pads", [0] * 2 * axes)]
    auto = node.attribute("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        return strides, dilations, None
    if auto == b"VALID":
        pads = [0] * 2 * axes
    if len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes:
        raise NoBoundError(f"its strides, dilations and pads do not fit {axes} axes")
    if max([*strides, *dilations, *map(abs, pads)], default=0) > FARTHEST:
        raise NoBoundError(f"its windows lie more than {FARTHEST} apart, or beyond the border")
    return strides, dilations, list(zip(pads[:axes], pads[axes:], strict=True))


def convolved_shape(node: Node) -> Shape:
    """Return the shape after Conv or ConvTranspose; sizes that are not known get a name of their own."""
    x, kernel = node.input(), node.constant(1)
    axes = kernel.ndim - 2
    if axes < 1 or node.rank() != kernel.ndim or x.shape is None:
        raise NoBoundError(f"an input of {node.rank()} axes and a kernel of {kernel.ndim} do not fit")
    group = int(node.attribute("group", 1))
    strides, dilations, pads = options(node, axes)
    given = node.attribute("output_shape", None) if node.op == "ConvTranspose" else None
    extra = [int(e) for e in node.attribute("output_padding", [0] * axes)]
    sizes: list[Dim] = []
    for i, n in enumerate(x.shape[2:]):
        window = dilations[i] * (kernel.shape[2 + i] - 1) + 1
        if not isinstance(n, int) or given is not None:
            sizes.append(f"{node.proto.output[0]}/{i}")
        elif node.op == "ConvTranspose":
            sizes.append(strides[i] * n if pads is None else strides[i] * (n - 1) + extra[i] + window - sum(pads[i]))
        else:
            sizes.append(-(-n // strides[i]) if pads is None else (n + sum(pads[i]) - window) // strides[i] + 1)
    return (x.shape[0], kernel.shape[1] * group if node.op == "ConvTranspose" else kernel.shape[0], *sizes)


def convolution_norms(node: Node, kernel: Array, border: Border | None = None) -> Norms:
    """Return estimate and bound of the norm of a convolution at the graph's image size, or, where that is not known, for every size.

    With a ``border`` it is that of the map from the image inside it.

    A transposed convolution is the adjoint of the convolution with its kernel, from its output back to its input; what ``output_padding``
    adds is never reached by a window.

    Raises:
        NoBoundError: it has none.
    """
    with threadpool_limits(1, "blas"):  # thousands of small factorisations, in which a second thread only waits
        upper, looser = convolution_bound(node, kernel, border)
        estimate = conv_sigma_estimate(kernel, **geometry(node, kernel, border), deadline=Deadline(node.seconds / 4))
    return Norms(estimate, upper, looser)


def convolution_bound(node: Node, kernel: Array, border: Border | None = None) -> Proved:
    """Return the bound alone.

    Raises:
        NoBoundError: it has none.
    """
    try:
        return prove_conv_sigma(kernel, **geometry(node, kernel, border), deadline=Deadline(node.seconds))
    except ValueError as error:
        raise NoBoundError(f"its kernel has no norm: {error}") from None


def geometry(node: Node, kernel: Array, border: Border | None) -> dict[str, Any]:
    """Return the geometry of a convolution as the bounds take it."""
    axes = kernel.ndim - 2
    strides, dilations, pads = options(node, axes)
    image: Shape = ()
    if node.input().shape is not None and node.rank() == kernel.ndim:
        image = convolved_shape(node)[2:] if node.op == "ConvTranspose" else (node.input().shape or ())[2:]
    sizes = tuple(d for d in image if isinstance(d, int) and d > 0)
    size = sizes if len(sizes) == axes and pads is not None else None
    padding: Sequence[tuple[int, int]] = pads or [(0, 0)] * axes
    mode = "zeros"
    if border is not None:
        size, padding, mode = border.size, border.pads, border.mode
    group = int(node.attribute("group", 1))
    return {"input_size": size, "stride": strides, "padding": padding, "dilation": dilations, "groups": group, "padding_mode": mode}


def framed(node: Node, axes: int) -> Border | None:
    """Return the border that a Conv without pads of its own takes, where there is one."""
    pads = options(node, axes)[2]
    return border_of(node.input()) if node.op == "Conv" and pads is not None and not any(a or b for a, b in pads) else None


def convolution(node: Node) -> Value:
    """Conv and ConvTranspose with a constant kernel; the bias changes nothing."""
    kernel = node.constant(1)
    border = framed(node, kernel.ndim - 2)
    measured = layer(node, "conv" if node.op == "Conv" else "conv_transpose", kernel.shape, convolution_norms(node, kernel, border))
    x, shape = node.input(), convolved_shape(node)
    channels = kernel.shape[0] if node.op == "ConvTranspose" else kernel.shape[1] * int(node.attribute("group", 1))
    if (x.shape or ())[1] != channels:
        raise NoBoundError(f"the input has {(x.shape or ())[1]} channels, the kernel {channels}")
    if node.present(2):
        node.constant(2)
    before = x.bound if border is None else border.image.bound
    return Value(node.proto.output[0], shape, bound=times(before, measured.sigma_upper), rows=x.rows, chain=x.chain)
