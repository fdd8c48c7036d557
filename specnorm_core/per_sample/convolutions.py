"""Convolutions over one to three axes, and transposed ones, plain and spectral."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from specnorm_core.per_sample.products import Product


class Convolution(Product):
    """``x (B, in, *size)``, ``g (B, out, *size')``: the positions are the windows on the padded image."""

    def bias_samples(self, layer: Any, g: Tensor) -> Tensor:
        """Return ``(B, out)``."""
        return g.flatten(2).sum(dim=2)

    def factors(self, layer: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``left``, the channels of ``g``, and ``right``, the windows that they came from; in blocks of groups."""
        right = windows(padded(layer, x), layer, g.shape[2:])
        return g.reshape(len(g), layer.groups, -1, g[0, 0].numel()), right.reshape(len(x), layer.groups, -1, g[0, 0].numel())

    def total(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the gradient of the kernel."""
        return kernel_gradient(layer, padded(layer, x), g, padding=(0,) * (x.dim() - 2))


class TransposedConvolution(Convolution):
    """The adjoint of a convolution: its output is the image, and its input what the windows of that lead to."""

    def sides(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x, g)``: the rows of the weight are the channels of the input."""
        return x, g

    def factors(self, layer: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``left``, the channels of ``x``, and ``right``, the windows of ``g``; in blocks of groups."""
        image = F.pad(g, [p for p in reversed(layer.padding) for _ in range(2)])
        right = windows(image, layer, x.shape[2:])
        return x.reshape(len(x), layer.groups, -1, x[0, 0].numel()), right.reshape(len(g), layer.groups, -1, x[0, 0].numel())

    def total(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the gradient of the kernel."""
        return kernel_gradient(layer, x, g, padding=layer.padding, output_padding=layer.output_padding)


def padded(layer: Any, x: Tensor) -> Tensor:
    """Return ``x`` with its border: of ``layer.padding``, or, where that is a word, of what PyTorch made of it."""
    if isinstance(layer.padding, str):
        border = layer._reversed_padding_repeated_twice
    else:
        border = [p for p in reversed(layer.padding) for _ in range(2)]
    return F.pad(x, border, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def windows(image: Tensor, layer: Any, outputs: Sequence[int]) -> Tensor:
    """Return the windows of ``image (B, channels, *size)``, ``(B, channels, *kernel_size, *outputs)``: a view of its memory."""
    image = image.contiguous()
    batch, channels, *axes = image.stride()
    taps = [step * gap for step, gap in zip(axes, layer.dilation, strict=True)]
    moves = [step * stride for step, stride in zip(axes, layer.stride, strict=True)]
    return image.as_strided((*image.shape[:2], *layer.kernel_size, *outputs), (batch, channels, *taps, *moves))


def kernel_gradient(layer: Any, x: Tensor, g: Tensor, *, padding: Sequence[int], output_padding: Sequence[int] = ()) -> Tensor:
    """Return the gradient of the kernel for the output gradient ``g``, over the whole batch, by PyTorch's own backward pass."""
    transposed = bool(output_padding)
    extra = output_padding or [0] * len(padding)
    options = (layer.stride, padding, layer.dilation, transposed, extra, layer.groups)
    found: Tensor = torch.ops.aten.convolution_backward(g, x, layer.weight.to(g.dtype), None, *options, [False, True, False])[1]
    return found
