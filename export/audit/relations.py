"""Which tensors are linear in which: one row of a tensor as a sum of matrices times the rows of a few others.

A *system* starts at a tensor whose Lipschitz bound is known (an input, or the output of an operator that is not followed here) and adds a
variable for every function that acts on single numbers with slopes in ``[a, b]``: ``f(z) = a z + (b - a) p(z)``, where ``p`` has slopes in
``[0, 1]``. A pair that is sorted is such a function too: ``max(u, v) = v + relu(u - v)``, ``min(u, v) = u - relu(u - v)``. Constants that
are added fall out, since only differences of two inputs matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from export.audit.values import Value
from specnorm_core.roundoff import UNIT, gamma

Matrix = sparse.csr_array
Real = NDArray[np.float64]

WIDEST = 2048
"""Most numbers in a row that is followed, and most variables of a system."""
MOST_ENTRIES = 2**23
"""Most matrix entries that are held for a graph."""


@dataclass
class System:
    """A start, and the functions behind it: ``inputs[i]`` is what variable ``i + 1`` is a function of.

    ``starts[i]`` are the multipliers of a certificate (see `chain`) that is no worse than the product of the norms up to there.
    """

    bound: float
    sizes: list[int]
    inputs: list["Expression"] = field(default_factory=list)
    starts: list[Real] = field(default_factory=list)
    pairs: dict[tuple[Any, ...], int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Expression:
    """A row as ``sum of parts[i] @ variable i``; each true matrix is within ``errors[i]`` of its part in norm. Equal means the same."""

    system: System
    shape: tuple[int, ...]
    parts: Mapping[int, Matrix]
    errors: Mapping[int, float]

    @property
    def entries(self) -> int:
        """How many numbers the matrices hold."""
        return sum(int(part.nnz) for part in self.parts.values())

    def select(self, index: NDArray[np.int64]) -> "Expression":
        """Return the entries at ``index``; one that is met twice counts twice in the errors."""
        flat = index.ravel()
        most = float(np.bincount(flat).max(initial=1)) if flat.size else 1.0
        errors = {i: error * most for i, error in self.errors.items()}
        return Expression(self.system, index.shape, {i: part[flat] for i, part in self.parts.items()}, errors)

    def behind(self, matrix: Any, shape: tuple[int, ...], off: float = 0.0) -> "Expression":
        """Return ``matrix`` times this row, where the true matrix is within ``off`` of ``matrix`` in norm."""
        wide = sparse.csr_array(matrix)
        size, parts, errors = norm(wide) + off, {}, {}
        for i, part in self.parts.items():
            exact = is_selection(part.T) or is_selection(wide)
            parts[i] = sparse.csr_array(wide @ part)
            rounding = 0.0 if exact else gamma(wide.shape[1]) * norm(wide) * norm(part)
            errors[i] = (rounding + off * norm(part) + size * self.errors[i]) * (1 + 2.0**-40)
        return Expression(self.system, shape, parts, errors)

    def plus(self, other: "Expression", sign: float = 1.0) -> "Expression":
        """Return the sum, or with ``sign = -1`` the difference, of two rows of one system."""
        parts, errors = dict(self.parts), dict(self.errors)
        for i, part in other.parts.items():
            held = parts.get(i)
            parts[i] = sign * part if held is None else sparse.csr_array(held + sign * part)
            rounding = 0.0 if held is None else 2 * UNIT * (norm(held) + norm(part))
            errors[i] = (errors.get(i, 0.0) + other.errors[i] + rounding) * (1 + 2.0**-40)
        return Expression(self.system, self.shape, parts, errors)


def norm(matrix: Matrix) -> float:
    """Return the Frobenius norm, rounded up."""
    return float(np.sqrt(np.sum(np.square(matrix.data)))) * (1 + gamma(int(matrix.nnz))) if matrix.nnz else 0.0


def is_selection(matrix: Any) -> bool:
    """Say whether every row has at most one entry and that is ±1, so that ``matrix @ B`` rounds nothing."""
    rows = sparse.csr_array(matrix)
    return bool(np.diff(rows.indptr).max(initial=0) <= 1 and (np.abs(rows.data) == 1).all())


class Relations:
    """What is followed while a graph is walked: expressions by tensor."""

    def __init__(self) -> None:
        self.held: dict[str, Expression] = {}
        self.entries = 0

    def expression(self, value: Value) -> Expression | None:
        """Return the row of ``value``, which starts a system of its own where it is not known otherwise."""
        if value.name in self.held:
            return self.held[value.name]
        shape = value.row_size()
        size = int(np.prod(shape, dtype=np.int64)) if shape is not None else 0
        if shape is None or not 0 < size <= WIDEST or value.constant is not None or not 0 < value.bound < np.inf:
            return None
        found = Expression(System(value.bound, [size]), shape, {0: sparse.csr_array(sparse.eye_array(size))}, {0: 0.0})
        self.held[value.name] = found
        return found

    def apply(
        self, x: Expression | None, low: Real | float, high: Real | float, guess: float, key: tuple[Any, ...] = ()
    ) -> Expression | None:
        """Return ``f(x)`` for an entrywise ``f`` with slopes in ``[low, high]``; ``guess`` is a Lipschitz bound of ``x``.

        Functions of one ``key`` are one variable. Keys hold expressions by identity, never by a name that a file may give twice.
        """
        if x is None:
            return None
        system, size = x.system, int(np.prod(x.shape))
        number = system.pairs.get(key) if key else None
        if number is None:
            if sum(system.sizes) + size > WIDEST or not np.isfinite(guess) or guess <= 0:
                return None
            number = len(system.sizes)
            system.sizes.append(size)
            system.inputs.append(x)
            system.starts.append(np.broadcast_to(first_multipliers(low, high, guess / system.bound), x.shape).ravel())
            if key:
                system.pairs[key] = number
        span = np.broadcast_to(np.asarray(high, dtype=np.float64) - low, x.shape).ravel()
        through = sparse.csr_array(sparse.diags_array(span))
        bent = Expression(
            x.system, x.shape, {number: through}, {number: 2 * UNIT * float(np.abs(span).max()) if (span != 1).any() else 0.0}
        )
        slope = np.broadcast_to(np.asarray(low, dtype=np.float64), x.shape).ravel()
        return bent if not slope.any() else scaled(x, slope).plus(bent)


def first_multipliers(low: Real | float, high: Real | float, guess: float) -> Real:
    """Return ``t`` with ``2 t p (z - p) <= (s^2 z^2 - f(z)^2) / (s guess)^2``, ``s`` the largest slope: the product's own certificate."""
    steepest = float(np.max(np.maximum(np.abs(low), np.abs(high))))
    span = np.maximum(np.asarray(high, dtype=np.float64) - low, 1e-3 * steepest)
    return np.asarray(span / (steepest * guess**2))


def scaled(x: Expression, factor: Real, off: float = 0.0) -> Expression:
    """Return ``factor`` times ``x``, entry by entry."""
    return x.behind(sparse.diags_array(factor), x.shape, off)
