"""Dense layers on rows, where the output is at hand: per-sample norms without a product of matrices, and a sum that is one.

``h_b = scale (g_b x_b' - lam_b u v')`` with ``lam_b = <g_b, y_b - bias> / (scale sigma)``, which is zero for a plain layer and in the mode
``simplified``. Its norm is that of exactly what is summed, whatever rounding did to lam: ``lam`` is a number that both share.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from specnorm_core.functional import CONSTRAINTS
from specnorm_core.layers import SpectralLinear
from specnorm_core.privacy.ahead import blocks

UNIT = 2.0**-53

Rows = NDArray[np.float64]
"""A number for each row of a batch."""

Take = Callable[[nn.Parameter, slice, Tensor], None]
"""What takes a part of a sum: the parameter, the slice of its first axis, and the part, which is the taker's until it
returns."""


def rows(values: Tensor) -> Rows:
    """Return ``values (B,)`` as numbers of rows."""
    return values.numpy(force=True).astype(np.float64)


@dataclass(frozen=True)
class Dense:
    """One layer in one pass: ``x (B, n)``, ``g (B, m)``; without lam ``(B,)`` the second term is left out.

    Numbers of rows are float64 arrays of NumPy: there are many small operations on them, of which each costs PyTorch microseconds.
    """

    layer: nn.Linear | SpectralLinear
    x: Tensor
    g: Tensor
    scale: float = 1.0
    lam: Rows | None = None

    def squares(self) -> Rows:
        """Return each row's squared norm over the trainable parameters, ``(B,)``, rounded up."""
        x, g = (rows(torch.linalg.vector_norm(part, dim=1, dtype=torch.float64)) ** 2 for part in (self.x, self.g))
        terms = self.x.shape[1] + self.g.shape[1] + 16
        found = np.zeros_like(g)
        if self.layer.weight.requires_grad:
            found = x * g
            if self.lam is not None and isinstance(self.layer, SpectralLinear):
                u, v = self.layer.pair
                cross = rows(torch.mv(self.g, u)) * rows(torch.mv(self.x, v))
                size = np.sqrt(found) + np.abs(self.lam)
                # <g, u> and <x, v> are in the layer's own type; any order of summation errs by at most so much.
                error = 2 * terms * torch.finfo(self.x.dtype).eps
                found += self.lam * (self.lam - 2 * cross) + error * size**2
            found *= self.scale**2
        if self.layer.bias is not None and self.layer.bias.requires_grad:
            found += g
        return found * (1 + 16 * terms * UNIT)

    def weighted_sum(self, weights: Rows, take: Take) -> None:
        """Hand ``sum_b weights_b h_b`` to ``take``: a product of matrices, and a rank-one term, for some rows of the weight at a time."""
        trained = {name: parameter for name, parameter in self.layer.named_parameters(recurse=False) if parameter.requires_grad}
        if "bias" in trained:
            take(trained["bias"], slice(None), torch.from_numpy(weights).to(self.g) @ self.g)
        if "weight" not in trained:
            return
        own, g, x = weights * self.scale, self.g, self.x
        if self.lam is not None and isinstance(self.layer, SpectralLinear):
            # One row more on both sides is the rank-one term: a pass over the result less than to add it.
            u, v = self.layer.pair
            own, g, x = np.append(own, -(own @ self.lam)), torch.cat([g, u[None]]), torch.cat([x, v[None]])
        g = (g * torch.from_numpy(own).to(g)[:, None]).T
        slices = list(blocks(self.layer.weight.shape))
        scratch = g.new_empty(slices[0].stop, x.shape[1])
        for part in slices:
            take(trained["weight"], part, torch.mm(g[part], x, out=scratch[: part.stop - part.start]))


def dense(layer: nn.Module, x: Tensor, g: Tensor, y: Tensor) -> Dense | None:
    """Return ``layer``'s pass, from its input, the gradient of its output and that output; None where this form is not for it."""
    if x.ndim != 2 or not isinstance(layer, nn.Linear | SpectralLinear) or not x.dtype == g.dtype == y.dtype == layer.weight.dtype:
        return None
    if x.dtype not in {torch.float32, torch.float64} or type(layer) not in {nn.Linear, SpectralLinear}:
        return None
    if not isinstance(layer, SpectralLinear):
        return Dense(layer, x, g)
    norm = layer.latest_sigma()
    sigma = float(norm)
    scale = float(CONSTRAINTS[layer.constraint](norm, layer.target))
    if layer.gradient_mode == "simplified":
        return Dense(layer, x, g, scale)
    lam = rows(torch.linalg.vecdot(g, y))
    if layer.bias is not None:
        lam -= rows(torch.mv(g, layer.bias.detach()))
    lam /= scale * sigma
    if layer.constraint == "cap" and sigma <= layer.target:
        lam *= 0.0
    return Dense(layer, x, g, scale, lam)
