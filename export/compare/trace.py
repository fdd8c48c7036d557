"""What is measured along training: accuracy, and per layer sigma, stable rank and the size of the correction term."""

import copy
import math

import torch
from torch import Tensor

from export.bundle import Frozen
from specnorm_core import bounds, norms
from specnorm_core.architecture import Network
from specnorm_core.data import Dataset
from specnorm_core.layers import SpectralLayer
from specnorm_core.losses import LOSSES
from specnorm_core.norms import spectral_layers
from specnorm_core.training import Hyperparameters, evaluate

POWER_ITERATIONS = 20
"""Done on the copy that is measured, so that sigma lags no more; the size of the correction depends on (u, v) through sigma alone."""


class LayerPoint(Frozen):
    """One layer after one step.

    ``sigma`` is of the raw weight, an estimate from below; ``stable_rank`` is ``norm(W)_F^2 / norm(W)_2^2`` of the matricised weight;
    ``correction`` is ``norm(Lam u v') / norm(G'X)``, the Frobenius norm of what the gradient mode ``simplified`` drops from the weight's
    gradient over that of what it keeps; None where it keeps nothing (the loss is flat).
    """

    sigma: float
    stable_rank: float
    correction: float | None


class Point(Frozen):
    """The network after ``step`` steps; ``loss`` is that of the batch which the corrections are measured on, None if it is not finite."""

    step: int
    epoch: float
    loss: float | None
    accuracy: float
    layers: dict[str, LayerPoint]


def look(model: Network, batch: Dataset, held_out: Dataset, options: Hyperparameters, *, step: int, epoch: float) -> Point:
    """Return what is known of ``model`` after ``step`` steps, measured on a copy: training goes on as if nobody had looked.

    Args:
        model: in the midst of its training.
        batch: training rows for the loss and the correction term.
        held_out: rows for the accuracy.
        options: the loss and its temperature.
        step: steps so far.
        epoch: passes over the data so far.
    """
    still = copy.deepcopy(model)
    norms.power_iteration(still, POWER_ITERATIONS)
    loss, corrections = correction_sizes(still, batch, options)
    return Point(
        step=step, epoch=epoch, loss=loss if math.isfinite(loss) else None, accuracy=evaluate(still, held_out)["accuracy"],
        layers={
            name: LayerPoint(sigma=norms.sigma(layer), stable_rank=stable_rank(layer), correction=corrections[name])
            for name, layer in spectral_layers(still).items()
        },
    )  # fmt: skip


def stable_rank(layer: SpectralLayer) -> float:
    """Return ``norm(W)_F^2 / norm(W)_2^2`` of the matricised weight: 1 for a matrix of rank one, at most its rank."""
    flat = norms.matrix(layer)
    return float((flat**2).sum() / bounds.sigma_estimate(flat) ** 2)


def correction_sizes(model: Network, batch: Dataset, options: Hyperparameters) -> tuple[float, dict[str, float | None]]:
    """Return the loss of ``batch``, and by layer how large the dropped term is beside the kept one.

    The gradient that reaches a layer's output is the same in both modes, so the difference of their weight gradients *is* the correction,
    whatever the layer: of a linear one ``(G'X - Lam u v') / s`` against ``G'X / s``. The layers' modes are left changed.
    """
    loss, kept = _gradients(model, batch, options, "simplified")
    _, exact = _gradients(model, batch, options, "full")
    pairs = zip(spectral_layers(model), kept, exact, strict=True)
    return loss, {name: float((part - whole).norm() / part.norm()) if part.any() else None for name, part, whole in pairs}


def _gradients(model: Network, batch: Dataset, options: Hyperparameters, mode: str) -> tuple[float, tuple[Tensor, ...]]:
    layers = spectral_layers(model).values()
    for layer in layers:
        layer.gradient_mode = mode
    loss = LOSSES[options.loss](model(torch.from_numpy(batch.x)), torch.from_numpy(batch.y), options)
    gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
    return float(loss.detach()), tuple(gradient.double() for gradient in gradients)
