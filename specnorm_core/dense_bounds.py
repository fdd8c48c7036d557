"""Rigorous bounds of the largest singular value of a matrix: numpy and scipy only, never torch.

For a matrix ``A`` the Gram matrix ``G = fl(A*A)`` (n x n, the smaller side) differs from ``A*A`` by at most ``gamma(m) |A|*|A|`` entry by
entry, so by ``gamma(m) norm_F(A)^2`` in norm; what lies above its eigenvalues is proved by `Ceiling`. The matrix is scaled by a power of
two first, which is exact, so scale does not matter. Where that takes too long, blocks of columns are proved one by one, whose squares add
up, and at last the norms of rows and columns have to do: looser, and said to be.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import blas

from specnorm_core.ceiling import Ceiling
from specnorm_core.deadline import NEVER, Deadline
from specnorm_core.ritz import rayleigh_lower, ritz
from specnorm_core.roundoff import TINY, Real, Stack, gamma, scaled, unscale

LARGEST = 16384  # beyond it the Gram matrix takes more than 2 GiB, and blocks of columns have to do
CHUNKED = 2**22  # float32 matrices of more entries are never held in float64 as a whole
ENTRIES = 2**22  # of a slice of one
BLOCKS = (1, 8, 64)
"""Into how many blocks of columns a matrix is cut, until the time is enough."""
MIRRORED = 256
"""Rows of a Gram matrix that are copied from its other half at once."""
STEPS = {np.dtype(np.float32): 48, np.dtype(np.float64): 96}
"""Of Lanczos for an estimate, by the precision of its products."""


class Proved(NamedTuple):
    """A proved upper bound, and what makes it looser than it might be, which is empty where nothing does."""

    value: float
    looser: str = ""


def sigma_upper(matrix: ArrayLike) -> float:
    """Return a number that is proved to be at least the largest singular value of ``matrix``.

    Every rounding error is accounted for, so the promise is about the very bits of ``matrix``. The bound is loose by
    about ``n^2 2^-52`` (2e-10 at n = 1024) and zero for a zero matrix.

    Args:
        matrix: ``(m, n)``; float16, bfloat16 and float32 are widened, which is exact.

    Raises:
        ValueError: not a matrix of finite real numbers, or empty.
    """
    return prove_sigma(matrix).value


def prove_sigma(matrix: ArrayLike, deadline: Deadline = NEVER) -> Proved:
    """Return what `sigma_upper` does, in time; a looser bound where that is not enough.

    Raises:
        ValueError: as above.
    """
    tall = Tall.of(matrix)
    if tall.zero:
        return Proved(0.0)
    crude = tall.crude()
    for count in BLOCKS:
        if -(-tall.A.shape[1] // count) > LARGEST:
            continue
        found = blocks_upper(tall, count, crude, deadline.attempt())
        if found is not None:
            looser = f"{count} blocks of columns, one by one" if count > 1 and found < crude else ""
            return Proved(unscale(min(found, crude), tall.exponent), looser)
    return Proved(unscale(crude, tall.exponent), "norms of rows and columns")


def blocks_upper(tall: "Tall", count: int, crude: float, deadline: Deadline) -> float | None:
    """Return a bound from those of ``count`` blocks of columns; None where the time is not enough."""
    n = tall.A.shape[1]
    width = -(-n // count)
    found: list[float] = []
    for first in range(0, n, width):
        G = tall.gram(slice(first, min(n, first + width)), deadline, first / n, width / n)
        if G is None:
            return None
        found.append(gram_upper(G[None], tall.A.shape[0], crude))
    return found[0] if len(found) == 1 else math.sqrt(sum(bound * bound for bound in found)) * (1 + gamma(count))


@dataclass(frozen=True)
class Tall:
    """A matrix with no more columns than rows, which is ``2^exponent`` times what its slices hold, whose largest entry is in [1/2, 1)."""

    A: NDArray[Any]
    exponent: int
    shift: int
    """What is left to scale by in a slice: a large matrix is never copied as a whole."""
    zero: bool

    @classmethod
    def of(cls, matrix: ArrayLike) -> "Tall":
        """Return a matrix on its longer side.

        Raises:
            ValueError: not a matrix of finite real numbers, or empty.
        """
        raw = np.asarray(matrix)
        if raw.size > CHUNKED and raw.dtype == np.float32 and raw.ndim == 2:
            largest = max(float(raw.max()), -float(raw.min()))
            if not math.isfinite(largest):
                raise ValueError("the weight holds a number that is not finite")
            A, exponent = raw, math.frexp(largest)[1]
            shift, zero = exponent, largest == 0
        else:
            A, exponent = scaled(matrix)
            shift, zero = 0, not A.any()
        return cls(A if A.shape[0] >= A.shape[1] else A.T, exponent, shift, zero)

    def slices(self, columns: slice = slice(None)) -> Iterator[Real]:
        """Yield the matrix in float64, some rows at a time."""
        A = self.A[:, columns]
        rows = max(1, ENTRIES // A.shape[1])
        for first in range(0, len(A), rows):
            part = np.asarray(A[first : first + rows], dtype=np.float64)
            yield np.ldexp(part, -self.shift) if self.shift else part

    def crude(self) -> float:
        """Return the smaller of the Frobenius norm and ``sqrt(norm_1 norm_inf)``, rounded up."""
        m, n = self.A.shape
        columns, rows, squares = np.zeros(n), 0.0, 0.0
        for part in self.slices():
            magnitude = np.abs(part)
            columns += magnitude.sum(axis=0)
            rows = max(rows, float(magnitude.sum(axis=1).max()))
            squares += float(np.vdot(part, part))
        return float(min(math.sqrt(squares), math.sqrt(float(columns.max()) * rows)) * (1 + gamma(m * n)) + m * n * TINY)

    def gram(self, columns: slice, deadline: Deadline, done: float, share: float) -> Real | None:
        """Return the Gram matrix of some columns, which is the ``share`` after ``done`` of the work; None where the time is not enough."""
        width = columns.stop - columns.start
        G = np.zeros((width, width), order="F")
        rows = 0
        for part in self.slices(columns):
            upright = part.flags.f_contiguous
            G = blas.dsyrk(1.0, part if upright else part.T, beta=1.0, c=G, trans=int(upright), overwrite_c=1)  # the upper half alone
            rows += len(part)
            if deadline.behind(done + share * rows / len(self.A)):
                return None
        for first in range(0, width, MIRRORED):
            block = slice(first, first + MIRRORED)
            G[block, :first] = G[:first, block].T
            G[block, block] = np.triu(G[block, block]) + np.triu(G[block, block], 1).T
        return G.T

    def image(self, v: Real) -> Real:
        """Return ``A v`` in float64, scaled as the slices are."""
        return np.concatenate([part @ v for part in self.slices()])

    def frobenius(self) -> float:
        """Return the Frobenius norm of the slices, not rounded up."""
        return math.sqrt(sum(float(np.vdot(part, part)) for part in self.slices()))


def sigma_estimate(matrix: ArrayLike, deadline: Deadline = NEVER) -> float:
    """Return a lower bound of the largest singular value of ``matrix``, as a rule within 1e-9 of it.

    It is ``norm(W v) / norm(v)`` at a Lanczos vector, less what rounding may have added. The vector of a large matrix comes from products
    in float32, its quotient from float64.

    Raises:
        ValueError: not a matrix of finite real numbers, or empty.
    """
    tall = Tall.of(matrix)
    if tall.zero:
        return 0.0
    A, kind = tall.A, tall.A.dtype

    def gram(x: Real) -> Real:
        y = np.ldexp(A @ x.astype(kind), -tall.shift)
        return np.asarray(np.ldexp(A.T @ y, -tall.shift), dtype=np.float64)

    v = ritz(gram, A.shape[1], steps=STEPS[kind], deadline=deadline)[1]
    return unscale(rayleigh_lower(tall.image(v), v, tall.frobenius() * (1 + gamma(A.size)), A.shape[1]), tall.exponent, direction=0.0)


def stack_upper(stack: Stack) -> float:
    """Return an upper bound of the largest singular value among the matrices ``stack[i]``.

    Args:
        stack: ``(count, m, n)``, real or complex, largest entry of magnitude about one (which keeps underflow harmless).
    """
    A = stack if stack.shape[1] >= stack.shape[2] else stack.swapaxes(1, 2)
    crude = crude_upper(A)
    if crude == 0.0 or A.shape[2] > LARGEST:
        return crude
    return gram_upper(A.conj().swapaxes(1, 2) @ A, A.shape[1], crude)


def gram_upper(G: Stack, m: int, crude: float) -> float:
    """Return an upper bound of the largest singular value among matrices of ``m`` rows whose Gram matrices were computed as ``G[i]``.

    ``crude`` is another one, which is returned where nothing less can be proved.
    """
    ceiling, n = Ceiling(crude), G.shape[1]
    ceiling.lift(G)
    squares = ceiling.trace * (1 + gamma(m + n)) + n * m * TINY
    return ceiling.bound(gamma(m) * squares + 8 * n * (m + n) * TINY)


def crude_upper(A: Stack) -> float:
    """Return the smaller of the Frobenius norm and ``sqrt(norm_1 norm_inf)``, largest over the stack, rounded up."""
    magnitude = np.abs(A)
    slack = 1 + gamma(A.shape[1] * A.shape[2])
    frobenius = np.sqrt(np.sum(magnitude * magnitude, axis=(1, 2)))
    schur = np.sqrt(magnitude.sum(axis=1).max(axis=1) * magnitude.sum(axis=2).max(axis=1))
    return float(np.minimum(frobenius, schur).max()) * slack + float(A.shape[1] * A.shape[2]) * TINY
