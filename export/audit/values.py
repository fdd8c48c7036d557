"""What is known of one tensor while the graph is walked, and arithmetic that rounds up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.audit.formulas import Term, X
from export.audit.intervals import Interval
from specnorm_core.bounds import up

if TYPE_CHECKING:
    from export.audit.node import Node

Array = NDArray[Any]
Dim = int | str
"""A size, or a name for one that is free; equal names are equal sizes."""
Shape = tuple[Dim, ...]

MOST_COORDINATES = 2**20


class NoBoundError(Exception):
    """No bound is known past this node; the sentence says why. ``rows``: the operator still keeps rows apart."""

    def __init__(self, why: str, *, rows: bool = False) -> None:
        super().__init__(why)
        self.rows = rows


def unforeseen(error: Exception) -> str:
    """Return the reason that an error which no rule expects leaves a node without a bound, in one line."""
    return " ".join(f"the rule could not follow it ({type(error).__name__}: {error})".split())


@dataclass(frozen=True)
class Coordinates:
    """A tensor whose entry ``e`` is a function of the entry ``index[e]`` alone of the same row of ``origin``, with slopes ``<= weight[e]``.

    ``through`` names these functions: two tensors with equal ``origin`` and ``through`` have equal entries where their index is equal
    (``""``: the function is the identity).
    """

    origin: str
    bound: float
    index: NDArray[np.int64]
    weight: NDArray[np.float64]
    through: str = ""

    def lipschitz(self) -> float:
        """Return the bound of this tensor: entries that repeat one entry of the origin add up in squares."""
        if not self.index.size:
            return 0.0
        largest, repeats = float(self.weight.max()), int(np.bincount(self.index.ravel()).max())
        if repeats == 1 or (self.weight == 1).all():
            return times(self.bound, times(largest, root(float(repeats))))
        norm = math.sqrt(float(np.bincount(self.index.ravel(), weights=np.square(self.weight).ravel()).max()))
        return times(self.bound, norm * (1 + 2.0**-50 * (self.index.size + 4)))

    def distinct(self) -> bool:
        """Say whether no entry of the origin is met twice."""
        return len(np.unique(self.index)) == self.index.size


@dataclass(frozen=True)
class Formula:
    """A tensor whose entry ``e`` is ``term`` of the entry ``e`` of ``origin``, a tensor of the same shape."""

    origin: "Value"
    term: Term


@dataclass(frozen=True)
class Value:
    """One tensor.

    Args:
        name: of the tensor.
        shape: None where not even the number of axes is known.
        floating: it holds floating-point numbers.
        constant: its value, where it does not depend on the inputs.
        bound: Lipschitz constant from all float inputs, stacked; infinite: none is known, ``causes`` says why.
        causes: the nodes that stand in the way of a bound.
        rows: proved that axis 0 is the batch and row ``i`` depends on row ``i`` of the inputs alone.
        chain: the bound is a plain product along one path.
        coordinates: where the entries come from, after operators that only move them.
        sizes: the numbers in it, where it is an integer vector (or scalar) of sizes of other tensors, free ones by name.
        maker: the node that computes it.
        formula: how its entries follow from those of an earlier tensor.
        limits: every entry lies between these two, whatever the inputs (within the box that they are declared to lie in).
        channels: the same for each place on axis 1, where the inputs are in a box.
        notes: what the bound leaves out.
    """

    name: str
    shape: Shape | None
    floating: bool = True
    constant: Array | None = None
    bound: float = 0.0
    causes: tuple[str, ...] = ()
    rows: bool = False
    chain: bool = True
    coordinates: Coordinates | None = None
    sizes: tuple[Dim, ...] | None = None
    maker: "Node | None" = None
    formula: Formula | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)
    channels: Interval | None = None
    notes: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether it does not depend on the float inputs."""
        return self.bound == 0.0

    @cached_property
    def range(self) -> tuple[float, float]:
        """Limits of its entries; of a constant, its smallest and largest."""
        if self.constant is None or not self.constant.size or self.constant.dtype.kind not in "fiub":
            return self.limits
        return float(self.constant.min()), float(self.constant.max())

    @property
    def magnitude(self) -> float:
        """The largest magnitude that an entry may have."""
        return max(abs(self.range[0]), abs(self.range[1]))

    def described(self) -> Formula:
        """Return its formula, that of the tensor itself where it has none."""
        return self.formula or Formula(self, X)

    def row_size(self) -> tuple[int, ...] | None:
        """Return the shape of one row, where rows are proved and their size is known."""
        if not self.rows or not self.shape:
            return None
        sizes = tuple(d for d in self.shape[1:] if isinstance(d, int))
        return sizes if len(sizes) == len(self.shape) - 1 else None

    def traced(self) -> Coordinates | None:
        """Return the coordinates, those of the tensor itself where it was not moved yet; None where rows are not proved or too long."""
        sizes = self.row_size()
        if self.coordinates is not None or sizes is None or math.prod(sizes) > MOST_COORDINATES:
            return self.coordinates
        index = np.arange(math.prod(sizes), dtype=np.int64).reshape(sizes)
        return Coordinates(self.name, self.bound, index, np.ones(sizes))

    def with_coordinates(self, coordinates: Coordinates) -> "Value":
        """Return this value with the coordinates and the bound that follows from them."""
        return replace(self, coordinates=coordinates, bound=coordinates.lipschitz())


def times(a: float, b: float) -> float:
    """Return ``a b``, rounded up; exact where a factor is 0 or 1."""
    if a == 0 or b == 0:
        return 0.0
    if a == 1 or b == 1:
        return a * b
    return up(a * b)


def plus(a: float, b: float) -> float:
    """Return ``a + b``, rounded up; exact where a term is 0."""
    return a + b if a == 0 or b == 0 else up(a + b)


def root(a: float) -> float:
    """Return the square root, rounded up; exact for 0 and 1."""
    return a if a in (0.0, 1.0) else up(math.sqrt(a))


def hypotenuse(bounds: Sequence[float]) -> float:
    """Return ``sqrt(sum of squares)``, rounded up; exact where only one term is not 0."""
    terms = [bound for bound in bounds if bound]
    if len(terms) < 2:
        return terms[0] if terms else 0.0
    total = 0.0
    for term in terms:
        total = plus(total, times(term, term))
    return root(total)
