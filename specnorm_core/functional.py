"""Stateless pieces of a spectral layer: refinement of (u, v), the scale of the constraint, and the map in both gradient modes.

Two paths compute the same: a fused ``autograd.Function`` for eager linear layers, which never forms ``W / sigma`` and whose backward pass
is two products, and a composite of plain operations for convolutions, ``torch.func`` and ``torch.compile``.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GradientMode = Literal["full", "simplified"]
Constraint = Literal["unit", "cap"]
LinearMap = Callable[[Tensor], Tensor]

SMALL = 8
"""A batch is small where this many times its rows are at most the width of the input."""

GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {"full": lambda sigma: sigma, "simplified": torch.Tensor.detach}
"""How sigma enters the graph: as a function of the weight, or as a constant."""

CONSTRAINTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "unit": lambda sigma, target: target / sigma,
    "cap": lambda sigma, target: torch.clamp(target / sigma, max=1.0),
}
"""What the weight is multiplied with: ``c / sigma``, or ``min(1, c / sigma)`` (SNGP, Liu et al. 2020)."""

DIVISORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "unit": lambda sigma, target: sigma / target,
    "cap": lambda sigma, target: torch.clamp(sigma / target, min=1.0),
}
"""What the output is divided by: one over the scale of ``CONSTRAINTS``."""


def unit(x: Tensor) -> Tensor:
    """Return ``x`` divided by its L2 norm, over all entries, at any scale that the type can hold.

    The largest entry is taken out first: the norm of float32 entries 1e-30 is 0, of 1e30 infinite. A zero ``x`` gives NaN.
    """
    x = x / x.abs().amax()
    return x / x.square().sum().sqrt()


@torch.no_grad()
def refine(forward: LinearMap, adjoint: LinearMap, u: Tensor, *, steps: int) -> tuple[Tensor, Tensor]:
    """Return ``(u, v)`` after ``steps`` power iterations on the linear map ``forward`` with adjoint ``adjoint``.

    Pure: the caller owns the vectors. The error of ``v`` shrinks by ``(s2 / s1) ** 2`` per step, that of sigma by its square.

    Raises:
        ValueError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for _ in range(steps):
        v = unit(adjoint(u))
        u = unit(forward(v))
    return u, v


def composite(y: Tensor, sigma: Tensor, bias: Tensor | None, *, mode: str, constraint: str, target: float) -> Tensor:
    """Return ``y`` scaled as the constraint says, plus the bias; ``y`` is the raw map of the input, bias of ``y``'s channel shape.

    The output is scaled instead of the weight, so ``W / sigma`` is never formed. It is divided by sigma, not multiplied with its inverse,
    whose derivative ``1 / sigma^2`` leaves the range of float32 at a sigma of 1e-20 or 1e20; and in float32 or wider, since float16 does
    not reach ``1 / sigma`` either.
    """
    divisor = DIVISORS[constraint](GRADIENTS[mode](sigma), target)
    y = y / divisor if y.dtype.itemsize >= 4 else (y.float() / divisor).to(y.dtype)
    return y if bias is None else y + bias.to(y.dtype)


class _FusedLinear(torch.autograd.Function):
    """``y = scale(s) x W' + b`` with ``s = u' W v``; backward in closed form (see ``specnorm_core.gradients``)."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes by position
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, v: Tensor, mode: str, constraint: str, target: float
    ) -> Tensor:
        sigma = torch.dot(u, torch.mv(weight, v))
        scale = CONSTRAINTS[constraint](sigma, target)
        y = F.linear(x, weight).mul_(scale)
        if bias is not None:
            y.add_(bias)
        ctx.save_for_backward(x, weight, u, v, sigma, scale)
        ctx.options = (mode, constraint, target, bias is not None)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, u, v, sigma, scale = ctx.saved_tensors
        mode, constraint, target, has_bias = ctx.options
        if torch.is_grad_enabled():  # second derivatives: sigma must be a function of the weight again
            sigma = GRADIENTS[mode](torch.dot(u, torch.mv(weight, v)))
            scale = CONSTRAINTS[constraint](sigma, target)
        rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        full = mode == "full" and ctx.needs_input_grad[1]
        dx = _scaled(g @ weight, scale) if ctx.needs_input_grad[0] or full else None
        dw = db = None
        if ctx.needs_input_grad[1]:
            lam = None
            if dx is not None and full:
                # lam = <g, y_hat> = <dL/dx, x> needs nothing of the forward pass and no bias bookkeeping.
                lam = (dx * x).sum() / sigma
                if constraint == "cap":
                    lam = torch.where(sigma > target, lam, torch.zeros_like(lam))
            dw = _weight_gradient(g_rows, rows, scale, lam, (u, v))
        if has_bias and ctx.needs_input_grad[2]:
            db = g_rows.sum(dim=0)
        return (dx if ctx.needs_input_grad[0] else None), dw, db, None, None, None, None, None


def _scaled(product: Tensor, scale: Tensor) -> Tensor:
    """Return ``product * scale``, in its own memory unless it must be differentiated."""
    return product * scale if torch.is_grad_enabled() else product.mul_(scale)


def _weight_gradient(g: Tensor, x: Tensor, scale: Tensor, lam: Tensor | None, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Return ``scale G' X - lam u v'``, ``(m, n)``; without the second term where ``lam`` is None.

    Every pass over an ``m x n`` result costs as much as the product of a small batch. There the rank-one term rides along as one more row
    of the product, which copies x and g; of a large batch, whose copies would cost memory, it is added in place.
    """
    if lam is None:
        return (g * scale).T @ x if len(x) * SMALL <= x.shape[1] else _scaled(g.T @ x, scale)
    u, v = pair
    if len(x) * SMALL <= x.shape[1] or torch.is_grad_enabled():
        return torch.cat([g * scale, (u * -lam)[None]]).T @ torch.cat([x, v[None]])
    return (g.T @ x).mul_(scale).addr_(u * -lam, v)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, v: Tensor, *, mode: str, constraint: str = "unit", target: float = 1.0
) -> Tensor:
    """Return ``x W' scale(u' W v) + b``; ``x (..., n)``, ``weight (m, n)``, ``u (m)``, ``v (n)``."""
    # Under autocast sigma stays in the weight's own type; torch.func and torch.compile need operations that they can see through.
    # A weight stored in half precision has its sigma in float32.
    half = weight.dtype.itemsize < 4
    if half or torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        with torch.autocast(x.device.type, enabled=False):
            sigma = torch.dot(u, torch.mv(weight.float() if half else weight, v))
        return composite(F.linear(x, weight), sigma, bias, mode=mode, constraint=constraint, target=target)
    y: Tensor = _FusedLinear.apply(x, weight, bias, u, v, mode, constraint, target)  # type: ignore[no-untyped-call]  # torch gives it no types
    return y
