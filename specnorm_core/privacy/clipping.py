"""The clipped sum of per-sample gradients, in one forward and one backward pass and without a tensor per sample.

A hook on every trainable layer keeps its input x and the gradient g of its output; nothing else flows back, no gradient of a weight is
formed on the way. From (x, g) come the norms of all rows, from these the weight of each row, and with the weights one product per layer:
``sum_b w_b grad_b``.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specnorm_core import per_sample
from specnorm_core.privacy.dense import Dense, Rows, Take, dense, rows

SLACK = 2.0**-10
"""Rows are clipped this much (relative) below the bound: the room for the rounding of the float32 sum over them."""


class NotPrivateError(ValueError):
    """The model or its loss has no per-sample gradients that could be clipped; the sentence names what is in the way."""


class _Root(torch.autograd.Function):
    """Hang a tensor into the graph, in place: the output of a layer whose input needs no gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None]:
        return None, None


class _Layer:
    """One trainable layer during one pass: its input, and the gradient of its output once that has come back."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.parameters = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
        self.x = self.y = self.g = torch.empty(0)
        self.called = self.returned = False
        self.version = -1
        self.dense: Dense | None = None

    def enter(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the input; inside the layer its parameters are constants, so that no gradient of theirs is formed."""
        if self.called:
            raise NotPrivateError(f"layer {self.name!r} is used twice in one forward pass: its per-sample gradients would be a sum of two")
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise NotPrivateError(f"layer {self.name!r} must be called with one tensor, by position")
        self.called, self.x = True, inputs[0].detach()
        self.freeze(True)

    def leave(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        """Ask for the gradient of the output."""
        self.freeze(False)
        if not isinstance(output, Tensor):
            return output  # the call failed, or returned what no rule of ours is for
        if not output.requires_grad:
            output = _Root.apply(output, torch.zeros((), requires_grad=True))  # type: ignore[no-untyped-call]  # torch gives it no types
        output.register_hook(self.take)
        self.y = output.detach()
        self.version = output._version
        return output

    def take(self, g: Tensor) -> None:
        """Keep the gradient of the output."""
        self.returned, self.g = True, g

    def squares(self) -> Rows:
        """Return the squared norm of each row's gradient of this layer, ``(B,)``, rounded up."""
        if self.y._version == self.version:  # else something that works in place has put its own result there
            self.dense = dense(self.module, self.x, self.g, self.y)
        self.y = torch.empty(0)
        return self.dense.squares() if self.dense else rows(per_sample.squared_norms(self.module, self.x, self.g))

    def weighted_sum(self, weights: Rows, take: Take) -> None:
        """Hand the sum of the rows' gradients, each times its weight, to ``take``, and drop what was kept."""
        if self.dense:
            self.dense.weighted_sum(weights, take)
        else:
            sums = per_sample.weighted_sum(self.module, self.x, self.g, torch.from_numpy(weights).to(self.g))
            for parameter, total in sums.items():
                take(parameter, slice(None), total)
        self.x = self.y = self.g = torch.empty(0)
        self.dense = None

    def drop(self, bad: Tensor) -> None:
        """Put zeros in the place of rows whose numbers are not finite."""
        self.dense = None
        self.version = -1
        self.x, self.g = (part.masked_fill(bad.reshape(-1, *[1] * (part.ndim - 1)), 0) for part in (self.x, self.g))

    def freeze(self, frozen: bool) -> None:
        """Make constants of the parameters, or parameters again."""
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)


def _layers(model: nn.Module) -> list[_Layer]:
    """Return the trainable layers of ``model``.

    Raises:
        NotPrivateError: one of no known type; a parameter that two share; a layer that mixes the rows of a batch.
        ValueError: as ``per_sample``, for a layer that it has no rule for.
    """
    found: list[_Layer] = []
    owners: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise NotPrivateError(f"layer {name!r} ({type(module).__name__}) mixes the rows of a batch: use GroupNorm or LayerNorm")
        layer = _Layer(name, module)
        if not layer.parameters:
            continue
        per_sample.rule(module, name)
        for parameter in layer.parameters:
            if parameter in owners:
                raise NotPrivateError(f"layers {owners[parameter]!r} and {name!r} share a parameter: its gradient has two parts per sample")
            owners[parameter] = name
        found.append(layer)
    if not found:
        raise NotPrivateError("the model has no trainable layer")
    return found


def check(model: nn.Module) -> None:
    """Say whether ``model`` can be trained privately.

    Raises:
        NotPrivateError: it cannot; the sentence names the layer that stands in the way.
    """
    try:
        _layers(model)
    except ValueError as error:
        raise NotPrivateError(str(error)) from None


@contextmanager
def _watching(layers: list[_Layer]) -> Iterator[None]:
    hooks = [layer.module.register_forward_pre_hook(layer.enter) for layer in layers]
    hooks += [layer.module.register_forward_hook(layer.leave, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.freeze(False)


def _backward(layers: list[_Layer], losses: Callable[[], Tensor]) -> int:
    """Run both passes and return the number of rows.

    Raises:
        NotPrivateError: the losses are not one per row, or a parameter reaches them by another way than its layer.
    """
    for layer in layers:
        for parameter in layer.parameters:
            parameter.grad = None
    with _watching(layers), torch.enable_grad():
        rows = losses()
    if rows.ndim != 1:
        raise NotPrivateError(f"the losses must be one per row, of shape (B,); got {tuple(rows.shape)}: no mean, no sum")
    rows.sum().backward()
    for layer in layers:
        if any(parameter.grad is not None for parameter in layer.parameters):
            raise NotPrivateError(f"a parameter of layer {layer.name!r} reaches the loss by another way than a call of the layer")
        if not (layer.called and layer.returned):
            raise NotPrivateError(f"layer {layer.name!r} takes no part in the loss: freeze it with requires_grad_(False)")
        if len(layer.x) != len(rows):
            raise NotPrivateError(
                f"layer {layer.name!r} was given {len(layer.x)} rows, the losses are {len(rows)}: the batch must come first"
            )
    return len(rows)


def _weights(layers: list[_Layer], max_norm: float) -> Rows:
    """Return ``min(1, C / norm)`` of each row, ``(B,)``; a row whose norm is not finite gets zero, and so do its x and g."""
    with np.errstate(all="ignore"):
        squared = np.sum([layer.squares() for layer in layers], axis=0)
        weights: Rows = np.minimum(max_norm * (1 - SLACK) / np.sqrt(squared), 1.0)
    bad = ~np.isfinite(squared)
    if bad.any():
        weights[bad] = 0.0
        for layer in layers:
            layer.drop(torch.from_numpy(bad).to(layer.g.device))
    return weights


def clip(model: nn.Module, losses: Callable[[], Tensor], take: Take, *, max_grad_norm: float, divisor: float = 1.0) -> None:
    """Hand ``sum_b min(1, C / norm(grad_b)) grad_b / divisor`` to ``take``, in parts; see :func:`clipped_sum`."""
    if not (max_grad_norm > 0 and math.isfinite(max_grad_norm)):
        raise ValueError(f"max_grad_norm must be a finite number above 0, got {max_grad_norm}")
    layers = _layers(model)
    _backward(layers, losses)
    with torch.no_grad():
        weights = _weights(layers, max_grad_norm) / divisor
        for layer in layers:
            layer.weighted_sum(weights, take)


def clipped_sum(model: nn.Module, losses: Callable[[], Tensor], *, max_grad_norm: float) -> dict[nn.Parameter, Tensor]:
    """Return ``sum_b min(1, C / norm(grad_b)) grad_b`` for each trainable parameter; adding or removing a row changes it by at most C.

    The norm of a row is over all parameters, rounded up; C is ``max_grad_norm``, less a hair for the rounding of the sum. Gradients that
    the parameters hold already are dropped.

    Args:
        model: whose layers treat every row of a batch by itself.
        losses: runs the forward pass and returns one loss per row, ``(B,)``.
        max_grad_norm: C, above 0.

    Raises:
        NotPrivateError: the model or the loss is not of this kind.
        ValueError: C is not above 0, or there is no rule for a layer.
    """
    total: dict[nn.Parameter, Tensor] = {}

    def take(parameter: nn.Parameter, rows: slice, part: Tensor) -> None:
        total.setdefault(parameter, torch.empty_like(parameter, dtype=part.dtype))[rows] = part

    clip(model, losses, take, max_grad_norm=max_grad_norm)
    return total
