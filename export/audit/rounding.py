"""How far the float32 numbers of a graph may be from the exact ones, proved for any order of summation.

A row of a computed tensor differs from the exact one by at most ``error(norm(x))`` in L2, and is itself at most ``size(norm(x))`` long,
both of the form ``slope * norm(x) + offset``. They are walked from operator to operator: what came in wrong grows by the operator's norm,
and the operator adds what it rounds. A sum of k products, in any order, with or without fused multiply-add, is off by at most
``gamma_k |w|'|x|`` (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.5), so a linear map adds
``gamma_k norm(|W|) size``. Results below the normal range, where no relative bound holds, are off by less than ``TINY`` each, whether they
underflow gradually or become 0.

None of this holds where a number overflows: so no bound is given unless nothing can, for any row of norm up to ``REACH``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from export.audit.borders import pad
from export.audit.linear import convolution_norms, convolved_shape, framed, matrix_norms
from export.audit.moving import KEEPS_ROWS, gather_repeats
from export.audit.node import Node
from export.audit.reducing import reduced_axes
from export.audit.report import AuditError
from export.audit.values import Array, NoBoundError, Value, unforeseen

UNIT = 2.0**-24
"""Unit roundoff of float32."""
TINY = 2.0**-100
"""More than a sum of as many float32 products as `gamma` allows loses below the normal range."""
UP = 1 + 2.0**-40
"""What float64 results are multiplied with here: far more than their own rounding."""
REACH = 2.0**65
"""Norm of a row up to which the bound holds. In float32 a norm itself overflows from ``2^64`` on."""
LARGEST = 2.0**127


@dataclass(frozen=True)
class Affine:
    """``slope * norm(x) + offset``."""

    slope: float
    offset: float

    def __add__(self, other: "Affine") -> "Affine":
        return Affine((self.slope + other.slope) * UP, (self.offset + other.offset) * UP)

    def times(self, factor: float) -> "Affine":
        """Return ``factor`` times this."""
        return Affine(self.slope * factor * UP, self.offset * factor * UP)


@dataclass(frozen=True)
class Rounded:
    """How long a row of a computed tensor is at most, and how far from the exact one; of what passed no operator yet, exact."""

    size: Affine = Affine(1.0, 0.0)
    error: Affine = Affine(0.0, 0.0)

    def through(self, norm: float, local: Affine = Affine(0.0, 0.0), added: float = 0.0) -> "Rounded":
        """Return what a map of Lipschitz constant ``norm`` makes of it that adds constants of norm ``added`` and rounds by ``local``."""
        return Rounded(self.size.times(norm) + Affine(0.0, added) + local, self.error.times(norm) + local)


class Roundings:
    """What is proved of the tensors of one graph, by name; `follow` is shown every node of the walk, in order."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self.held: dict[str, Rounded] = {name: Rounded() for name in inputs} if len(inputs) == 1 else {}
        self.causes: dict[str, str] = {}

    def follow(self, node: Node, results: Sequence[Value]) -> None:
        """Add what is proved of the first output of a node, or why nothing is."""
        given = [value for value in node.inputs if value is not None]
        why = next((self.causes[value.name] for value in given if value.name in self.causes), None)
        try:
            if why is None and any(value.constant is None for value in given):
                self.held.update({value.name: self.proved(node, value) for value in results[:1]})
            elif why is None and results and not settled(node, given, results[0]):
                raise NoBoundError("runtimes differ on the constant that it makes, or on what meets it")
        except (AuditError, MemoryError):
            raise
        except Exception as error:  # what no rule foresaw is as good a reason for no radius as what one did
            why = f"{node.place}: {error if isinstance(error, NoBoundError) else unforeseen(error)}"
        if why is not None:
            self.causes.update({value.name: why for value in results})

    def proved(self, node: Node, result: Value) -> Rounded:
        """Return what is proved of the first output of a node.

        Raises:
            NoBoundError: nothing is.
        """
        if not all(value.name in self.held for value in node.inputs if value is not None and value.constant is None):
            raise NoBoundError("it does not depend on one float32 input alone")
        if node.op not in ROUNDED:
            raise NoBoundError("nothing is known of how accurately it is computed")
        if result.row_size() is None or result.causes:
            raise NoBoundError("its rows are not proved to be apart, or have no known size")
        found = ROUNDED[node.op](self, node, result)
        if not reachable(found.size):
            raise NoBoundError("its numbers may overflow float32")
        return found

    def error(self, output: str) -> Affine:
        """Return how far a row of an output may be from the exact one.

        Raises:
            NoBoundError: nothing is proved; the sentence names the operator.
        """
        if output not in self.held:
            raise NoBoundError(self.causes.get(output, f"{output!r} does not depend on one float32 input"))
        return self.held[output].error

    def of(self, value: Value) -> Rounded:
        """Return what is proved of a tensor.

        Raises:
            NoBoundError: nothing is.
        """
        if value.name not in self.held:
            raise NoBoundError(f"its input {value.name!r} is a constant")
        return self.held[value.name]


def settled(node: Node, given: Sequence[Value], result: Value) -> bool:
    """Say whether every runtime makes the same constant: of numbers that it moves or takes as they are, or of none but whole ones."""
    if node.op == "Cast" and any(value.floating for value in given):
        return result.floating
    return node.op in SETTLED or not any(value.floating for value in [*given, result])


def gamma(terms: int) -> float:
    """Return ``k u / (1 - k u)`` for a sum of ``terms`` float32 terms.

    Raises:
        NoBoundError: there are too many terms for the bound to hold.
    """
    if terms * UNIT >= 0.5:
        raise NoBoundError(f"a sum of {terms} terms has no useful float32 error bound")
    return terms * UNIT / (1 - terms * UNIT) * UP


def reachable(size: Affine) -> bool:
    """Say whether a number is sure not to overflow: it is no longer than the row."""
    return size.slope * REACH + size.offset < LARGEST


def entries(value: Value) -> int:
    """Return the numbers in a row."""
    return math.prod(value.row_size() or ())


def length(array: Array) -> float:
    """Return the norm of all entries, rounded up."""
    return float(np.linalg.norm(array.astype(np.float64))) * (1 + array.size * 2.0**-52) * UP


def unwidened(known: Roundings, node: Node, result: Value) -> Rounded:
    """Return what is proved of the first input, whose rows a constant must not widen.

    Raises:
        NoBoundError: it does.
    """
    if node.input().shape != result.shape:
        raise NoBoundError("its constant widens the rows")
    return known.of(node.input())


def linear(x: Rounded, sigma: float, absolute: float, *, terms: int, bias: float, outputs: int) -> Rounded:
    """Return what is left after ``W x + b``: ``sigma`` bounds the norm of W, ``absolute`` that of ``|W|``, ``bias`` that of b."""
    sums = x.size.times(absolute) + Affine(0.0, bias)
    if not reachable(sums):
        raise NoBoundError("its sums may overflow float32")
    return x.through(sigma, sums.times(gamma(terms)) + Affine(0.0, TINY * outputs), bias)


def affine(known: Roundings, node: Node, result: Value) -> Rounded:
    """Gemm with constant weights and no factors of its own."""
    weight, outputs = node.constant(1), entries(result)
    if node.attribute("alpha", 1.0) != 1 or node.attribute("beta", 1.0) != 1:
        raise NoBoundError("its factors alpha and beta are rounded in no certain order")
    bias = length(np.broadcast_to(node.constant(2), (1, outputs))) if node.present(2) else 0.0
    absolute = matrix_norms(np.abs(weight))[1]
    return linear(
        known.of(node.input()), node.layers[-1].sigma_upper, absolute, terms=weight.size // outputs + 2, bias=bias, outputs=outputs
    )


def convolution(known: Roundings, node: Node, result: Value) -> Rounded:
    """Conv and ConvTranspose; with a border of copied pixels before it, the two are one map, and copying is exact."""
    kernel, outputs = node.constant(1), entries(result)
    border = framed(node, kernel.ndim - 2)
    x = known.of(node.input() if border is None else border.image)
    group = int(node.attribute("group", 1))
    terms = kernel[:, 0].size // group if node.op == "ConvTranspose" else kernel[0].size
    pixels = math.prod(int(d) for d in convolved_shape(node)[2:])
    bias = length(node.constant(2)) * math.sqrt(pixels) * UP if node.present(2) else 0.0
    absolute = convolution_norms(node, np.abs(kernel), border)[1]
    return linear(x, node.layers[-1].sigma_upper, absolute, terms=terms + 2, bias=bias, outputs=outputs)


def shifted(known: Roundings, node: Node, result: Value) -> Rounded:
    """Sub of a constant: one rounding, and room for another."""
    constant = length(np.broadcast_to(node.constant(1), (1, *(result.row_size() or ()))))
    x = unwidened(known, node, result)
    return x.through(1.0, (x.size + Affine(0.0, constant)).times(gamma(2)) + Affine(0.0, TINY * entries(result)), constant)


def scaled(known: Roundings, node: Node, result: Value) -> Rounded:
    """Mul by a constant: one rounding, and room for another."""
    factor = float(np.abs(node.constant(1).astype(np.float64)).max())
    return stretched(unwidened(known, node, result), factor, factor, result)


def leaky(known: Roundings, node: Node, result: Value) -> Rounded:
    """LeakyRelu: one rounding on one side."""
    alpha = abs(float(node.attribute("alpha", 0.01)))
    return stretched(known.of(node.input()), max(1.0, alpha), alpha, result)


def stretched(x: Rounded, norm: float, factor: float, result: Value) -> Rounded:
    """Return entries of slope ``norm`` at most, of which those that are rounded are products with ``factor`` at most."""
    return x.through(norm, x.size.times(factor * gamma(2)) + Affine(0.0, TINY * entries(result)))


def moved(known: Roundings, node: Node, result: Value) -> Rounded:
    """Entries are moved, left out or repeated: exact."""
    return known.of(node.input()).through(math.sqrt(gather_repeats(node)) * UP if node.op == "Gather" else 1.0)


def chosen(known: Roundings, node: Node, result: Value) -> Rounded:
    """The largest or smallest of entries, their negative parts cut off, or as they are: exact, and no longer."""
    return known.of(node.input())


def padded(known: Roundings, node: Node, result: Value) -> Rounded:
    """Pad with copies of the image's own pixels, or zeros: exact."""
    if node.attribute("mode", b"constant") == b"constant" and any(np.ravel(node.option("value", 2, 0.0))):
        raise NoBoundError("it pads with other numbers than 0")
    copies = pad(replace(node, inputs=(replace(node.input(), bound=1.0), *node.inputs[1:]))).bound
    return known.of(node.input()).through(copies)


def joined(known: Roundings, node: Node, result: Value) -> Rounded:
    """Concat: squares add up, but for the larger and the smaller of the same pairs, which are the pairs in another order."""
    parts = [known.of(node.input(place)) for place in range(len(node.inputs))]
    if len(parts) == 2 and sorted_pair(*(node.input(place).maker for place in (0, 1))):
        return parts[0]
    root = math.sqrt(len(parts)) * UP
    return Rounded(*(Affine(max(a.slope for a in side), max(a.offset for a in side)).times(root) for side in
                     ([p.size for p in parts], [p.error for p in parts])))  # fmt: skip


def sorted_pair(a: Node | None, b: Node | None) -> bool:
    """Say whether two nodes give the larger and the smaller of the same pairs of entries."""
    if a is None or b is None or {a.op, b.op} != {"ReduceMax", "ReduceMin"} or a.input() is not b.input():
        return False
    axes = reduced_axes(a)
    return len(axes) == 1 and axes == reduced_axes(b) and (a.input().shape or ())[axes[0]] == 2


ROUNDED: dict[str, Callable[[Roundings, Node, Value], Rounded]] = {
    **dict.fromkeys(sorted(KEEPS_ROWS), moved),
    **dict.fromkeys(["Identity", "ReduceMax", "ReduceMin", "Relu", "TopK"], chosen),
    **dict.fromkeys(["Conv", "ConvTranspose"], convolution),
    "Concat": joined,
    "Gemm": affine,
    "LeakyRelu": leaky,
    "Mul": scaled,
    "Pad": padded,
    "Sub": shifted,
}
"""What each operator does; of one that is not here nothing is proved. Exact ones choose or move numbers."""
SETTLED = {*KEEPS_ROWS, "Abs", "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Identity", "Neg", "Shape", "Size", "Tile"}
"""Operators that make the same constant in every runtime."""
