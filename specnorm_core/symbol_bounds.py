"""Bounds of the symbol of a convolution over a grid of frequencies: numpy and scipy only, never torch.

The symbol of a stride-1 convolution of blocks is ``W(w) = sum_j P_j exp(i w j)``. What its norm at ``w`` needs is the Gram matrix
``G(w) = W(w)* W(w) = sum_k R_k exp(i w k)`` with the lags ``R_k = sum_j P_j' P_{j+k}``, which are real and computed once: a frequency then
costs a sum of few matrices and one Cholesky factorisation.

Rounding: with ``S = sum_j |P_j|`` every entry of ``G(w)`` is a sum of products whose magnitudes add up to at most that of ``S'S``, so
``gamma`` of their number times ``norm_F(S)^2`` bounds the error in norm. Each phase is within ``64 u`` per axis (integers reduced exactly,
libm within 8 ulp).
"""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specnorm_core.ceiling import BATCHED, Ceiling
from specnorm_core.convolution import at
from specnorm_core.deadline import NEVER, Deadline
from specnorm_core.roundoff import TINY, UNIT, Real, Stack, gamma

PARTS = 4  # into which the frequencies are dealt, so that as many threads may take them and the bound is the same with any number
ENTRIES = 2**19  # complex numbers of the Gram matrices that a thread holds at once
MOST_LAGS = 2**24  # numbers that the lags may hold; beyond it each Gram matrix is a product of its own


def grid_upper(P: Real, grid: Sequence[int], crude: float, deadline: Deadline = NEVER) -> float | None:
    """Return an upper bound of the norm of the symbol at the frequencies ``2 pi k / grid``, largest over groups and frequencies.

    Args:
        P: ``(groups, rows, columns, *blocks)``.
        grid: frequencies per axis.
        crude: another bound, which is returned where nothing less can be proved.
        deadline: None is returned where it comes too early.
    """
    if P.shape[1] < P.shape[2]:  # the transpose has the same norms
        P = P.swapaxes(1, 2)
    groups, rows, columns = P.shape[:3]
    taps = math.prod(P.shape[3:])
    frequencies = shuffled(grid)
    lagged = Lags(P) if worth_lags(P, len(frequencies)) else Direct(P)
    chunk = max(1, (ENTRIES if columns <= BATCHED else max(ENTRIES // 4, 4 * columns**2)) // (groups * columns**2))
    chunks = [frequencies[first : first + chunk] for first in range(0, len(frequencies), chunk)]
    ceiling = Ceiling(crude)
    reached = lifted(ceiling, chunks, lambda some: lagged.gram(some, grid), deadline)
    if not reached:
        return None if reached is None else crude
    spread = float(np.square(np.abs(P).reshape(groups, rows, columns, taps).sum(axis=3)).sum(axis=(1, 2)).max()) * (1 + gamma(P.size))
    slack = 2 * (gamma(rows * taps) + gamma(2 * lagged.terms) + 128 * len(grid) * UNIT) * spread + 16 * columns * P.size * TINY
    return ceiling.bound(slack)


@dataclass
class Part:
    """Frequencies that one thread takes, how many of them are done, and whether it is no use to go on, or too late."""

    ceiling: Ceiling
    chunks: list[NDArray[np.intp]]
    done: int = 0
    useless: bool = False
    late: bool = False


def lifted(
    ceiling: Ceiling, chunks: Sequence[NDArray[np.intp]], gram: Callable[[NDArray[np.intp]], Stack], deadline: Deadline
) -> bool | None:
    """Lift a ceiling over all frequencies, in several threads; False: nothing less than what is known can be shown, None: not in time."""
    total, first = sum(map(len, chunks)), len(chunks[0])
    if not ceiling.lift(gram(chunks[0])):
        return False
    if deadline.behind(first / total):
        return None
    parts = [Part(ceiling.copy(), list(chunks[1 + place :: PARTS])) for place in range(min(PARTS, len(chunks) - 1))]

    def lift(part: Part) -> None:
        """Lift the ceiling of a part, as long as all parts together may still be of use."""
        for some in part.chunks:
            part.useless = not part.ceiling.lift(gram(some))
            part.done += len(some)
            part.late = deadline.behind((first + sum(other.done for other in parts)) / total)
            if any(other.late or other.useless for other in parts):
                return

    if parts:
        with ThreadPoolExecutor(min(len(parts), cores())) as threads:
            list(threads.map(lift, parts))
    for part in parts:
        ceiling.join(part.ceiling)
    if any(part.useless for part in parts):
        return False
    return None if any(part.late for part in parts) else True


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worth_lags(P: Real, frequencies: int) -> bool:
    """Say whether to compute lags costs less than the Gram matrix of every frequency does."""
    groups, rows, columns = P.shape[:3]
    taps, lags = math.prod(P.shape[3:]), math.prod(2 * e - 1 for e in P.shape[3:])
    lagged = taps * taps * rows + 2 * lags * frequencies
    direct = (4 * taps * rows / columns + 8 * rows) * frequencies
    return bool(lags * groups * columns**2 <= MOST_LAGS and lagged <= direct)


class Lags:
    """The Gram matrices of a symbol as trigonometric polynomials."""

    def __init__(self, P: Real) -> None:
        self.groups, self.columns, extent = P.shape[0], P.shape[2], P.shape[3:]
        places = list(itertools.product(*map(range, extent)))
        self.lags = np.array([k for k in itertools.product(*(range(1 - e, e) for e in extent)) if k >= (0,) * len(extent)]).reshape(
            -1, len(extent)
        )
        self.terms = 2 * len(self.lags)
        self.even, self.odd = (np.empty((len(self.lags), self.groups * self.columns**2)) for _ in range(2))
        blocks = {j: np.ascontiguousarray(P[at(j)]) for j in places}
        for number, k in enumerate(self.lags):
            R = np.zeros((self.groups, self.columns, self.columns))
            for j in places:
                other = tuple(int(a + b) for a, b in zip(j, k, strict=True))
                if other in blocks:
                    R += blocks[j].swapaxes(1, 2) @ blocks[other]
            self.even[number], self.odd[number] = (R + R.swapaxes(1, 2)).ravel(), (R - R.swapaxes(1, 2)).ravel()
        self.even[0] /= 2  # the lag 0 is its own opposite

    def gram(self, frequencies: NDArray[np.intp], grid: Sequence[int]) -> Stack:
        """Return ``(groups * frequencies, columns, columns)``."""
        phase = phases(self.lags, frequencies, grid)
        G = np.empty((len(frequencies), self.even.shape[1]), dtype=np.complex128)
        G.real = phase.real.T @ self.even
        G.imag = phase.imag.T @ self.odd
        return G.reshape(-1, self.columns, self.columns)


class Direct:
    """The Gram matrices of a symbol, each a product of its own."""

    def __init__(self, P: Real) -> None:
        self.shape = P.shape[:3]
        self.places = np.array(list(itertools.product(*map(range, P.shape[3:])))).reshape(-1, P.ndim - 3)
        self.flat = P.reshape(math.prod(self.shape), -1)
        self.terms = self.flat.shape[1]

    def gram(self, frequencies: NDArray[np.intp], grid: Sequence[int]) -> Stack:
        """Return ``(groups * frequencies, columns, columns)``."""
        phase = phases(self.places, frequencies, grid)
        symbol = (self.flat @ phase.real + 1j * (self.flat @ phase.imag)).reshape(*self.shape, -1)
        W = np.ascontiguousarray(symbol.transpose(0, 3, 1, 2)).reshape(-1, *self.shape[1:])
        return np.asarray(W.conj().swapaxes(1, 2) @ W)


def phases(places: NDArray[np.intp], frequencies: NDArray[np.intp], grid: Sequence[int]) -> NDArray[np.complex128]:
    """Return ``exp(2 pi i k j / grid)`` as ``(places, frequencies)``."""
    phase = np.ones((len(places), len(frequencies)), dtype=np.complex128)
    for axis, n in enumerate(grid):
        angle = 2 * np.pi * (np.outer(places[:, axis], frequencies[:, axis]) % n) / n
        phase *= np.cos(angle) + 1j * np.sin(angle)
    return phase


def shuffled(grid: Sequence[int]) -> NDArray[np.intp]:
    """Return the frequencies of a grid, ``(count, axes)``, in an order in which new records soon become rare.

    The kernel is real, so a frequency and its negative have the same norm: the last axis is run halfway.
    """
    halved = (*grid[:-1], grid[-1] // 2 + 1)
    order = np.random.default_rng(0).permutation(math.prod(halved))
    return np.stack(np.unravel_index(order, halved), axis=1)
