"""A dense layer whose weight is made orthonormal: every singular value is 1, so no direction of the input loses its margin."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specnorm_core import functional
from specnorm_core.functional import GradientMode
from specnorm_core.layers import SpectralLinear

ITERATIONS = 12
"""Enough for singular values down to 2 % of the largest; smaller ones end below 1, which a bound may."""
RETRACTION = 3
"""Björck steps after a step of the optimiser: singular values off by 0.4 end off by 1e-5, and what is left goes in the forward pass."""
LARGEST = 1.3
"""The norm above which the weight is scaled first: the steps converge below sqrt(3), and fast in the middle of that."""
EXACT = 1e-4
"""How far ``W'W`` may be from the identity, by entry, where one Björck step is as good as all: it squares the distance."""


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


def _norm_above(matrix: Tensor) -> Tensor:
    """Return a bound of the norm of ``matrix (m, n)``, at most ``min(m, n)^(1/16)`` times it: ``norm_inf((A'A)^4)^(1/8)``."""
    size: Tensor = torch.linalg.matrix_norm(matrix)
    a = matrix / size
    gram = a @ a.mT if a.shape[0] < a.shape[1] else a.mT @ a
    sums: Tensor = torch.linalg.matrix_power(gram, 4).abs().sum(dim=1)
    return size * sums.amax().pow(0.125)


class OrthogonalLinear(SpectralLinear):
    """``y = x Q' c + b`` with Q the orthonormal polar factor of ``W / sigma(W)``, by Björck iterations.

    Weight and state dict are those of the plain layer; it starts orthogonal. The forward pass is pure. After each step of the optimiser
    ``power_iteration`` (so ``fit`` and ``attach``) replaces W by its polar factor, which changes nothing that the layer computes: Q is
    the polar factor of both. At an orthonormal W one Björck step has the value *and* the gradient of the polar factor,
    ``dQ = dW - Q sym(Q' dW)``, so that a training step costs one; any other W takes ``iterations`` of them, through which the gradient
    passes.

    Args:
        in_features: n.
        out_features: m.
        bias: whether a bias is added.
        iterations: Björck steps.
        gradient_mode: ``full``, or ``simplified``: sigma in the division held constant, which changes next to nothing here, as the polar
            factor does not depend on the scale of W.
        target: c, above 0.
    """

    _exact = False

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

    @torch.no_grad()
    def advance(self, steps: int = 1) -> Self:
        """Replace the weight by its orthonormal polar factor, and step the power iteration; more ``steps`` come closer in both."""
        weight, retractions = self._wide(), max(RETRACTION, min(steps, self.iterations))
        # A step can be large and in a direction that (u, v) know nothing of: this takes a norm that is no estimate.
        self.weight.copy_(bjorck(weight / torch.clamp(_norm_above(weight) / LARGEST, min=1.0), retractions))
        self.refresh(steps)
        self._exact = True
        return self

    def refresh(self, steps: int = 1) -> Self:
        """Step the power iteration on (u, v)."""
        self._exact = self._orthonormal()
        super().refresh(steps)
        return self

    def rederive(self, steps: int = 20) -> Self:
        """Forget (u, v) and derive them from the weight, and see whether it is orthonormal.

        Raises:
            ValueError: the weight is empty, zero or not finite.
        """
        super().rederive(steps)
        weight = self._wide()
        gram = weight @ weight.mT if weight.shape[0] < weight.shape[1] else weight.mT @ weight
        self._exact = bool((gram - torch.eye(len(gram)).to(gram)).abs().amax() < EXACT)
        return self

    def _orthonormal(self) -> bool:
        """Return whether the weight, as it is now, is known to be orthonormal."""
        known = self._exact and isinstance(self.weight, nn.Parameter) and not torch.compiler.is_compiling()
        return known and not self.weight.is_inference() and self.weight._version == self._seen

    def orthonormal(self) -> Tensor:
        """Return Q, ``(m, n)``, in float32 or wider: what the forward pass multiplies with."""
        weight = self.weight.float() if self.weight.dtype.itemsize < 4 else self.weight
        if self._orthonormal():
            return bjorck(weight, 1)
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
