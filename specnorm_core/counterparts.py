"""Which spectral layer stands for which plain one, and how either is built from the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from specnorm_core.incoming import ConversionError
from specnorm_core.layers import SpectralConv2d, SpectralLinear


class Kind(NamedTuple):
    """A plain class, its spectral counterpart, what both are built from, and the number of axes that an image has."""

    spectral: type[Any]
    shape: Callable[[nn.Module, Tensor], dict[str, Any]]
    axes: int = 0


def _linear(_: nn.Module, weight: Tensor) -> dict[str, Any]:
    return {"in_features": weight.shape[1], "out_features": weight.shape[0]}


def _conv(layer: Any, weight: Tensor) -> dict[str, Any]:
    out, within, *kernel = weight.shape
    mode = getattr(layer, "padding_mode", "zeros")
    return {
        "in_channels": within * layer.groups, "out_channels": out, "kernel_size": tuple(kernel), "stride": layer.stride,
        "padding": _padding(layer, kernel), "dilation": layer.dilation, "groups": layer.groups,
    } | ({} if mode == "zeros" else {"padding_mode": mode})  # fmt: skip


def _padding(layer: Any, kernel: list[int]) -> Any:
    if not isinstance(layer.padding, str):
        return layer.padding
    totals = [d * (k - 1) if layer.padding == "same" else 0 for k, d in zip(kernel, layer.dilation, strict=True)]
    if any(total % 2 for total in totals):
        raise ConversionError("padding 'same' of an even kernel pads one side more than the other")
    return tuple(total // 2 for total in totals)


KINDS: dict[type[nn.Module], Kind] = {nn.Linear: Kind(SpectralLinear, _linear), nn.Conv2d: Kind(SpectralConv2d, _conv, axes=2)}
"""What can be converted: one line per layer."""


def bare_layer(base: type[nn.Module], like: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a plain layer that holds ``weight`` and ``bias`` themselves, no copies."""
    layer: Any = base(**KINDS[base].shape(like, weight), bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    bare: nn.Module = layer
    return bare
