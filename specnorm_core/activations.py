"""Activations with a proved Lipschitz constant in L2, and the table of those constants.

A map that acts on each entry by itself has the constant ``sup |f'|``; one that permutes or reflects pieces of space, continuously, has 1.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class GroupSort(nn.Module):
    """Sort the features (axis 1) within groups of ``size``, largest first: a permutation, hence 1-Lipschitz and norm-preserving.

    Anil, Lucas, Grosse 2019 (Sorting out Lipschitz function approximation); ``size = 2`` is MaxMin.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"size must be at least 2, got {size}")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x (B, C, ...)`` with every group of ``size`` features sorted.

        Raises:
            ValueError: ``size`` does not divide C.
        """
        if x.shape[1] % self.size:
            raise ValueError(f"{x.shape[1]} features do not split into groups of {self.size}")
        pairs: Tensor = x.unflatten(1, (-1, self.size))
        return pairs.sort(dim=2, descending=True).values.flatten(1, 2)

    def extra_repr(self) -> str:
        """Return the size."""
        return f"size={self.size}"


class FullSort(nn.Module):
    """Sort all features (axis 1), largest first: ``GroupSort`` with one group (Anil, Lucas, Grosse 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x (B, C, ...)`` sorted along axis 1."""
        return x.sort(dim=1, descending=True).values


class Householder(nn.Module):
    """Reflect a pair of features at a learned line, where it lies on the far side of it: 1-Lipschitz and norm-preserving.

    Singla, Singla, Feizi 2022 (Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100). With ``v = (sin(t/2), -cos(t/2))`` a
    pair z stays where ``v'z > 0`` and becomes ``z - 2 v v'z`` elsewhere: ``|v'z|`` along v, unchanged across it. ``t = pi/2`` is MaxMin.
    Pair i is features i and i + C/2.

    Args:
        features: C, even; one angle is learned for each pair.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"Householder pairs its features: their number must be even, got {features}")
        self.angle = nn.Parameter(torch.full((features // 2,), math.pi / 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x (B, C, ...)`` with every pair reflected or not.

        Raises:
            ValueError: C is not the number of features that this was made for.
        """
        if x.shape[1] != 2 * len(self.angle):
            raise ValueError(f"this Householder takes {2 * len(self.angle)} features, got {x.shape[1]}")
        first, second = x.chunk(2, dim=1)
        half = (self.angle / 2).reshape(-1, *[1] * (x.ndim - 2))
        sine, cosine = half.sin(), half.cos()
        depth = 2 * torch.relu(cosine * second - sine * first)
        return torch.cat([first + depth * sine, second - depth * cosine], dim=1)

    def extra_repr(self) -> str:
        """Return the number of features."""
        return f"features={2 * len(self.angle)}"


def _softplus(layer: nn.Softplus) -> float:
    # Above its threshold PyTorch gives x itself: a jump of log1p(exp(-threshold)) / beta, which at the usual 20 is 2e-9 / beta.
    return 1.0 if layer.threshold >= 20 else math.inf


def _gelu(layer: nn.GELU) -> float:
    return {"none": 1.12891, "tanh": 1.129}[layer.approximate]


CONSTANTS: dict[type[nn.Module], Callable[[Any], float]] = {
    nn.CELU: lambda layer: 1.0 if layer.alpha > 0 else math.inf,
    nn.ELU: lambda layer: max(1.0, abs(layer.alpha)),
    FullSort: lambda layer: 1.0,
    nn.GELU: _gelu,
    GroupSort: lambda layer: 1.0,
    nn.Hardsigmoid: lambda layer: 0.1666667,
    nn.Hardswish: lambda layer: 1.5,
    nn.Hardtanh: lambda layer: 1.0,
    Householder: lambda layer: 1.0,
    nn.LeakyReLU: lambda layer: max(1.0, abs(layer.negative_slope)),
    nn.LogSigmoid: lambda layer: 1.0,
    nn.Mish: lambda layer: 1.0885,
    nn.PReLU: lambda layer: max(1.0, float(layer.weight.detach().abs().max())),
    nn.ReLU: lambda layer: 1.0,
    nn.ReLU6: lambda layer: 1.0,
    nn.SELU: lambda layer: 1.7580994,
    nn.SiLU: lambda layer: 1.09984,
    nn.Sigmoid: lambda layer: 0.25,
    nn.Softplus: _softplus,
    nn.Softsign: lambda layer: 1.0,
    nn.Tanh: lambda layer: 1.0,
}
"""The L2 Lipschitz constant of each activation, of the exact function; rounded up where it is no short decimal.

- GroupSort, FullSort: almost everywhere the Jacobian is a permutation matrix, and the map is continuous (Anil et al. 2019).
- Householder: the Jacobian is the identity or a reflection on each pair; both agree on the line between (Singla et al. 2022).
- ReLU, ReLU6, Hardtanh, LeakyReLU, PReLU: piecewise linear; the steepest piece.
- Tanh: ``1 - tanh^2 <= 1`` at 0. Sigmoid: ``s (1 - s) <= 1/4``. Softplus: its derivative is a sigmoid; LogSigmoid likewise.
- ELU, CELU, SELU: ``a exp(x) <= a`` left of 0 (CELU: ``exp(x / a) <= 1``); SELU: 1.0507009873554805 x 1.6732632423543772.
- Softsign: ``1 / (1 + |x|)^2``. Hardsigmoid: 1/6. Hardswish: 3/2, at the end of its quadratic piece.
- GELU: the derivative ``Phi(x) + x phi(x)`` is steepest where its own, ``phi(x) (2 - x^2)``, vanishes: at sqrt(2), 1.128904....
- SiLU: the derivative ``s (1 + x (1 - s))`` with ``s = sigmoid(x)`` has the derivative ``s (1 - s) (2 - x tanh(x / 2))``, which vanishes at
  the one r > 0 with ``r tanh(r / 2) = 2``; there ``s = (1 + 2 / r) / 2``, so the slope is ``(r + 2) / 4`` with r < 2.399359. At -x it is
  one less the slope at x.
- Mish and GELU's tanh form have no closed form. All four of these are proved by branch and bound in interval arithmetic, with a bound for
  what lies beyond the interval: ``tests/specnorm_core/test_activation_constants.py`` runs the proof, and sees that a constant lower by
  1e-5 has none.
"""


def lipschitz(activation: nn.Module) -> float:
    """Return the proved L2 Lipschitz constant of ``activation``; infinite where its options allow none.

    Raises:
        ValueError: it is not in the table, whose names the sentence lists.
    """
    if type(activation) not in CONSTANTS:
        known = ", ".join(sorted(kind.__name__ for kind in CONSTANTS))
        raise ValueError(f"no Lipschitz constant is known for {type(activation).__name__}; known are {known}")
    return CONSTANTS[type(activation)](activation)
