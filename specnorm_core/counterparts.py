"""Which spectral layer stands for which plain one, and how either is built from the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from specnorm_core.incoming import ConversionError
from specnorm_core.layers import (
    SpectralConv1d,
    SpectralConv2d,
    SpectralConv3d,
    SpectralConvTranspose2d,
    SpectralEmbedding,
    SpectralLayer,
    SpectralLinear,
)
from specnorm_core.orthogonal import OrthogonalLinear


class Kind(NamedTuple):
    """A plain class, its spectral counterpart, what both are built from, and the number of axes that an image has."""

    spectral: type[Any]
    arguments: Callable[[Any, Tensor], dict[str, Any]]
    axes: int = 0


def _linear(layer: Any, weight: Tensor) -> dict[str, Any]:
    return {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": layer.bias is not None}


def _conv(layer: Any, weight: Tensor) -> dict[str, Any]:
    out, within, *kernel = weight.shape
    return {
        "in_channels": within * layer.groups, "out_channels": out, "kernel_size": tuple(kernel), "stride": layer.stride,
        "padding": _padding(layer, kernel), "dilation": layer.dilation, "groups": layer.groups, "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
    }  # fmt: skip


def _transposed(layer: Any, weight: Tensor) -> dict[str, Any]:
    within, out, *_ = weight.shape
    channels = {"in_channels": within, "out_channels": out * layer.groups}
    return _conv(layer, weight) | channels | {"output_padding": layer.output_padding}


def _padding(layer: Any, kernel: list[int]) -> Any:
    if not isinstance(layer.padding, str):
        return layer.padding
    totals = [d * (k - 1) if layer.padding == "same" else 0 for k, d in zip(kernel, layer.dilation, strict=True)]
    if any(total % 2 for total in totals):
        raise ConversionError("padding 'same' of an even kernel pads one side more than the other")
    return tuple(total // 2 for total in totals)


def _embedding(layer: Any, weight: Tensor) -> dict[str, Any]:
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        if value := getattr(layer, option, None):
            raise ConversionError(f"a spectral embedding has no {option}, here {value}: every entry's gradient reaches sigma")
    return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1], "padding_idx": layer.padding_idx}


KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(SpectralLinear, _linear),
    nn.Conv1d: Kind(SpectralConv1d, _conv, axes=1),
    nn.Conv2d: Kind(SpectralConv2d, _conv, axes=2),
    nn.Conv3d: Kind(SpectralConv3d, _conv, axes=3),
    nn.ConvTranspose2d: Kind(SpectralConvTranspose2d, _transposed, axes=2),
    nn.Embedding: Kind(SpectralEmbedding, _embedding),
}
"""What can be converted: one line per layer."""

_BASES: dict[type[SpectralLayer], type[nn.Module]] = {kind.spectral: base for base, kind in KINDS.items()} | {OrthogonalLinear: nn.Linear}


def base_of(layer: SpectralLayer) -> type[nn.Module]:
    """Return the plain class that stands for a spectral layer.

    Raises:
        ConversionError: there is none.
    """
    if type(layer) not in _BASES:
        raise ConversionError(f"there is no plain layer for a {type(layer).__name__}")
    return _BASES[type(layer)]


def bare_layer(base: type[nn.Module], like: nn.Module, weight: Tensor) -> nn.Module:
    """Return a plain layer built as ``like`` that holds ``weight`` and the bias of ``like`` themselves, no copies."""
    layer: Any = base(**KINDS[base].arguments(like, weight), device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    bias = getattr(like, "bias", None)
    if isinstance(bias, Tensor):
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    bare: nn.Module = layer
    return bare
