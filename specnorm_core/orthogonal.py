"""A dense layer whose weight is made orthonormal: every singular value is 1, so no direction of the input loses its margin."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specnorm_core import functional
from specnorm_core.functional import GradientMode
from specnorm_core.layers import SpectralLinear

ITERATIONS = 12
"""Enough for singular values down to 2 % of the largest; smaller ones end below 1, which a bound may."""


def bjorck(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Return the orthonormal polar factor of ``matrix (m, n)`` to the accuracy of ``iterations`` steps ``A <- A (3 I - A'A) / 2``.

    Björck, Bowie 1971; the Newton–Schulz iteration. Each step sends a singular value s to ``s (3 - s^2) / 2``, which is at most 1 on
    [0, 2] and has a fixed point at 1 that it reaches quadratically; small ones grow by 3/2. The columns end orthonormal, or the rows
    where there are fewer rows. Differentiable; its own gradient is that of the steps taken.

    Args:
        matrix: with a norm of at most sqrt(3): divide by sigma first.
        iterations: steps.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    a = matrix.mT if wide else matrix
    for _ in range(iterations):
        a = torch.addmm(a, a, a.mT @ a, beta=1.5, alpha=-0.5)
    return a.mT if wide else a


class OrthogonalLinear(SpectralLinear):
    """``y = x Q' c + b`` with Q the orthonormal polar factor of ``W / sigma(W)``, by Björck iterations.

    Weight and state dict are those of the plain layer; it starts orthogonal. The forward pass is pure: sigma comes from the cached (u, v)
    of the spectral layers. The gradient passes through every iteration, which keeps ``iterations`` copies of the smaller Gram matrix and
    of the weight until the backward pass.

    Args:
        in_features: n.
        out_features: m.
        bias: whether a bias is added.
        iterations: Björck steps.
        gradient_mode: ``full``, or ``simplified``: sigma in the division held constant, which changes next to nothing here, as the polar
            factor does not depend on the scale of W.
        target: c, above 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        iterations: int = ITERATIONS,
        gradient_mode: GradientMode = "full",
        target: float = 1.0,
    ) -> None:
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        super().__init__(in_features, out_features, bias, gradient_mode=gradient_mode, target=target)
        self.constraint = "orthogonal"
        self.iterations = iterations
        nn.init.orthogonal_(self.weight)
        self.rederive()

    def orthonormal(self) -> Tensor:
        """Return Q, ``(m, n)``, in float32 or wider: what the forward pass multiplies with."""
        weight = self.weight.float() if self.weight.dtype.itemsize < 4 else self.weight
        sigma = functional.GRADIENTS[self.gradient_mode](torch.dot(self.pair[0], torch.mv(weight, self.pair[1])))
        return bjorck(weight / sigma, self.iterations)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x (..., n)``."""
        self._follow()
        with torch.autocast(x.device.type, enabled=False):
            weight = self.orthonormal() * self.target
        return F.linear(x, weight.to(self.weight.dtype), self.bias)

    def extra_repr(self) -> str:
        """Return sizes and options."""
        return f"{super().extra_repr()}, iterations={self.iterations}"
