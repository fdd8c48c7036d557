"""What sigma adds to the gradient of a weight: ``scale (G - lam S)`` with ``lam = <G, W> / sigma`` and ``S = d sigma / dW``.

``G`` is the gradient of the raw map, before it is scaled; ``scale`` is that of the constraint. Sigma, S and the pair depend on the
weight alone, so all samples share them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specnorm_core.functional import CONSTRAINTS
from specnorm_core.layers import SpectralLayer


@dataclass(frozen=True)
class Correction:
    """The constants of one layer.

    Args:
        weight: W.
        sigma: ``<u, A v>``, a scalar.
        scale: what the constraint multiplies W with, a scalar.
        direction: S, of W's shape; None where sigma counts as a constant (gradient mode ``simplified``).
        active: one, or zero where a cap leaves the weight alone; a scalar.
    """

    weight: Tensor
    sigma: Tensor
    scale: Tensor
    direction: Tensor | None
    active: Tensor | None

    def lam(self, inner: Tensor) -> Tensor:
        """Return lam for ``inner = <G, W>``."""
        lam = inner / self.sigma
        return lam if self.active is None else lam * self.active

    def bend(self, gradients: Tensor) -> Tensor:
        """Return ``scale (G - lam S)`` for the raw gradients ``G (..., *W.shape)``; changes ``gradients`` in place."""
        if self.direction is not None:
            flat = gradients.view(-1, self.weight.numel())
            flat.addr_(self.lam(flat @ self.weight.reshape(-1)), self.direction.reshape(-1), alpha=-1)
        return gradients.mul_(self.scale)


def active(layer: SpectralLayer) -> Tensor | None:
    """Return one where sigma reaches the output and zero where it does not, as the forward pass decides it; None: it always does."""
    return (layer.sigma() > layer.target).double() if layer.constraint == "cap" else None


def scale_of(layer: SpectralLayer) -> Tensor:
    """Return what the forward pass multiplies W with, a scalar."""
    return CONSTRAINTS[layer.constraint](layer.sigma(), layer.target)


def correction(layer: nn.Module, dtype: torch.dtype) -> Correction | None:
    """Return the constants of ``layer`` in ``dtype``, or None for a plain one."""
    if not isinstance(layer, SpectralLayer):
        return None
    u, v = (part.to(dtype) for part in layer.pair)
    with torch.enable_grad():
        weight = layer.weight.detach().to(dtype, copy=True).requires_grad_()
        sigma = (u * layer.forward_map(v, weight)).sum()
        full = layer.gradient_mode == "full"
        direction = torch.autograd.grad(sigma, weight)[0] if full else None
    weight, sigma = weight.detach(), sigma.detach()
    within = active(layer) if full else None
    scale = CONSTRAINTS[layer.constraint](sigma, layer.target)
    return Correction(weight, sigma, scale, direction, None if within is None else within.to(dtype))
