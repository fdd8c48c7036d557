"""Sigma of a layer or of a whole model: estimate, rigorous bound, and the power iteration that keeps (u, v) fresh."""

import numpy as np
import torch
from torch import Tensor, nn

from specnorm_core import bounds, functional
from specnorm_core.layers import SpectralConvolution, SpectralLayer


def spectral_layers(model: nn.Module) -> dict[str, SpectralLayer]:
    """Return the spectral layers of ``model`` by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SpectralLayer)}


def power_iteration(model: nn.Module, steps: int = 1) -> None:
    """Step the power iteration of every spectral layer of ``model``; a forward pass never does."""
    for layer in spectral_layers(model).values():
        layer.advance(steps)


def converge(model: nn.Module, *, tolerance: float = 1e-6, most: int = 2000) -> None:
    """Derive (u, v) of every layer anew and iterate until sigma stands still (relative ``tolerance`` over ten steps).

    Raises:
        ValueError: a weight is zero or not finite; the sentence names the layer.
    """
    for name, layer in spectral_layers(model).items():
        try:
            layer.rederive()
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
        before = float(layer.sigma())
        for _ in range(most // 10):
            now = float(layer.refresh(10).sigma())
            if abs(now - before) <= tolerance * now:
                break
            before = now


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> torch.utils.hooks.RemovableHandle:
    """Refresh (u, v) of ``model`` after every ``optimizer.step()``; ``remove()`` of what is returned ends it.

    In a group of processes (u, v) are derived anew first, from the weights that all of them share: call it after
    ``DistributedDataParallel`` has sent these round, and every process keeps the same pair. Of a private optimiser, as Opacus wraps one,
    it is the steps of the one inside that count: a batch in several parts is one step.
    """
    optimizer = getattr(optimizer, "original_optimizer", optimizer)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for layer in spectral_layers(model).values():
            layer.rederive()
    return optimizer.register_step_post_hook(lambda *_: power_iteration(model, steps))


def matrix(layer: SpectralLayer) -> np.ndarray:
    """Return the weight of ``layer`` as a float64 matrix ``(out, rest)``."""
    weight: np.ndarray = layer.matricise(layer.weight.detach().double()).cpu().numpy()
    return weight


def _float64(of: object) -> np.ndarray:
    """Return a tensor or an array in float64.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(of, Tensor):
        of = of.detach().double().cpu().numpy()
    if isinstance(of, np.ndarray):
        return of.astype(np.float64)
    raise TypeError(
        f"sigma is that of a spectral layer or of a matrix, not of {type(of).__name__}; specnorm_core.spectral_norm converts a model"
    )


@torch.no_grad()
def sigma(of: SpectralLayer | Tensor | np.ndarray) -> float:
    """Return the estimate of sigma of a layer (its cached pair) or of a matrix ``(m, n)``; a lower bound.

    Evaluated in float64 on unit vectors of float64, less a hair for its own rounding: the float32 value of ``layer.sigma()`` can lie
    above sigma.
    """
    if isinstance(of, SpectralLayer):
        u, v = (functional.unit(part.double()) for part in of.pair)
        return abs(float((u * of.forward_map(v, of.weight.double())).sum())) * (1 - 1e-9)
    return bounds.sigma_estimate(_float64(of))


def sigma_upper(of: SpectralLayer | Tensor | np.ndarray) -> float:
    """Return a rigorous upper bound of sigma, rounding included, of a layer (in its own norm) or of a matrix ``(m, n)``."""
    if not isinstance(of, SpectralLayer):
        return bounds.sigma_upper(_float64(of))
    if isinstance(of, SpectralConvolution) and of.norm == "operator":
        return operator_sigma_upper(of, of.weight)
    return bounds.sigma_upper(matrix(of))


def operator_sigma_upper(layer: SpectralLayer, weight: Tensor, input_size: tuple[int, ...] | None = None) -> float:
    """Return a rigorous upper bound of the norm of the *true* linear map of ``layer`` with ``weight`` in the place of its own.

    ``input_size`` is the image size of a convolution, one entry per axis; without it, and without one of the layer's own, the bound holds
    for every size. A transposed convolution is the adjoint of the convolution with the same kernel on images of the size of its output.

    Raises:
        ValueError: the weight is empty or not finite, or no bound is proved: circular padding wider than the window, size unknown.
    """
    array = weight.detach().double().cpu().numpy()
    if not isinstance(layer, SpectralConvolution):
        return bounds.sigma_upper(array)
    return bounds.conv_sigma_upper(
        array,
        input_size=layer.image_size(layer.input_size or input_size),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
    )
