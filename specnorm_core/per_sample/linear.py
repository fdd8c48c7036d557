"""Dense layers: ``nn.Linear`` and ``SpectralLinear``, on rows or on sequences of rows."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from specnorm_core.functional import CONSTRAINTS, unit
from specnorm_core.layers import SpectralEmbedding, SpectralLinear
from specnorm_core.per_sample.base import UNIT, chunk, norm
from specnorm_core.per_sample.correction import active
from specnorm_core.per_sample.products import Product


class Linear(Product):
    """``x (B, ..., n)``, ``g (B, ..., m)``; the axes between are positions of one sample."""

    def bias_samples(self, layer: nn.Linear | SpectralLinear, g: Tensor) -> Tensor:
        """Return ``(B, m)``."""
        return g.reshape(len(g), -1, g.shape[-1]).sum(dim=1)

    def factors(self, layer: nn.Linear | SpectralLinear, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``left (B, 1, m, T)`` and ``right (B, 1, n, T)``."""
        left, right = (side.reshape(len(side), 1, -1, side.shape[-1]).mT for side in (g, x))
        return left, right

    def total(self, layer: nn.Linear | SpectralLinear, x: Tensor, g: Tensor) -> Tensor:
        """Return ``G' X`` over all positions."""
        return g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])


class SpectralDense(Linear):
    """``SpectralLinear``: as above, with closed forms that never store S."""

    def weight_squares(self, layer: SpectralLinear, x: Tensor, g: Tensor) -> Tensor:
        """Return the squared norms of the weight's gradients, rounded up."""
        if x.dim() > 2:
            return super().weight_squares(layer, x, g)
        constants = constants_of(layer)
        rows = chunk(x.shape[1] + g.shape[1])
        parts = zip(x.split(rows), g.split(rows), strict=True)
        if layer.gradient_mode == "simplified":
            found = [norm(some_x.double(), dim=1) * norm(some_g.double(), dim=1) for some_x, some_g in parts]
        else:
            within = active(layer)
            found = [split_norms(layer.weight.detach(), some_x, some_g, constants, within) for some_x, some_g in parts]
        return (torch.cat(found) * constants.scale * (1 + constants.margin)).square() * (1 + 8 * UNIT)

    def weight_sum(self, layer: SpectralLinear, x: Tensor, g: Tensor, weights: Tensor) -> Tensor:
        """Return ``scale (G' X - Lam u v')`` with ``Lam = <G' X, W> / sigma``: a pass over the result instead of one more product."""
        sigma = layer.sigma()
        scale = CONSTRAINTS[layer.constraint](sigma, layer.target)
        raw = self.total(layer, x, g * (weights * scale).to(g.dtype).view(-1, *[1] * (g.dim() - 1)))
        if layer.gradient_mode == "simplified":
            return raw
        u, v = layer.pair
        lam = torch.dot(raw.flatten(), layer.weight.detach().to(raw.dtype).flatten()) / sigma
        within = active(layer)
        return raw.addr_((u * -(lam if within is None else lam * within)).to(raw.dtype), v.to(raw.dtype))


@dataclass(frozen=True)
class Constants:
    """What the samples share, in float64: the pair as unit vectors, ``W v``, ``u' W v``, norm(W), the constraint's scale."""

    u: Tensor
    v: Tensor
    image: Tensor
    sigma: Tensor
    size: Tensor
    scale: Tensor

    @cached_property
    def reach(self) -> Tensor:
        """How much larger an error of W x can be in W x / sigma."""
        return self.size.div(self.sigma.abs())

    @cached_property
    def margin(self) -> Tensor:
        """An upper bound of the relative error of what follows in float64: of a sum, and again of what is divided by sigma."""
        return self.reach.add(1).square().mul(8 * (len(self.u) + len(self.v) + 8) * UNIT)


def constants_of(layer: SpectralLinear | SpectralEmbedding) -> Constants:
    """Return the constants of ``layer``; W is widened a few rows at a time."""
    u, v = (part.double() for part in layer.pair)
    length = norm(u) * norm(v)
    u, v = unit(u), unit(v)
    weight = layer.weight.detach()
    image = v.new_empty(len(weight))
    some = chunk(len(v))
    buffer = v.new_empty(min(some, len(weight)), len(v))
    square = torch.zeros_like(length)
    for rows, part in zip(weight.split(some), image.split(some), strict=True):
        wide = buffer[: len(rows)].copy_(rows)
        torch.mv(wide, v, out=part)
        square += torch.dot(wide.view(-1), wide.view(-1))
    sigma = torch.dot(u, image)
    return Constants(u, v, image, sigma, square.sqrt(), CONSTRAINTS[layer.constraint](sigma * length, layer.target))


def split_norms(weight: Tensor, x: Tensor, g: Tensor, constants: Constants, within: Tensor | None) -> Tensor:
    """Return ``norm(g x' - lam u v')`` of each row, rounded up; lam is ``<g, W x> / sigma``, times ``within``.

    With ``x = b v + x_``, ``g = a u + g_`` the four parts of the matrix are orthogonal:
    ``(a b - lam)^2 + b^2 norm(g_)^2 + norm(g)^2 norm(x_)^2``, nothing cancels but in ``a b - lam``. There ``W x = b W v + W x_``, so that
    the product of matrices, the one thing that is done in the weight's own type, errs in proportion to norm(x_): by
    ``gamma_n norm(W) / sigma norm(g) norm(x_)``, which is added. The result is at most ``1 + gamma_n norm(W) / sigma`` times the true
    one, where gamma_n is about ``n 2^-24`` in float32, plus some ``1e-12 norm(g) norm(x)``.
    """
    x, g = x.double(), g.double()
    b = x @ constants.v
    across = torch.addr(x, b, constants.v, alpha=-1)
    far = norm(across, dim=1)
    a, image = g @ constants.u, g @ constants.image
    beside = norm(torch.addr(g, a, constants.u, alpha=-1), dim=1)
    steep = norm(g, dim=1)
    kind = _type(weight)
    # At norm 1 / sigma: in the middle of the type's range, whatever the scale of W, x and g.
    step = torch.where(far > 0, 1 / (far * constants.sigma), 0.0)
    moved = far * (((across * step[:, None]).to(kind) @ weight.to(kind).T) * g).sum(dim=1)
    lam_rest = b * image / constants.sigma + moved
    area = steep * far
    rest = (a * b - (lam_rest if within is None else lam_rest * within)).abs() + _product_error(weight, kind, constants) * area
    whole = (rest.square() + (b * beside).square() + area.square()).sqrt()
    return whole.mul(1 + constants.margin).add(constants.margin * (area + steep * b.abs()))


def _type(weight: Tensor) -> torch.dtype:
    """Return the type to multiply in: the weight's own, float32 at least; float64 where torch may cut float32 short (TF32, bfloat16)."""
    return torch.promote_types(weight.dtype, torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64)


def _product_error(weight: Tensor, kind: torch.dtype, constants: Constants) -> Tensor:
    """Return a bound of the error of ``<g, W x> / sigma`` for unit g and x: rounding in any order of summation, and underflow."""
    m, n = weight.shape
    limits = torch.finfo(kind)
    roundings = (n + 2) * limits.eps / 2
    underflow = limits.tiny * (n * m**0.5 + n**0.5 * constants.size)
    return constants.reach.mul(roundings / (1 - roundings)).add(underflow)
