"""LayerNorm and GroupNorm: a weight and a bias per feature, so a sample's gradient is no larger than its input."""

from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from specnorm_core.per_sample.base import Rule, squares_of_sums


class Normalisation(Rule):
    """``y = weight x_ + bias`` with ``x_`` the normalised input: ``grad_b = sum_t g_bt x_bt``."""

    @abstractmethod
    def normalised(self, layer: Any, x: Tensor) -> Tensor:
        """Return ``x_``."""

    def weight_samples(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return ``(B, *weight.shape)``."""
        return self.bias_samples(layer, g * self.normalised(layer, x))

    def weight_squares(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the squared norms, rounded up: an entry of ``x_`` errs by a rounding per feature, of itself or of one."""
        g, x = g.double(), self.normalised(layer, x.double())
        sizes = self.bias_samples(layer, g.abs() * (x.abs() + 1))
        return squares_of_sums(self.bias_samples(layer, g * x), sizes, terms=g[0].numel())


class LayerNorm(Normalisation):
    """``x (B, ..., *shape)``: the axes between are positions."""

    def bias_samples(self, layer: Any, g: Tensor) -> Tensor:
        """Return ``(B, *shape)``."""
        return g.reshape(len(g), -1, *layer.normalized_shape).sum(dim=1)

    def normalised(self, layer: Any, x: Tensor) -> Tensor:
        """Return ``x`` less its mean, at variance one."""
        # Centred before it is centred: a large mean would leave its rounding behind.
        axes = tuple(range(-len(layer.normalized_shape), 0))
        return F.layer_norm(x - x.mean(dim=axes, keepdim=True), layer.normalized_shape, eps=layer.eps)


class GroupNorm(Normalisation):
    """``x (B, channels, ...)``: the axes after the channels are positions."""

    def bias_samples(self, layer: Any, g: Tensor) -> Tensor:
        """Return ``(B, channels)``."""
        return g.reshape(*g.shape[:2], -1).sum(dim=2)

    def normalised(self, layer: Any, x: Tensor) -> Tensor:
        """Return ``x`` less the mean of its group, at variance one."""
        groups = x.reshape(len(x), layer.num_groups, -1)
        return F.group_norm((groups - groups.mean(dim=2, keepdim=True)).reshape(x.shape), layer.num_groups, eps=layer.eps)
