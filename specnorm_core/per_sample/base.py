"""What a rule is: how one kind of layer gets the gradients of its weight and its bias, sample by sample."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

UNIT = 2.0**-53
"""Rounding of one operation in float64, in which all norms are computed."""

CHUNK = 2**17
"""Numbers in float64 that a rule reads at a time, if one sample has not more: 1 MiB, which a processor keeps in its cache."""


def chunk(numbers: int) -> int:
    """Return how many rows of ``numbers`` each are taken at a time; at least one."""
    return max(1, CHUNK // max(1, numbers))


def norm(x: Tensor, dim: int | None = None) -> Tensor:
    """Return the L2 norm over ``dim``, or over all entries."""
    found: Tensor = torch.linalg.vector_norm(x, dim=dim)
    return found


class Rule(ABC):
    """One kind of layer; ``x (B, ...)`` is its input, ``g (B, ...)`` the gradient of its output."""

    @abstractmethod
    def bias_samples(self, layer: Any, g: Tensor) -> Tensor:
        """Return each sample's gradient of the bias: ``g`` summed over the positions of a sample."""

    @abstractmethod
    def weight_samples(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return each sample's gradient of the weight, ``(B, *weight.shape)``."""

    def bias_squares(self, layer: Any, g: Tensor) -> Tensor:
        """Return the squared norms of :meth:`bias_samples` in float64, rounded up."""
        g = g.double()
        sums = self.bias_samples(layer, g)
        sizes = sums if sums.numel() == g.numel() else self.bias_samples(layer, g.abs())
        return squares_of_sums(sums, sizes, terms=g[0].numel())

    @abstractmethod
    def weight_squares(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the squared norms of :meth:`weight_samples` in float64, rounded up."""

    def bias_sum(self, layer: Any, g: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of :meth:`bias_samples`, each with its weight."""
        return _sum(weights, self.bias_samples(layer, g))

    def weight_sum(self, layer: Any, x: Tensor, g: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of :meth:`weight_samples`, each with its weight."""
        return _sum(weights, self.weight_samples(layer, x, g))


def squares_of_sums(sums: Tensor, sizes: Tensor, *, terms: int) -> Tensor:
    """Return the squared norm of every ``sums[b]``, rounded up, where an entry is a sum whose terms' sizes add up to that of ``sizes``.

    Any order of summation errs by at most ``terms`` roundings of the sum of sizes; each term may have as many of its own.
    """
    margin = 8 * (terms + 8) * UNIT
    return (norm(sums.flatten(1), 1) + margin * norm(sizes.flatten(1), 1)).square().mul(1 + margin)


def _sum(weights: Tensor, samples: Tensor) -> Tensor:
    total: Tensor = torch.tensordot(weights, samples, dims=1)
    return total
