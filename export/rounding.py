"""An a-priori bound of the float32 rounding error of a folded network, proved for any order of summation.

The computed output differs from the exact one by at most ``slope * norm(x) + offset`` in L2 (Higham 2002, Accuracy and Stability of
Numerical Algorithms, section 3.5: a sum of k products, in any order and with or without fused multiply-add, is off by at most
``gamma_k |w|'|x|``).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from specnorm_core import bounds
from specnorm_core.activations import FullSort, GroupSort, lipschitz
from specnorm_core.architecture import Network

UNIT = 2.0**-24
"""Unit roundoff of float32."""
TINY = 2.0**-100
"""Added per layer for results below the normal range, where the relative bound does not hold."""
UP = 1 + 2.0**-40
"""What float64 results are multiplied with here: far more than their own rounding."""


@dataclass(frozen=True)
class Affine:
    """``slope * norm(x) + offset``."""

    slope: float
    offset: float

    def __add__(self, other: "Affine") -> "Affine":
        return Affine((self.slope + other.slope) * UP, (self.offset + other.offset) * UP)

    def times(self, factor: float) -> "Affine":
        """Return ``factor`` times this."""
        return Affine(self.slope * factor * UP, self.offset * factor * UP)


EXACT = (nn.ReLU, GroupSort, FullSort, nn.Flatten, nn.Unflatten)
"""Layers that select or move numbers: they add no error."""


LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


class UnboundedError(ValueError):
    """No error bound is known for a layer; the sentence names it."""


def gamma(terms: int) -> float:
    """Return ``k u / (1 - k u)`` for a sum of ``terms`` float32 terms.

    Raises:
        UnboundedError: there are too many terms for the bound to hold.
    """
    if terms * UNIT >= 0.5:
        raise UnboundedError(f"a sum of {terms} terms has no useful float32 error bound")
    return terms * UNIT / (1 - terms * UNIT) * UP


def error_bound(folded: Network, sigmas: dict[str, float]) -> Affine:
    """Return how far the float32 output of ``folded`` may be from the exact one, as a function of the norm of the input.

    ``sigmas`` are rigorous upper bounds of the operator norms of the folded linear layers, by name.

    Raises:
        UnboundedError: a layer has no bound.
    """
    entries = math.prod(folded.input_shape)
    # The graph stores both as float32, and those are the numbers that count.
    shift = Affine(0.0, abs(float(np.float32(folded.shift))) * math.sqrt(entries))
    size = (Affine(1.0, 0.0) + shift).times(float(np.float32(folded.scale)))
    # Two roundings, of x - shift and of the product, each relative.
    error = size.times(gamma(2))
    size = size + error
    x = torch.zeros(1, *folded.input_shape)
    for name, layer in folded.named_children():
        y = layer(x)
        if isinstance(layer, LINEAR):
            local = _local_error(layer, x.shape[2:], y.shape[2:], size)
            bias = Affine(
                0.0, 0.0 if layer.bias is None else float(layer.bias.detach().double().norm()) * math.sqrt(math.prod(y.shape[2:]))
            )
            error = error.times(sigmas[name]) + local
            size = size.times(sigmas[name]) + bias + local
        elif isinstance(layer, nn.LeakyReLU):
            # One rounded product, and the slope itself is rounded to float32.
            local = size.times(abs(layer.negative_slope) * gamma(2)) + Affine(0.0, TINY * math.prod(y.shape))
            error = error.times(lipschitz(layer)) + local
            size = size.times(lipschitz(layer)) + local
        elif not isinstance(layer, EXACT):
            # Tanh and the like: nothing is proved of how accurately a runtime computes them.
            raise UnboundedError(f"no rounding error bound is known for layer {name!r} ({type(layer).__name__})")
        x = y
    return error


def _local_error(layer: Any, size_in: torch.Size, size_out: torch.Size, size: Affine) -> Affine:
    """Return the error that this layer itself adds: ``gamma (norm(|W|) norm(x) + norm(b))``."""
    weight = np.abs(layer.weight.detach().double().numpy())
    terms, outputs = weight[0].size, weight.shape[0]
    if isinstance(layer, nn.Linear):
        absolute = bounds.sigma_upper(weight)
    else:
        if isinstance(layer, nn.ConvTranspose2d):
            # Each output takes one column of every kernel that reaches it.
            size_in, terms, outputs = size_out, weight[:, 0].size // layer.groups, layer.out_channels
        absolute = bounds.conv_sigma_upper(
            weight, input_size=tuple(size_in), stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups,
            padding_mode=layer.padding_mode,
        )  # fmt: skip
    bias = 0.0 if layer.bias is None else float(layer.bias.detach().double().norm()) * math.sqrt(math.prod(size_out))
    rounding = gamma(terms + 2)
    return size.times(absolute * rounding) + Affine(0.0, bias * rounding + TINY * math.prod(size_out, start=outputs))
