"""Gradients of single samples: themselves, their norms, and their weighted sum, from what a layer took in and the gradient of its output.

The norms and the sum never store one gradient per sample; the norms are rounded up, so that a clipped gradient is one.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from specnorm_core.layers import SpectralConv1d, SpectralConv2d, SpectralConv3d, SpectralConvTranspose2d, SpectralEmbedding, SpectralLinear
from specnorm_core.per_sample.base import UNIT, Rule
from specnorm_core.per_sample.convolutions import Convolution, TransposedConvolution
from specnorm_core.per_sample.embeddings import Embedding, SpectralLookup
from specnorm_core.per_sample.linear import Linear, SpectralDense
from specnorm_core.per_sample.normalisations import GroupNorm, LayerNorm

RULES: dict[type[nn.Module], Rule] = {
    SpectralLinear: SpectralDense(),
    SpectralConv1d: Convolution(),
    SpectralConv2d: Convolution(),
    SpectralConv3d: Convolution(),
    SpectralConvTranspose2d: TransposedConvolution(),
    SpectralEmbedding: SpectralLookup(),
    nn.Linear: Linear(),
    nn.Conv1d: Convolution(),
    nn.Conv2d: Convolution(),
    nn.Conv3d: Convolution(),
    nn.ConvTranspose2d: TransposedConvolution(),
    nn.Embedding: Embedding(),
    nn.LayerNorm: LayerNorm(),
    nn.GroupNorm: GroupNorm(),
}
"""The rule of each kind of layer; a subclass may compute something else, so it needs a rule of its own."""

__all__ = ["RULES", "Rule", "gradients", "norms", "rule", "squared_norms", "squares", "weighted_sum"]


@torch.no_grad()
def gradients(layer: nn.Module, x: Tensor, g: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return each sample's gradient of every trainable parameter of ``layer``, ``(B, *parameter.shape)``.

    Args:
        layer: one of ``RULES``.
        x: what it took in, ``(B, ...)``.
        g: the gradient of what it put out, ``(B, ...)``.

    Raises:
        ValueError: no rule for a layer with trainable parameters, or x and g do not have one entry per sample each.
    """
    found: dict[nn.Parameter, Tensor] = {}
    with _exactly(layer):
        for name, parameter in _trainable(layer, x, g):
            if not len(x):
                found[parameter] = parameter.new_zeros(0, *parameter.shape)
            elif name == "bias":
                found[parameter] = rule(layer).bias_samples(layer, g)
            else:
                found[parameter] = rule(layer).weight_samples(layer, x, g)
    return found


@torch.no_grad()
def squares(layer: nn.Module, x: Tensor, g: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return the squared norm of each sample's gradient of every trainable parameter: ``(B,)``, float64, rounded up.

    Never below what exact arithmetic gives for the numbers in x, g and the layer. Arguments and errors as of :func:`gradients`.
    """
    found: dict[nn.Parameter, Tensor] = {}
    with _exactly(layer):
        for name, parameter in _trainable(layer, x, g):
            if not len(x):
                found[parameter] = torch.zeros(0, dtype=torch.float64, device=g.device)
            elif name == "bias":
                found[parameter] = rule(layer).bias_squares(layer, g)
            else:
                found[parameter] = rule(layer).weight_squares(layer, x, g)
    return found


def squared_norms(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Return the squared norm of each sample's gradient over all trainable parameters of ``layer``: the sum of :func:`squares`."""
    total = torch.zeros(len(x), dtype=torch.float64, device=g.device)
    for each in squares(layer, x, g).values():
        total += each
    return total * (1 + 4 * UNIT)


def norms(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Return the norm of each sample's gradient, ``(B,)``, float64, rounded up: the root of :func:`squared_norms`."""
    return squared_norms(layer, x, g).sqrt() * (1 + 4 * UNIT)


@torch.no_grad()
def weighted_sum(layer: nn.Module, x: Tensor, g: Tensor, weights: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return ``sum_b weights[b] grad_b`` of every trainable parameter, in the parameter's own type, without per-sample gradients.

    Args:
        layer: as x and g, see :func:`gradients`.
        x: what it took in.
        g: the gradient of what it put out.
        weights: ``(B,)``.
    """
    if weights.shape != (len(x),):
        raise ValueError(f"weights must have one entry for each of {len(x)} samples, got shape {tuple(weights.shape)}")
    found: dict[nn.Parameter, Tensor] = {}
    with _exactly(layer):
        for name, parameter in _trainable(layer, x, g):
            if not len(x):
                found[parameter] = torch.zeros_like(parameter)
                continue
            own = weights.to(g.dtype)
            total = rule(layer).bias_sum(layer, g, own) if name == "bias" else rule(layer).weight_sum(layer, x, g, own)
            found[parameter] = total.to(parameter.dtype)
    return found


def rule(layer: nn.Module, name: str = "") -> Rule:
    """Return the rule for ``layer``; ``name`` is what the sentence calls it.

    Raises:
        ValueError: there is none; the sentence lists the layers that have one.
    """
    found = RULES.get(type(layer))
    if found is None:
        known = ", ".join(sorted(kind.__name__ for kind in RULES))
        called = f"layer {name!r}: " if name else ""
        raise ValueError(f"{called}no rule for the per-sample gradients of a layer {type(layer).__name__}; there is one for {known}")
    return found


def _exactly(layer: nn.Module) -> torch.autocast:
    """Return a context without autocast, which would round the products."""
    device = next((parameter.device.type for parameter in layer.parameters()), "cpu")
    return torch.autocast(device, enabled=False)


def _trainable(layer: nn.Module, x: Tensor, g: Tensor) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what is trained of ``layer``, and check that its rule knows it."""
    if len(x) != len(g):
        raise ValueError(f"x has {len(x)} samples and g {len(g)}")
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            rule(layer)
            if name not in {"weight", "bias"}:
                raise ValueError(f"the parameter {name!r} of a layer {type(layer).__name__} is none that its rule knows")
            yield name, parameter
