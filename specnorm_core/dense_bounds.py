"""Rigorous bounds of the largest singular value of a matrix: numpy and scipy only, never torch.

An estimate errs on the low side, so nothing may be promised on it. Here an estimate is only a guess, which a proof then
confirms. For a matrix ``A`` with Gram matrix ``A*A`` (n x n, the smaller side) and a guess ``t``:

1. ``G = fl(A*A)`` differs from ``A*A`` by at most ``gamma(m) |A|*|A|`` entry by entry, so by ``gamma(m) norm_F(A)^2`` in norm.
2. ``B = fl(t^2 I - G)`` adds one rounding per diagonal entry.
3. Where the Cholesky factorisation of ``B`` runs to its end, ``B + D`` is positive semidefinite for some ``D`` with
   ``norm(D) <= gamma(n + 1) / (1 - gamma(n + 1)) trace(B)`` (Higham 2002, theorem 10.3; Rump 2006).

Hence ``sigma^2 <= t^2`` plus these three terms. ``gamma(k) = k u / (1 - k u)`` is taken for ``4 (k + 8)`` operations, which covers
complex arithmetic, reciprocals in triangular solves and any order of summation; it does not cover Strassen-like products,
which no BLAS behind numpy uses. The matrix is scaled by a power of two first, which is exact, so scale does not matter.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack

Real = NDArray[np.float64]
Stack = NDArray[np.float64] | NDArray[np.complex128]

UNIT = 2.0**-53
TINY = 2.0**-1022  # more than any one operation loses to underflow, flush-to-zero included
DENSE = 96  # up to this size LAPACK's eigenvalues cost less than Lanczos
LARGEST = 16384  # beyond it the Gram matrix takes more than 2 GiB, and the norms of rows and columns have to do
CHUNKED = 2**22  # float32 matrices of more entries are never held in float64 as a whole
ROWS = 1024  # of a slice
FIRST_MARGIN = 2.0**-33


def gamma(operations: int) -> float:
    """Return an upper bound of the relative error of ``operations`` roundings in a row, with room for complex arithmetic."""
    roundings = 4 * (operations + 8) * UNIT
    if roundings >= 0.5:
        raise ValueError(f"no error bound holds for {operations} operations in float64")
    return up(roundings / (1 - roundings))


def up(value: float) -> float:
    """Return the next float64 above ``value``: at least the exact result of the one operation that gave ``value``."""
    return math.nextafter(value, math.inf)


def sigma_upper(matrix: ArrayLike) -> float:
    """Return a number that is proved to be at least the largest singular value of ``matrix``.

    Every rounding error is accounted for, so the promise is about the very bits of ``matrix``. The bound is loose by
    about ``n^2 2^-52`` (2e-10 at n = 1024) and zero for a zero matrix.

    Args:
        matrix: ``(m, n)``; float16, bfloat16 and float32 are widened, which is exact.

    Raises:
        ValueError: not a matrix of finite real numbers, or empty.
    """
    raw = np.asarray(matrix)
    if raw.size > CHUNKED and raw.dtype == np.float32 and raw.ndim == 2:
        return chunked_upper(raw)
    A, exponent = scaled(matrix)
    if not A.any():
        return 0.0
    return unscale(stack_upper(A[None]), exponent)


def chunked_upper(matrix: NDArray[np.float32]) -> float:
    """Return what `sigma_upper` does, of a matrix that is too large to be held in float64: a slice of its rows at a time is."""
    A = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    exponent = checked_exponent(A)
    if exponent is None:
        return 0.0
    m, n = A.shape
    columns, rows, squares = np.zeros(n), 0.0, 0.0
    G = np.zeros((n, n) if n <= LARGEST else (0, 0))
    for part in chunks(A, exponent):
        magnitude = np.abs(part)
        columns += magnitude.sum(axis=0)
        rows = max(rows, float(magnitude.sum(axis=1).max()))
        squares += float(np.sum(part * part))
        if len(G):
            G += part.T @ part
    crude = min(math.sqrt(squares), math.sqrt(float(columns.max()) * rows)) * (1 + gamma(m * n)) + m * n * TINY
    return unscale(gram_upper(G[None], m, crude) if len(G) else crude, exponent)


def chunks(A: NDArray[np.float32], exponent: int) -> Iterator[Real]:
    """Yield slices of the rows of ``A`` in float64, times ``2^-exponent``."""
    for first in range(0, len(A), ROWS):
        yield np.ldexp(np.asarray(A[first : first + ROWS], dtype=np.float64), -exponent)


def checked_exponent(A: NDArray[np.float32]) -> int | None:
    """Return the exponent that brings the largest entry into [1/2, 1); None where all are zero.

    Raises:
        ValueError: a number is not finite.
    """
    largest = max(float(np.abs(A[first : first + ROWS]).max()) for first in range(0, len(A), ROWS))
    if not math.isfinite(largest):
        raise ValueError("the weight holds a number that is not finite")
    return math.frexp(largest)[1] if largest else None


def sigma_estimate(matrix: ArrayLike) -> float:
    """Return a lower bound of the largest singular value of ``matrix``, as a rule within 1e-9 of it.

    It is ``norm(W v) / norm(v)`` at a Lanczos vector, less what rounding may have added.

    Raises:
        ValueError: not a matrix of finite real numbers, or empty.
    """
    raw = np.asarray(matrix)
    if raw.size > CHUNKED and raw.dtype == np.float32 and raw.ndim == 2:
        return chunked_estimate(raw)
    A, exponent = scaled(matrix)
    if not A.any():
        return 0.0
    A = A if A.shape[0] >= A.shape[1] else A.T
    v = ritz(lambda x: A.T @ (A @ x), A.shape[1], steps=96)[1]
    return unscale(rayleigh_lower(A @ v, v, float(np.sqrt(np.sum(A * A))), A.shape[1]), exponent, direction=0.0)


def chunked_estimate(matrix: NDArray[np.float32]) -> float:
    """Return what `sigma_estimate` does: the vector comes from products in float32, its quotient from float64."""
    A = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    exponent = checked_exponent(A)
    if exponent is None:
        return 0.0

    def gram(x: Real) -> Real:
        y = np.ldexp(A @ x.astype(np.float32), -exponent)
        return np.asarray(np.ldexp(A.T @ y, -exponent), dtype=np.float64)

    v = ritz(gram, A.shape[1], steps=48)[1]
    image = np.concatenate([part @ v for part in chunks(A, exponent)])
    frobenius = math.sqrt(sum(float(np.sum(part * part)) for part in chunks(A, exponent)))
    return unscale(rayleigh_lower(image, v, frobenius, A.shape[1]), exponent, direction=0.0)


def scaled(matrix: ArrayLike) -> tuple[Real, int]:
    """Return ``matrix`` in float64 times ``2^-exponent``, largest entry in [1/2, 1), and the exponent."""
    return scaled_array(matrix, ndim=2)


def scaled_array(array: ArrayLike, ndim: int | None = None) -> tuple[Real, int]:
    """Return ``array`` in float64 times ``2^-exponent``, largest entry in [1/2, 1), and the exponent.

    Raises:
        ValueError: another number of dimensions than ``ndim``, empty, complex, not finite, or too wide for float64.
    """
    raw: NDArray[Any] = np.asarray(array)
    if ndim is not None and raw.ndim != ndim:
        raise ValueError(f"expected {ndim} dimensions, got shape {raw.shape}")
    if raw.size == 0:
        raise ValueError(f"an array of shape {raw.shape} is empty")
    if raw.dtype.kind == "c" or raw.dtype == np.longdouble:
        raise ValueError(f"expected real numbers of at most 64 bits, got {raw.dtype}")
    A = raw.astype(np.float64)
    if raw.dtype.kind in "iu" and np.abs(A).max() > 2.0**53:
        raise ValueError("integers above 2^53 have no exact float64")
    largest = float(np.abs(A).max())
    if not math.isfinite(largest):
        raise ValueError("the weight holds a number that is not finite")
    exponent = math.frexp(largest)[1]
    return np.asarray(np.ldexp(A, -exponent)), exponent


def unscale(value: float, exponent: int, direction: float = math.inf) -> float:
    """Return ``value * 2^exponent``, rounded towards ``direction`` where it leaves the range of normal numbers."""
    try:
        result = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf if direction > 0 else math.nextafter(math.inf, 0.0)
    return result if result >= TINY else math.nextafter(result, direction)


def stack_upper(stack: Stack) -> float:
    """Return an upper bound of the largest singular value among the matrices ``stack[i]``.

    Args:
        stack: ``(count, m, n)``, real or complex, largest entry of magnitude about one (which keeps underflow harmless).
    """
    A = stack if stack.shape[1] >= stack.shape[2] else stack.swapaxes(1, 2)
    m, n = A.shape[1:]
    crude = crude_upper(A)
    if crude == 0.0 or n > LARGEST:
        return crude
    return gram_upper(A.conj().swapaxes(1, 2) @ A, m, crude)


def gram_upper(G: Stack, m: int, crude: float) -> float:
    """Return an upper bound of the largest singular value among matrices of ``m`` rows whose Gram matrices were computed as ``G[i]``.

    ``crude`` is another one, which is returned where nothing less can be proved.
    """
    n = G.shape[1]
    diagonal = np.einsum("inn->in", G).real.copy()
    trace = float(diagonal.sum(axis=1).max()) * (1 + gamma(m + n)) + n * m * TINY
    margin, effort = FIRST_MARGIN, 1
    while margin < 1.0:
        square = leading_eigenvalue(G, effort) * (1 + margin)
        if square >= crude * crude:
            break
        if factorises(G, diagonal, square):
            largest = max(square, float(np.abs(square - diagonal).max()))
            excess = gamma(m) * trace + UNIT * largest + gamma(n + 1) / (1 - gamma(n + 1)) * n * largest + 8 * n * (m + n) * TINY
            return min(crude, up(math.sqrt(up(square + excess * (1 + 2.0**-40)))))
        margin, effort = margin * 16, effort * 4
    return crude


def crude_upper(A: Stack) -> float:
    """Return the smaller of the Frobenius norm and ``sqrt(norm_1 norm_inf)``, largest over the stack, rounded up."""
    magnitude = np.abs(A)
    slack = 1 + gamma(A.shape[1] * A.shape[2])
    frobenius = np.sqrt(np.sum(magnitude * magnitude, axis=(1, 2)))
    schur = np.sqrt(magnitude.sum(axis=1).max(axis=1) * magnitude.sum(axis=2).max(axis=1))
    return float(np.minimum(frobenius, schur).max()) * slack + float(A.shape[1] * A.shape[2]) * TINY


def factorises(G: Stack, diagonal: Real, square: float) -> bool:
    """Say whether the Cholesky factorisation of every ``square I - G[i]`` runs to its end with finite numbers."""
    B = -G
    step = np.arange(G.shape[1])
    B[:, step, step] = square - diagonal
    if len(B) == 1 and B.dtype == np.float64:  # without numpy's two copies, twice as fast
        factor, info = lapack.dpotrf(B[0].T, lower=0, clean=0, overwrite_a=1)
        return int(info) == 0 and bool(np.isfinite(np.diagonal(factor)).all())
    try:
        return bool(np.isfinite(np.linalg.cholesky(B)).all())
    except np.linalg.LinAlgError:
        return False


def proves_positive(B: Real, slack: float) -> bool:
    """Say whether it is proved that ``B + E`` is positive semidefinite for every symmetric ``E`` of norm at most ``slack``.

    The Cholesky factorisation of ``fl(B - c I)`` running to its end shows ``B - c I + D`` to be positive semidefinite with
    ``norm(D) <= gamma(n + 1) / (1 - gamma(n + 1)) trace(B) + u max|B_ii - c|`` (theorem as above, and the one rounding of the diagonal), so
    ``c`` is ``slack`` and those two terms.

    Args:
        B: ``(n, n)``, symmetric bit by bit, entries of magnitude about one or less (which keeps underflow harmless).
        slack: not negative.
    """
    n = len(B)
    diagonal = np.diagonal(B)
    largest = float(np.abs(diagonal).max(initial=0.0))
    c = slack + gamma(n + 1) / (1 - gamma(n + 1)) * n * largest + 16 * n * n * TINY
    c = (c + 2 * UNIT * (largest + c)) * (1 + 2.0**-40)
    shifted = B.copy()
    shifted[np.arange(n), np.arange(n)] = diagonal - c
    factor, info = lapack.dpotrf(shifted.T, lower=0, clean=0, overwrite_a=1)
    return math.isfinite(c) and int(info) == 0 and bool(np.isfinite(np.diagonal(factor)).all())


def leading_eigenvalue(G: Stack, effort: int) -> float:
    """Return a guess of the largest eigenvalue among the Hermitian matrices ``G[i]``; more ``effort``, better guess."""
    if len(G) > 8 * effort:
        G = G[most_promising(G, steps=12 * effort, keep=8 * effort)]
    if G.shape[1] <= DENSE:
        return float(np.linalg.eigvalsh(G)[:, -1].max())
    return max(ritz(partial(np.matmul, g), g.shape[0], steps=96 * effort, kind=g.dtype.type)[0] for g in G)


def most_promising(G: Stack, steps: int, keep: int) -> NDArray[np.intp]:
    """Return the places of the ``keep`` matrices whose power iterates grow most."""
    x = np.broadcast_to(start(G.shape[1])[None, :, None], (len(G), G.shape[1], 1)).astype(G.dtype)
    length = np.ones(len(G))
    for _ in range(steps):
        x = G @ x
        length = np.linalg.norm(x[:, :, 0], axis=1)
        x = x / np.where(length > 0, length, 1.0)[:, None, None]
    return np.argsort(length)[-keep:]


def start(n: int) -> Real:
    """Return the start vector: random, so never orthogonal to a leading vector by design, and always the same."""
    return np.random.default_rng(n).standard_normal(n)


def ritz(
    apply: Callable[[NDArray[Any]], NDArray[Any]], n: int, *, steps: int, kind: type[np.number[Any]] = np.float64
) -> tuple[float, NDArray[Any]]:
    """Return the largest Ritz value of a Hermitian operator on ``n`` numbers, and its unit vector.

    Lanczos with full reorthogonalisation; ends early once the residual shows the value to about 1e-12.
    """
    steps = min(steps, n)
    basis = np.zeros((steps, n), dtype=kind)
    alpha, beta = np.zeros(steps), np.zeros(steps)
    q = start(n).astype(kind)
    q /= np.linalg.norm(q)
    for k in range(steps):
        basis[k] = q
        w = apply(q)
        alpha[k] = np.vdot(q, w).real
        for _ in range(2):
            w = w - basis[: k + 1].T @ (basis[: k + 1].conj() @ w)
        beta[k] = np.linalg.norm(w)
        last = k == steps - 1 or beta[k] <= 1e-14 * np.abs(alpha[: k + 1]).max()
        if last or k % 8 == 7:
            T = np.diag(alpha[: k + 1]) + np.diag(beta[:k], 1) + np.diag(beta[:k], -1)
            values, vectors = np.linalg.eigh(T)
            if last or beta[k] * abs(vectors[-1, -1]) <= 1e-7 * values[-1]:
                return float(values[-1]), basis[: k + 1].T @ vectors[:, -1]
        q = w / beta[k]
    raise AssertionError("unreachable: the last step returns")


def rayleigh_lower(image: NDArray[Any], v: NDArray[Any], frobenius: float, operations: int) -> float:
    """Return ``norm(A v) / norm(v)`` less all rounding; ``operations`` products were summed into each entry of ``image = A v``."""
    length = float(np.linalg.norm(v))
    if length == 0.0:
        return 0.0
    slack = gamma(operations) * frobenius + TINY
    return max(0.0, (float(np.linalg.norm(image)) / length - slack) * (1 - gamma(image.size + v.size)))
