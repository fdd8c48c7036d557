"""Layers whose weight gets a sum of outer products, one per position of a sample: dense layers and convolutions.

``G_b = sum_t left_bt right_bt'``, in blocks where there are groups. Its squared norm is found in one of two ways, whichever takes fewer
multiplications. With few positions T, the Gram form ``sum_tt' (left_t . left_t') (right_t . right_t')``, which is ``T (m + n)`` products
per position (the ghost norm of Li et al. 2021; ``T (m + n) < m n`` also makes its ``T x T`` matrices the smaller thing to store). With
many, ``G_b`` itself, ``m n`` products per position, for a few samples at a time.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from specnorm_core.per_sample.base import UNIT, Rule, chunk, norm
from specnorm_core.per_sample.correction import Correction, correction


class Product(Rule):
    """A layer of one matrix, or one per group: the rows of the weight are ``left``'s, the rest of its entries ``right``'s."""

    def sides(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the rows of the weight belong to, and what its columns do."""
        return g, x

    @abstractmethod
    def factors(self, layer: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``left (B, groups, m, T)`` and ``right (B, groups, n, T)``."""

    @abstractmethod
    def total(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the gradient of the weight in the raw map, of the whole batch: the sum of all ``G_b``."""

    def weight_samples(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return each sample's gradient of the weight, ``(B, *weight.shape)``."""
        left, right = self.factors(layer, x, g)
        raw = (left @ right.mT).reshape(len(x), *layer.weight.shape)
        constants = correction(layer, raw.dtype)
        return raw if constants is None else constants.bend(raw)

    def weight_squares(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the squared norms of the weight's gradients, rounded up."""
        rows, columns = layer.weight.shape[0], layer.weight[0].numel()
        groups = getattr(layer, "groups", 1)
        positions = self.sides(x, g)[0][0].numel() // rows
        short = gram_is_shorter(positions, rows // groups, columns)
        held = positions * (rows + groups * columns) + (2 * groups * positions**2 if short else 2 * rows * columns)
        constants = correction(layer, torch.float64)
        squares = squares_by_gram if short else squares_of_matrices
        found = [
            squares(*self.factors(layer, some_x.double(), some_g.double()), constants)
            for some_x, some_g in zip(x.split(chunk(held)), g.split(chunk(held)), strict=True)
        ]
        return torch.cat(found)

    def weight_sum(self, layer: Any, x: Tensor, g: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the weight's gradients: one product, as in the backward pass of a batch."""
        raw = self.total(layer, x, g * weights.view(-1, *[1] * (g.dim() - 1)))
        constants = correction(layer, raw.dtype)
        return raw if constants is None else constants.bend(raw)


def gram_is_shorter(positions: int, rows: int, columns: int) -> bool:
    """Return whether the Gram form takes fewer multiplications than the matrix itself."""
    return positions * (rows + columns) < rows * columns or positions == 1


def squares_by_gram(left: Tensor, right: Tensor, constants: Correction | None) -> Tensor:
    """Return ``norm(scale (G_b - lam_b S))^2`` from Gram matrices, rounded up.

    The part along S is split off: ``(<G, S>/norm(S) - lam norm(S))^2 + norm(G)^2 - <G, S>^2/norm(S)^2``. What cancels in the difference,
    and among the positions, is known to the rounding of float64 times the square of ``sum_t norm(left_t) norm(right_t)``, which is added.
    """
    whole = ((left.mT @ left) * (right.mT @ right)).sum(dim=(1, 2, 3))
    size = bound(left, right)
    terms = left.shape[2] + right.shape[2] + left.shape[3]
    if constants is None or constants.direction is None:
        return _scaled(whole + margin(terms, constants) * size.square(), constants)
    length = norm(constants.direction)
    along = inner(left, right, constants.direction) / length
    apart = (whole - along.square()).clamp(min=0)
    rest = along - constants.lam(inner(left, right, constants.weight)) * length
    return _scaled(rest.square() + apart + margin(terms, constants) * size.square(), constants)


def squares_of_matrices(left: Tensor, right: Tensor, constants: Correction | None) -> Tensor:
    """Return ``norm(scale (G_b - lam_b S))^2`` from the matrices themselves, rounded up."""
    raw = (left @ right.mT).flatten(1)
    if constants is not None and constants.direction is not None:
        raw.addr_(constants.lam(raw @ constants.weight.flatten()), constants.direction.flatten(), alpha=-1)
    share = margin(raw.shape[1] + left.shape[3], constants)
    return _scaled((norm(raw, dim=1) * (1 + share) + share * bound(left, right)).square(), constants)


def bound(left: Tensor, right: Tensor) -> Tensor:
    """Return ``sum_t norm(left_t) norm(right_t)`` of each sample, which no norm of a sum of the products exceeds."""
    return norm(left, dim=2).mul(norm(right, dim=2)).sum(dim=(1, 2))


def inner(left: Tensor, right: Tensor, matrix: Tensor) -> Tensor:
    """Return ``<G_b, matrix>`` of each sample without ``G_b``; ``matrix`` has the weight's shape."""
    blocks = matrix.reshape(left.shape[1], left.shape[2], right.shape[2])
    return (left * (blocks @ right)).sum(dim=(1, 2, 3))


def margin(terms: int, constants: Correction | None) -> Tensor | float:
    """Return an upper bound of the relative rounding error of the sums of ``terms`` products above, all in float64.

    An error of ``<G, W>`` reaches the result ``norm(S) / sigma`` times, one of sigma or of S itself ``norm(W) norm(S) / sigma`` times more;
    S is a sum over the pixels of the pair.
    """
    if constants is None:
        return 8 * (terms + 8) * UNIT
    reach = torch.ones_like(constants.sigma) if constants.direction is None else norm(constants.direction)
    amplified = norm(constants.weight).mul(reach).div(constants.sigma.abs()).add(1).square()
    return amplified.mul(8 * (terms + constants.weight.numel() + 8) * UNIT)


def _scaled(squares: Tensor, constants: Correction | None) -> Tensor:
    return squares if constants is None else squares.mul((constants.scale * (1 + margin(8, constants))).square())
