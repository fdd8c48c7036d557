"""Losses: what a network of bounded slope is asked for. Logits of a 1-Lipschitz network are small, hence the temperature."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Options(Protocol):
    """What a loss reads of the hyperparameters."""

    @property
    def temperature(self) -> float:
        """What logits are multiplied with, in the loss alone."""

    @property
    def margin(self) -> float:
        """The margin asked for, in logits after temperature."""


def cross_entropy(logits: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean cross entropy of ``temperature * logits (B, k)`` against classes ``y (B)``.

    With a slope of at most L the logits cannot grow: at temperature 1 this loss pulls at answers that are right already.
    """
    return F.cross_entropy(logits * temperature, y)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Return ``(B,)``: the logit of the true class less that of the best other; over ``sqrt(2) L`` it is a radius, where above 0."""
    others = logits.scatter(1, y[:, None], float("-inf")).amax(dim=1)
    return logits.gather(1, y[:, None]).squeeze(1) - others


def margin(logits: Tensor, y: Tensor, margin: float) -> Tensor:
    """Return the multi-class hinge loss: how far, on average, the true logit falls short of ``margin`` above the best other one.

    Crammer, Singer 2001; Anil et al. 2019 train certified networks with it. Every row counts that is not yet certified to the radius
    ``margin / (sqrt(2) L)``, and none that is.
    """
    return F.relu(margin - margins(logits, y)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor, Options], Tensor]] = {
    "cross_entropy": lambda out, y, options: cross_entropy(out, y, options.temperature),
    "margin": lambda out, y, options: margin(out * options.temperature, y, options.margin),
    "mse": lambda out, y, options: F.mse_loss(out.squeeze(-1), y.to(out.dtype)),
}

ROW_LOSSES: dict[str, Callable[[Tensor, Tensor, Options], Tensor]] = {
    "cross_entropy": lambda out, y, options: F.cross_entropy(out * options.temperature, y, reduction="none"),
    "margin": lambda out, y, options: F.relu(options.margin - margins(out * options.temperature, y)),
    "mse": lambda out, y, options: F.mse_loss(out.squeeze(-1), y.to(out.dtype), reduction="none"),
}
"""The same of each row, ``(B,)``: what private training clips by."""
