"""Dense layers on rows, where the output is at hand: per-sample norms without a product of matrices, and a sum that is one.

``h_b = scale (g_b x_b' - lam_b u v')`` with ``lam_b = <g_b, y_b - bias> / (scale sigma)``, which is zero for a plain layer and in the mode
``simplified``. Its norm is that of exactly what is summed, whatever rounding did to lam: ``lam`` is a number that both share.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specnorm_core.functional import CONSTRAINTS
from specnorm_core.layers import SpectralLinear

UNIT = 2.0**-53


@dataclass(frozen=True)
class Dense:
    """One layer in one pass: ``x (B, n)``, ``g (B, m)``; without lam the second term is left out."""

    layer: nn.Linear | SpectralLinear
    x: Tensor
    g: Tensor
    scale: Tensor | None = None
    lam: Tensor | None = None

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.layer.named_parameters(recurse=False) if parameter.requires_grad}

    def squares(self) -> Tensor:
        """Return each row's squared norm over the trainable parameters, ``(B,)`` float64, rounded up."""
        long_x, long_g = (torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in (self.x, self.g))
        terms = self.x.shape[1] + self.g.shape[1] + 16
        found = torch.zeros_like(long_g)
        if "weight" in self.trained:
            found = (long_x * long_g).square()
            if self.lam is not None and isinstance(self.layer, SpectralLinear):
                u, v = self.layer.pair
                lam = self.lam.double()
                size = long_x * long_g + lam.abs()
                # <g, u> and <x, v> are in the layer's own type; any order of summation errs by at most so much.
                error = 2 * terms * torch.finfo(self.x.dtype).eps
                found = found + lam * (lam - 2 * torch.mv(self.g, u).double() * torch.mv(self.x, v)) + error * size.square()
            if self.scale is not None:
                found = found * self.scale.double().square()
        if "bias" in self.trained:
            found = found + long_g.square()
        return found * (1 + 16 * terms * UNIT)

    def weighted_sum(self, weights: Tensor) -> dict[nn.Parameter, Tensor]:
        """Return ``sum_b weights_b h_b``: one product of matrices, and a rank-one term."""
        trained, total = self.trained, dict[nn.Parameter, Tensor]()
        if "bias" in trained:
            total[trained["bias"]] = weights @ self.g
        if "weight" in trained:
            own = weights if self.scale is None else weights * self.scale
            total[trained["weight"]] = summed = (self.g * own[:, None]).T @ self.x
            if self.lam is not None and isinstance(self.layer, SpectralLinear):
                u, v = self.layer.pair
                summed.addr_(u * torch.dot(own, self.lam), v, alpha=-1)
        return total


def dense(layer: nn.Module, x: Tensor, g: Tensor, y: Tensor) -> Dense | None:
    """Return ``layer``'s pass, from its input, the gradient of its output and that output; None where this form is not for it."""
    if x.ndim != 2 or not isinstance(layer, nn.Linear | SpectralLinear) or not x.dtype == g.dtype == y.dtype == layer.weight.dtype:
        return None
    if x.dtype not in {torch.float32, torch.float64} or type(layer) not in {nn.Linear, SpectralLinear}:
        return None
    if not isinstance(layer, SpectralLinear):
        return Dense(layer, x, g)
    sigma = layer.sigma().detach()
    scale = CONSTRAINTS[layer.constraint](sigma, layer.target)
    if layer.gradient_mode == "simplified":
        return Dense(layer, x, g, scale)
    lam = (g * y).sum(dim=1)
    if layer.bias is not None:
        lam = lam - torch.mv(g, layer.bias.detach())
    lam = lam / (scale * sigma)
    if layer.constraint == "cap":
        lam = torch.where(sigma > layer.target, lam, 0.0)
    return Dense(layer, x, g, scale, lam)
