"""A number that is proved to lie above the eigenvalues of Hermitian matrices: a guess that Cholesky factorisations confirm.

An estimate errs on the low side, so nothing may be promised on it. Where the Cholesky factorisation of ``B = fl(t^2 I - G)`` runs to its
end, ``B + D`` is positive semidefinite for some ``D`` with ``norm(D) <= gamma(n + 1) / (1 - gamma(n + 1)) trace(B)`` (Higham 2002, theorem
10.3; Rump 2006), and ``B`` has one rounding per diagonal entry: so the largest eigenvalue of ``G`` is at most ``t^2`` and these two terms.
``gamma(k) = k u / (1 - k u)`` is taken for ``4 (k + 8)`` operations, which covers complex arithmetic, reciprocals in triangular solves and
any order of summation; it does not cover Strassen-like products, which no BLAS behind numpy uses. Numpy and scipy only, never torch.
"""

import math
from copy import copy
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from specnorm_core.ritz import ritz, start
from specnorm_core.roundoff import TINY, UNIT, Real, Stack, gamma, up

DENSE = 96  # up to this size LAPACK's eigenvalues cost less than Lanczos
BATCHED = 32  # up to this size numpy factorises a stack faster than one call per matrix does
HUGE = 1024  # above this size a matrix is factorised in place, without a second one for the factor
FIRST_MARGIN = 2.0**-33


class Ceiling:
    """A ``square`` above the eigenvalues of all matrices that it was lifted over, but for the rounding that `bound` adds.

    The matrices come stack by stack. One that lies below what was proved of an earlier one costs a factorisation and no search.
    """

    def __init__(self, crude: float) -> None:
        self.crude = crude
        """A bound of the singular values from elsewhere: beyond its square there is no point in going on."""
        self.square = 0.0
        self.trace = 0.0
        self.below = 0.0
        """How far a diagonal entry lies below 0, which only rounding brings about."""
        self.size = 1

    def copy(self) -> "Ceiling":
        """Return a ceiling that begins at what this one knows."""
        return copy(self)

    def join(self, other: "Ceiling") -> None:
        """Take over what another one was lifted over."""
        self.square, self.trace, self.below = max(self.square, other.square), max(self.trace, other.trace), max(self.below, other.below)

    def lift(self, G: Stack) -> bool:
        """Raise the square over ``G``, ``(count, n, n)``; False where ``crude`` is as good as anything that can be shown."""
        diagonal = np.einsum("inn->in", G).real.copy()
        self.size = G.shape[1]
        self.trace = max(self.trace, float(np.abs(diagonal).sum(axis=1).max()))
        self.below = max(self.below, -float(diagonal.min()))
        margin, effort = FIRST_MARGIN, 1
        while (failed := first_above(G, diagonal, self.square)) is not None:
            if margin >= 1.0:
                self.square = math.inf
                return False
            G, diagonal = G[failed:], diagonal[failed:]
            guess = leading_eigenvalue(G if len(G) == 1 or self.size <= BATCHED else G[:1], effort) * (1 + margin)
            if guess <= self.square:
                margin, effort = margin * 16, effort * 4
                guess = self.square * (1 + margin)
            self.square = max(guess, up(self.square))
            if not self.square < self.crude * self.crude:
                self.square = math.inf
                return False
        return True

    def bound(self, slack: float) -> float:
        """Return the bound of the singular values whose squares are eigenvalues of the matrices, computed with an error of ``slack``."""
        if not math.isfinite(self.square):
            return self.crude
        n = self.size
        largest = self.square + self.below
        excess = slack + UNIT * largest + gamma(n + 1) / (1 - gamma(n + 1)) * n * largest + 16 * n * n * TINY
        return min(self.crude, up(math.sqrt(up(self.square + excess * (1 + 2.0**-40)))))


def first_above(G: Stack, diagonal: Real, square: float) -> int | None:
    """Return a place before which ``square I - G[i]`` is shown to be positive semidefinite, and at which it is not; None: all are."""
    n = G.shape[1]
    if n == 1:
        above = np.flatnonzero(~(diagonal[:, 0] <= square))
        return int(above[0]) if len(above) else None
    if n > HUGE:
        return next((i for i in range(len(G)) if not runs_to_its_end(below(G[i], diagonal[i], square))), None)
    step = len(G) if n <= BATCHED else 1
    return next((i for i in range(0, len(G), step) if not factorise(below(G[i : i + step], diagonal[i : i + step], square))), None)


def below(G: Stack, diagonal: Real, square: float) -> Stack:
    """Return ``square I - G``, of one matrix or of a stack."""
    B = -G
    step = np.arange(G.shape[-1])
    B[..., step, step] = square - diagonal
    return B


def factorise(B: Stack) -> bool:
    """Say whether the Cholesky factorisation of every ``B[i]`` runs to its end with finite numbers; other threads go on meanwhile."""
    try:
        return bool(np.isfinite(np.einsum("inn->in", np.linalg.cholesky(B))).all())
    except np.linalg.LinAlgError:
        return False


def runs_to_its_end(B: NDArray[Any]) -> bool:
    """Say whether the Cholesky factorisation of ``B``, which is overwritten, runs to its end with finite numbers."""
    factorise = lapack.zpotrf if B.dtype == np.complex128 else lapack.dpotrf
    factor, info = factorise(B.T, lower=0, clean=0, overwrite_a=1)
    return int(info) == 0 and bool(np.isfinite(np.diagonal(factor)).all())


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
    return math.isfinite(c) and runs_to_its_end(shifted)


def leading_eigenvalue(G: Stack, effort: int) -> float:
    """Return a guess of the largest eigenvalue among the Hermitian matrices ``G[i]``; more ``effort``, better guess."""
    if G.shape[1] == 1:
        return float(G.real.max())
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
