"""Lanczos iteration in numpy: a good guess of the largest singular value, and a lower bound of it. Never torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specnorm_core.deadline import NEVER, Deadline
from specnorm_core.roundoff import TINY, Real, gamma


def start(n: int) -> Real:
    """Return the start vector: random, so never orthogonal to a leading vector by design, and always the same."""
    return np.random.default_rng(n).standard_normal(n)


def ritz(
    apply: Callable[[NDArray[Any]], NDArray[Any]],
    n: int,
    *,
    steps: int,
    kind: type[np.number[Any]] = np.float64,
    deadline: Deadline = NEVER,
) -> tuple[float, NDArray[Any]]:
    """Return the largest Ritz value of a Hermitian operator on ``n`` numbers, and its unit vector.

    Lanczos with full reorthogonalisation; ends early once the residual shows the value to about 1e-12, or once the time is up.
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
        last = k == steps - 1 or beta[k] <= 1e-14 * np.abs(alpha[: k + 1]).max() or deadline.passed()
        if last or k % 8 == 7:
            T = np.diag(alpha[: k + 1]) + np.diag(beta[:k], 1) + np.diag(beta[:k], -1)
            values, vectors = np.linalg.eigh(T)
            if last or beta[k] * abs(vectors[-1, -1]) <= 1e-7 * values[-1]:
                return float(values[-1]), basis[: k + 1].T @ vectors[:, -1]
        q = (w / beta[k]).astype(kind, copy=False)
    raise AssertionError("unreachable: the last step returns")


def rayleigh_lower(image: NDArray[Any], v: NDArray[Any], frobenius: float, operations: int) -> float:
    """Return ``norm(A v) / norm(v)`` less all rounding; ``operations`` products were summed into each entry of ``image = A v``."""
    length = float(np.linalg.norm(v))
    if length == 0.0:
        return 0.0
    slack = gamma(operations) * frobenius + TINY
    return max(0.0, (float(np.linalg.norm(image)) / length - slack) * (1 - gamma(image.size + v.size)))
