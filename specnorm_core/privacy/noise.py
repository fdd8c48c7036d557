"""Gaussian noise and Poisson sampling, from the system's cryptographic source or from a seed.

Floating-point noise has holes from which the sum under it can be read off (Mironov 2012). The secure source draws in float64, from 128
bits per pair, adds in float64, and only then rounds to a grid that does not depend on the data: each point of the grid stands for some
2^30 values of the draw. (Opacus adds four draws of float32 to the same end.)
"""

import math
import ssl
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**15
"""Values drawn at a time: what stays in a cache."""

GRID = 2.0**-22
"""Spacing of what is released, as a multiple of the next power of two above the noise's standard deviation."""


class Source(ABC):
    """Where noise and batches come from."""

    @abstractmethod
    def words(self, count: int) -> np.ndarray:
        """Return ``count`` random words of 64 bits, uint64."""

    @abstractmethod
    def add(self, values: Tensor, deviation: float) -> None:
        """Add ``N(0, deviation^2)`` to every entry of the contiguous ``values (N,)``, in place."""


class Secure(Source):
    """OpenSSL's generator (AES-256 in counter mode, seeded by the system): fit for cryptography, and never the same twice."""

    def words(self, count: int) -> np.ndarray:
        """Return ``count`` words."""
        return np.frombuffer(ssl.RAND_bytes(8 * count), dtype=np.uint64)

    def add(self, values: Tensor, deviation: float) -> None:
        """Add noise by Box and Muller, whose tails reach 9.3 deviations, and round the sum to the grid."""
        pairs = (len(values) + 1) // 2
        drawn = torch.from_numpy(self.words(2 * pairs).view(np.int64).astype(np.float64))
        radius, angle = drawn[:pairs], drawn[pairs:]
        radius.abs_().clamp_(min=0.5).mul_(2.0**-63).log_().mul_(-2 * deviation**2).sqrt_()
        sine = torch.sin(angle.mul_(math.pi * 2.0**-63)).mul_(radius)
        radius.mul_(angle.cos_())
        angle.copy_(sine)
        # Adding and taking off 1.5 * 2^52 spacings rounds a float64 to a multiple of the spacing.
        magic = 1.5 * 2.0**52 * GRID * 2.0 ** math.ceil(math.log2(deviation))
        values.copy_(drawn[: len(values)].to(values.device).add_(values).add_(magic).sub_(magic))


class Seeded(Source):
    """The same draws for the same numbers. Whoever knows these can take the noise off again: for tests, never for a model that leaves."""

    def __init__(self, *seed: int) -> None:
        self._words = np.random.Generator(np.random.SFC64(seed))
        self._noise = torch.Generator().manual_seed(int(self._words.integers(2**63)))

    def words(self, count: int) -> np.ndarray:
        """Return ``count`` words."""
        return self._words.integers(2**64, size=count, dtype=np.uint64)

    def add(self, values: Tensor, deviation: float) -> None:
        """Add one draw in float32, or the values' own type where that is wider."""
        drawn = torch.empty(len(values), dtype=torch.promote_types(values.dtype, torch.float32))
        values.add_(drawn.normal_(generator=self._noise).to(values.device), alpha=deviation)


@torch.no_grad()
def add_noise(values: Tensor, deviation: float, source: Source) -> Tensor:
    """Return ``values + N(0, deviation^2)``, in the memory of ``values`` where that is contiguous."""
    flat = values.contiguous().view(-1)
    if deviation > 0:
        for part in flat.split(CHUNK):
            source.add(part, deviation)
    return flat.view_as(values)


def poisson(count: int, rate: float, source: Source) -> Tensor:
    """Return the sorted indices of the rows that are drawn, each of ``count`` by itself with probability ``rate``; there may be none."""
    if rate >= 1:
        return torch.arange(count)
    drawn = source.words(count)
    return torch.from_numpy(np.flatnonzero(drawn < np.uint64(int(rate * 2.0**64))))
