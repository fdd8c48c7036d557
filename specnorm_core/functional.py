"""Stateless pieces of a spectral layer: refinement of (u, v), the scale of the constraint, and the map in both gradient modes.

Two paths compute the same: a fused ``autograd.Function`` for eager linear layers, which never forms ``W / sigma`` and whose backward pass
is two products, and a composite of plain operations for convolutions, ``torch.func`` and ``torch.compile``.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GradientMode = Literal["full", "simplified"]
Constraint = Literal["unit", "cap"]
LinearMap = Callable[[Tensor], Tensor]
Keep = Callable[[Tensor], None]

GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {"full": lambda sigma: sigma, "simplified": torch.Tensor.detach}
"""How sigma enters the graph: as a function of the weight, or as a constant."""

CONSTRAINTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "unit": lambda sigma, target: target / sigma,
    "cap": lambda sigma, target: torch.clamp(target / sigma, max=1.0),
}
"""What the weight is multiplied with: ``c / sigma``, or ``min(1, c / sigma)`` (SNGP, Liu et al. 2020)."""

DIVISORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "unit": lambda sigma, target: sigma if target == 1 else sigma / target,
    "cap": lambda sigma, target: torch.clamp(sigma / target, min=1.0),
}
"""What the output is divided by: one over the scale of ``CONSTRAINTS``."""


def unit(x: Tensor) -> Tensor:
    """Return ``x`` divided by its L2 norm, over all entries, at any scale that the type can hold.

    The largest entry is taken out first: the norm of float32 entries 1e-30 is 0, of 1e30 infinite. A zero ``x`` gives NaN.
    """
    x = x / torch.linalg.vector_norm(x, math.inf)
    length: Tensor = torch.linalg.vector_norm(x)
    return x / length


@torch.no_grad()
def refine(forward: LinearMap, adjoint: LinearMap, v: Tensor, *, steps: int, image: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ``(u, v)`` after ``steps`` power iterations on the linear map ``forward`` with adjoint ``adjoint``.

    Pure: the caller owns the vectors. The error of ``v`` shrinks by ``(s2 / s1) ** 2`` per step, that of sigma by its square. The first
    step takes ``image`` for ``forward(v)`` where there is one: that of the weight before an optimiser's step serves as well, since any
    ``u`` not orthogonal to the leading one does.

    Raises:
        ValueError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for _ in range(steps):
        u = unit(forward(v) if image is None else image)
        v, image = unit(adjoint(u)), None
    return u, v


def forget(image: Tensor) -> None:
    """Keep nothing."""


def traced() -> bool:
    """Say whether torch.compile or torch.func run the code: no side effect may happen then."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


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
    """``y = scale(s) x W' + b`` with ``s = u' W v``; backward in closed form (see ``specnorm_core.gradients``).

    At batch 1 the time is that of the passes over W: this makes one more than the plain layer in each step, for ``W v``, which it hands
    to ``keep``, so that the power iteration needs only ``W' u``.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes by position
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        u: Tensor,
        v: Tensor,
        mode: str,
        constraint: str,
        target: float,
        keep: Keep,
    ) -> Tensor:
        image = torch.mv(weight, v)
        keep(image)
        sigma = torch.dot(u, image)
        scale = DIVISORS[constraint](sigma, target).reciprocal()
        ctx.save_for_backward(x, weight, u, v, sigma, scale)
        ctx.options = mode, constraint, target
        y = F.linear(x, weight)
        return y.mul_(scale) if bias is None else torch.addcmul(bias, y, scale, out=y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_FusedLinear.differentiable_backward(ctx, g), *[None] * 6
        x, weight, u, v, sigma, scale = ctx.saved_tensors
        mode, constraint, target = ctx.options
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        g_rows = g if g.ndim == 2 else g.reshape(-1, g.shape[-1])
        dw = _weight_gradient(g_rows, rows, scale) if needs_weight else None
        dx = torch.mm(g_rows, weight).mul_(scale) if needs_x else None
        db = g_rows.sum(dim=0) if needs_bias else None
        if dw is not None and mode == "full":
            # lam = <g, y_hat> = <dL/dx, x> = <dL/dW simplified, W> needs nothing of the forward pass and no bias bookkeeping.
            one, other = (dw, weight) if dx is None or dw.numel() < dx.numel() else (dx, rows)
            lam = torch.dot(one.reshape(-1), other.reshape(-1)) / sigma
            if constraint == "cap":
                lam = torch.where(sigma > target, lam, torch.zeros_like(lam))
            dw.addmm_((u * lam)[:, None], v[None], alpha=-1)  # faster than addr_
        return None if dx is None else dx.view(x.shape), dw, db, *[None] * 6

    @staticmethod
    def differentiable_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients as functions of the inputs, for second derivatives: those of the composite path."""
        x, weight, u, v, _, _ = ctx.saved_tensors
        mode, constraint, target = ctx.options
        # Views, so that the gradient of the weight is not also that of an x that depends on it.
        x, weight = x.view_as(x), weight.view_as(weight)
        y = composite(F.linear(x, weight), torch.dot(u, torch.mv(weight, v)), None, mode=mode, constraint=constraint, target=target)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wanted = [part for part, needed in ((x, needs_x), (weight, needs_weight)) if needed]
        found = iter(torch.autograd.grad(y, wanted, g, create_graph=True) if wanted else ())
        dx, dw = next(found) if needs_x else None, next(found) if needs_weight else None
        return dx, dw, g.reshape(-1, g.shape[-1]).sum(dim=0) if needs_bias else None


def _weight_gradient(g: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Return ``scale G' X``, ``(m, n)``; the factor goes to the smaller of G and the product. One row is an outer product."""
    if len(x) > x.shape[1]:
        return torch.mm(g.T, x).mul_(scale)
    g = (g * scale).T
    return g * x if len(x) == 1 else torch.mm(g, x)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    v: Tensor,
    *,
    mode: str,
    constraint: str = "unit",
    target: float = 1.0,
    keep: Keep = forget,
) -> Tensor:
    """Return ``x W' scale(u' W v) + b``; ``x (..., n)``, ``weight (m, n)``, ``u (m)``, ``v (n)``.

    ``keep`` is called with ``W v``, unless torch.func or torch.compile trace the call.
    """
    # Under autocast sigma stays in the weight's own type; torch.func and torch.compile need operations that they can see through.
    # A weight stored in half precision has its sigma in float32.
    half, seen_through = weight.dtype.itemsize < 4, traced()
    if half or seen_through or torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            image = torch.mv(weight.float() if half else weight, v)
            sigma = torch.dot(u, image)
        if not seen_through:
            keep(image.detach())
        return composite(F.linear(x, weight), sigma, bias, mode=mode, constraint=constraint, target=target)
    y: Tensor = _FusedLinear.apply(x, weight, bias, u, v, mode, constraint, target, keep)  # type: ignore[no-untyped-call]  # torch gives it no types
    return y
