"""Embeddings, plain and spectral: a sample touches the rows of the weight that it looks up and, through sigma, all of them."""

from typing import Any

import torch
from torch import Tensor, nn

from specnorm_core.layers import SpectralEmbedding
from specnorm_core.per_sample.base import UNIT, Rule, norm
from specnorm_core.per_sample.correction import active, correction, scale_of
from specnorm_core.per_sample.linear import constants_of


class Embedding(Rule):
    """``x (B, ...)`` indices, ``g (B, ..., d)``: the gradients of one entry at several positions of a sample add up."""

    def bias_samples(self, layer: Any, g: Tensor) -> Tensor:
        """An embedding has none.

        Raises:
            ValueError: always.
        """
        raise ValueError("an embedding has no bias")

    def weight_samples(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return ``(B, entries, d)``."""
        found = g.new_zeros(len(x) * len(layer.weight), g.shape[-1])
        return found.index_add_(0, _places(layer, x).flatten(), looked_up(layer, x, g)).view(len(x), *layer.weight.shape)

    def weight_sum(self, layer: Any, x: Tensor, g: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum, ``(entries, d)``."""
        g = weighted(g, weights)
        return torch.zeros_like(layer.weight, dtype=g.dtype).index_add_(0, x.flatten(), looked_up(layer, x, g))

    def weight_squares(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the squared norms, rounded up: of the rows that a sample looks up, each once."""
        touched = Touched(layer, x, g.double())
        share = 8 * (g[0].numel() + 8) * UNIT
        return (touched.per_sample(touched.rows.square().sum(dim=1)).sqrt() * (1 + share) + share * touched.size).square()


class SpectralLookup(Embedding):
    """``SpectralEmbedding``: lam counts all that was looked up, the entry that is not trained included."""

    def weight_samples(self, layer: SpectralEmbedding, x: Tensor, g: Tensor) -> Tensor:
        """Return ``(B, entries, d)``."""
        raw = super().weight_samples(layer, x, g)
        constants = correction(layer, raw.dtype)
        assert constants is not None  # noqa: S101  # the layer is a spectral one
        if constants.direction is not None:
            lam = constants.lam((g * constants.weight[x]).flatten(1).sum(dim=1))
            raw.view(len(raw), -1).addr_(lam, constants.direction.flatten(), alpha=-1)
        return raw.mul_(constants.scale)

    def weight_sum(self, layer: SpectralEmbedding, x: Tensor, g: Tensor, weights: Tensor) -> Tensor:
        """Return ``scale (sum - Lam u v')``, ``(entries, d)``."""
        raw = super().weight_sum(layer, x, g, weights)
        if layer.gradient_mode == "full":
            u, v = layer.pair
            lam = (weighted(g, weights) * layer.weight.detach()[x]).sum() / layer.sigma()
            within = active(layer)
            raw.addr_((u * (lam if within is None else lam * within)).to(raw.dtype), v.to(raw.dtype), alpha=-1)
        return raw.mul_(scale_of(layer))

    def weight_squares(self, layer: SpectralEmbedding, x: Tensor, g: Tensor) -> Tensor:
        """Return the squared norms, rounded up: ``sum_r norm(e_r - lam u_r v)^2`` over the rows of a sample, and ``lam^2`` of the rest.

        The rest of u's square is one less that of the sample's rows, known to the rounding of float64, which is added.
        """
        g = g.double()
        constants, touched = constants_of(layer), Touched(layer, x, g)
        square = touched.rows.square().sum(dim=1)
        beyond = torch.zeros_like(touched.size)
        if layer.gradient_mode == "full":
            lam = (g * layer.weight.detach()[x].double()).flatten(1).sum(dim=1) / constants.sigma
            within = active(layer)
            lam = lam if within is None else lam * within
            mine = constants.u[touched.entry]
            square = (touched.rows - torch.outer(lam[touched.owner] * mine, constants.v)).square().sum(dim=1)
            beyond = lam.square() * ((1 - touched.per_sample(mine.square())).clamp(min=0) + 8 * len(constants.u) * UNIT)
        total = (touched.per_sample(square) + beyond).sqrt() * (1 + constants.margin) + constants.margin * touched.size
        return (total * constants.scale * (1 + constants.margin)).square()


class Touched:
    """The entries that each sample looks up, each once.

    Args:
        layer: the embedding.
        x: indices, ``(B, ...)``.
        g: gradients of what was looked up, ``(B, ..., d)``.

    ``owner`` is the sample and ``entry`` the row of the weight that each of ``rows`` belongs to; no norm of a sample's rows exceeds its
    ``size (B,)``.
    """

    def __init__(self, layer: nn.Embedding | SpectralEmbedding, x: Tensor, g: Tensor) -> None:
        keys, place = _places(layer, x).unique(return_inverse=True)
        self.owner, self.entry = keys // len(layer.weight), keys % len(layer.weight)
        self.rows = g.new_zeros(len(keys), g.shape[-1]).index_add_(0, place.flatten(), looked_up(layer, x, g))
        self.size = norm(g, -1).flatten(1).sum(dim=1) if g.dim() > 2 else norm(g, -1)

    def per_sample(self, values: Tensor) -> Tensor:
        """Return the sum of ``values``, one for each row, over the rows of each sample."""
        return torch.zeros_like(self.size).index_add_(0, self.owner, values)


def weighted(g: Tensor, weights: Tensor) -> Tensor:
    """Return ``g (B, ...)`` with each sample multiplied by its weight."""
    return g * weights.view(-1, *[1] * (g.dim() - 1))


def looked_up(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    """Return ``g`` row by row, zero where the entry is the one that is not trained.

    Raises:
        ValueError: the gradient of an entry depends on how often the batch holds it, or the forward pass changes the weight.
    """
    if getattr(layer, "scale_grad_by_freq", False) or getattr(layer, "max_norm", None) is not None:
        raise ValueError("an embedding with scale_grad_by_freq or max_norm ties the samples of a batch together: none has its own gradient")
    if layer.padding_idx is not None:
        g = g.masked_fill((x == layer.padding_idx)[..., None], 0)
    return g.reshape(-1, g.shape[-1])


def _places(layer: Any, x: Tensor) -> Tensor:
    """Return a number for each pair of a sample and an entry, ``(B, positions)``."""
    return torch.arange(len(x), device=x.device)[:, None] * len(layer.weight) + x.reshape(len(x), -1)
