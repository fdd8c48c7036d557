"""The spectral layers under Opacus: ``register()`` once, and ``PrivacyEngine.make_private`` trains them in all its modes.

Opacus is an extra, ``specnorm[privacy]``; nothing else of this package imports it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from specnorm_core import per_sample
from specnorm_core.layers import SpectralLayer
from specnorm_core.per_sample.base import Rule

SPECTRAL: dict[type[nn.Module], Rule] = {kind: rule for kind, rule in per_sample.RULES.items() if issubclass(kind, SpectralLayer)}


def register() -> None:
    """Tell Opacus of the spectral layers: of gradients for its mode ``hooks``, of norms for ``ghost``, and of a way for ``functorch``.

    Call it before ``make_private``; twice is harmless. Opacus's functorch mode works on a copy of each layer that it makes once and moves
    to no device, where (u, v) would be those of the first step: a spectral layer gives it a function of its own, on the layer itself.
    So do layers that have no rule, such as ``OrthogonalLinear``, in every mode.
    """
    register_grad_sampler(list(SPECTRAL))(gradients)
    register_norm_sampler(list(SPECTRAL))(norms)
    # A property with a setter: what Opacus puts there is dropped.
    SpectralLayer.ft_compute_sample_grad = property(vectorised, _drop, _drop)  # type: ignore[attr-defined]  # Opacus's name, on its behalf


def gradients(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return per-sample gradients, as Opacus's grad samplers do."""
    return per_sample.gradients(layer, activations[0], backprops)


@torch.no_grad()
def norms(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return the norms of each parameter's per-sample gradients, as Opacus's norm samplers do; rounded up in the type of ``backprops``."""
    squares = per_sample.squares(layer, activations[0], backprops)
    return {parameter: _rounded_up(each.sqrt(), backprops.dtype) for parameter, each in squares.items()}


def _rounded_up(norm: Tensor, dtype: torch.dtype) -> Tensor:
    return (norm * (1 + torch.finfo(dtype).eps)).to(dtype)


def vectorised(layer: SpectralLayer) -> Any:
    """Return what Opacus's functorch mode calls for the per-sample gradients of ``layer``: ``vmap(grad)`` of the layer as it is now."""
    bare = _Bare(layer)

    def loss(parameters: dict[str, Tensor], x: Tensor, g: Tensor) -> Tensor:
        return torch.sum(functional_call(bare, parameters, (x[None],)) * g[None])

    def samples(parameters: Iterable[Tensor], x: Tensor, g: Tensor) -> list[Tensor]:
        if not len(x):  # Poisson sampling draws such a batch now and then, which vmap cannot take
            return [parameter.new_zeros(0, *parameter.shape) for parameter in parameters]
        named = dict(zip((name for name, _ in bare.named_parameters()), parameters, strict=True))
        return list(vmap(grad(loss), in_dims=(None, 0, 0))(named, x, g).values())

    return samples


class _Bare(nn.Module):
    """A layer without its hooks, which Opacus would have called again."""

    def __init__(self, layer: SpectralLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        y: Tensor = self.layer.forward(x)
        return y


def _drop(layer: SpectralLayer, function: Any = None) -> None:
    """Take nothing."""
