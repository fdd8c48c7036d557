"""Gaussian noise and Poisson sampling, from the system's cryptographic source or from a seed.

Floating-point noise has holes from which the sum under it can be read off (Mironov 2012). So noise and sum meet on a grid that the data do
not touch: the noise is drawn in float64, from 64 bits or more, and rounded to it, each point standing for 2^33 values of the draw or more;
the sum is rounded to it by itself. Points add up exactly, so what is released is the rounding of a continuous draw around the rounded sum:
the guarantee of Gaussian noise, for a sum that one row moves by ``sqrt(entries)`` spacings more, which the clipping leaves room for.
"""

import math
import ssl
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specnorm_core.privacy.strips import Draws

FloatsT = TypeVar("FloatsT", Tensor, NDArray[Any])

CHUNK = 3 * 2**12
"""Values drawn at a time: what stays in a cache and is small beside a layer, of 32 bytes each."""

GRID = 2.0**-20
"""Spacing of the grid, as a multiple of the next power of two above the noise's standard deviation: float32 holds 16 of these exactly."""


def spacing(deviation: float) -> float:
    """Return the spacing of the grid for noise of this standard deviation, a power of two."""
    return GRID * 2.0 ** math.ceil(math.log2(deviation))


def to_grid(values: FloatsT, step: float) -> FloatsT:
    """Round ``values`` in place to the nearest multiples of ``step``, a power of two."""
    values *= 1 / step
    if isinstance(values, Tensor):
        values.round_()
    else:
        np.rint(values, out=values)
    values *= step
    return values


class Source(ABC):
    """Where noise and batches come from."""

    @abstractmethod
    def words(self, count: int) -> np.ndarray:
        """Return ``count`` random words of 64 bits, uint64."""

    @abstractmethod
    def fill(self, values: Tensor, deviation: float) -> None:
        """Put draws of ``N(0, deviation^2)`` into the contiguous ``values (N,)``, float32 or float64."""


class Secure(Source):
    """OpenSSL's generator (AES-256 in counter mode, seeded by the system): fit for cryptography, and never the same twice."""

    def words(self, count: int) -> np.ndarray:
        """Return ``count`` words."""
        return np.frombuffer(ssl.RAND_bytes(8 * count), dtype=np.uint64)

    def fill(self, values: Tensor, deviation: float) -> None:
        """Draw on the grid."""
        step, into = spacing(deviation), values.numpy()
        draws = Draws(self.words, deviation / step, min(CHUNK, len(into)))
        missing = [np.empty(0, dtype=np.intp)]
        for at in range(0, len(into), CHUNK):
            part = into[at : at + CHUNK]
            drawn, places = draws.common(len(part))
            np.rint(drawn, out=drawn)
            drawn *= step
            part[:] = drawn
            missing.append(places + at)
        places = np.concatenate(missing)
        into[places] = np.rint(draws.rare(len(places))) * step


class Seeded(Source):
    """The same draws for the same numbers. Whoever knows these can take the noise off again: for tests, never for a model that leaves."""

    def __init__(self, *seed: int) -> None:
        self._words = np.random.Generator(np.random.SFC64(seed))
        self._noise = torch.Generator().manual_seed(int(self._words.integers(2**63)))

    def words(self, count: int) -> np.ndarray:
        """Return ``count`` words."""
        return self._words.integers(2**64, size=count, dtype=np.uint64)

    def fill(self, values: Tensor, deviation: float) -> None:
        """Draw in the type of ``values``."""
        values.normal_(std=deviation, generator=self._noise)


def poisson(count: int, rate: float, source: Source) -> Tensor:
    """Return the sorted indices of the rows that are drawn, each of ``count`` by itself with probability ``rate``; there may be none."""
    if rate >= 1:
        return torch.arange(count)
    drawn = source.words(count)
    return torch.from_numpy(np.flatnonzero(drawn < np.uint64(int(rate * 2.0**64))))
