"""Fold ``W c / sigma`` into plain weights, with a sigma that is certified to be no less than the true one."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specnorm_core import bounds
from specnorm_core.architecture import Network
from specnorm_core.counterparts import bare_layer, base_of
from specnorm_core.layers import SpectralConvolution, SpectralEmbedding, SpectralLayer
from specnorm_core.norms import matrix, operator_sigma_upper, sigma, sigma_upper, spectral_layers
from specnorm_core.orthogonal import OrthogonalLinear, bjorck

HAIR = 1 + 2.0**-21
"""What sigma_upper is multiplied with before the division, so that rounding to float32 does not end above the target."""


class FoldError(ValueError):
    """A layer cannot be folded; the sentence names it."""


@dataclass(frozen=True)
class FoldedLayer:
    """Norms of one layer before the fold; every ``upper`` is rigorous."""

    name: str
    layer: SpectralLayer
    sigma_estimate: float
    sigma_upper: float
    operator_sigma_upper: float
    stable_rank: float


def named_norm_upper(layer: SpectralLayer, weight: Tensor) -> float:
    """Return a rigorous upper bound of the norm that ``layer`` is built with, of ``weight`` in the place of its own."""
    if layer.norm == "operator":
        return operator_sigma_upper(layer, weight)
    return bounds.sigma_upper(layer.matricise(weight.detach().double()).cpu().numpy())


def fold(model: Network) -> tuple[Network, tuple[FoldedLayer, ...]]:
    """Return a copy of ``model`` on the CPU, in eval mode, with plain layers in the place of spectral ones, and the norms before the fold.

    ``model`` is left as it is. The stored float32 weights are certified again: their norm is at most the layer's target.

    Raises:
        FoldError: a weight is zero or not finite, or a layer does not fit what comes before it.
    """
    folded = copy.deepcopy(model).cpu().eval()
    reports: list[FoldedLayer] = []
    sizes = _input_sizes(model)
    for name, layer in spectral_layers(model).items():
        try:
            report = _measure(name, layer, sizes.get(name))
            setattr(folded, name, _plain(layer, _divide(layer, report.sigma_upper)))
        except ValueError as error:
            raise FoldError(f"layer {name!r} cannot be folded: {error}") from None
        reports.append(report)
    return folded, tuple(reports)


def _measure(name: str, layer: SpectralLayer, input_size: tuple[int, ...] | None) -> FoldedLayer:
    upper = sigma_upper(layer)
    if not upper > 0:
        raise ValueError("its weight is zero, so its spectral norm is not defined")
    flat = matrix(layer)
    matricised = upper if layer.norm == "matricised" or flat.ndim == layer.weight.ndim else bounds.sigma_upper(flat)
    return FoldedLayer(
        name=name, layer=layer, sigma_estimate=sigma(layer), sigma_upper=upper,
        operator_sigma_upper=upper if layer.norm == "operator" else operator_sigma_upper(layer, layer.weight, input_size),
        stable_rank=float((flat**2).sum() / matricised**2),
    )  # fmt: skip


def _divide(layer: SpectralLayer, upper: float) -> Tensor:
    """Return the folded weight as float32, its norm certified on the bits returned."""
    if layer.constraint == "cap" and upper <= layer.target:
        return layer.weight.detach().float()
    weight = layer.weight.detach().double()
    if isinstance(layer, OrthogonalLinear):
        weight = bjorck(weight / upper, layer.iterations)
        upper = bounds.sigma_upper(weight.cpu().numpy())
    divisor = upper * HAIR / layer.target
    for _ in range(8):
        folded = (weight / divisor).float()
        if named_norm_upper(layer, folded) <= layer.target:
            return folded
        divisor *= HAIR
    raise ValueError(f"its folded norm could not be certified to be at most {layer.target}")


def _plain(layer: SpectralLayer, weight: Tensor) -> nn.Module:
    plain = bare_layer(base_of(layer), layer, weight.cpu())
    if layer.bias is not None:
        bias = layer.bias.detach().to("cpu", torch.float32, copy=True)
        if not bool(torch.isfinite(bias).all()):
            raise ValueError("its bias is not finite in float32")
        plain.bias = nn.Parameter(bias, requires_grad=False)
    return plain.eval()


@torch.no_grad()
def _input_sizes(model: Network) -> dict[str, tuple[int, ...]]:
    """Return the image size that each convolution meets."""
    sizes: dict[str, tuple[int, ...]] = {}
    x = torch.zeros(1, *model.input_shape)
    for name, layer in copy.deepcopy(model).float().cpu().eval().named_children():
        if isinstance(layer, SpectralConvolution):
            sizes[name] = tuple(x.shape[-layer.axes :])
        try:
            if isinstance(layer, SpectralEmbedding):
                raise ValueError("it takes whole numbers, and the input of a network is real")
            x = layer(x)
        except (ValueError, RuntimeError) as error:
            raise FoldError(f"layer {name!r} cannot be folded: {error}") from None
    return sizes
