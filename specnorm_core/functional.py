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
Column = Callable[[Tensor, Tensor], Tensor]

FEW = 64
"""Rows are few where this many times their number is at most the width: copies of x and g are then small beside the weight."""
CACHE = 2**21
"""Entries beyond which a float32 matrix lies in memory, whose passes then are what costs."""

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
    wide = y if y.dtype.itemsize >= 4 else y.float()
    quotient: Tensor = wide / divisor if traced() else _Quotient.apply(wide, divisor)  # type: ignore[no-untyped-call]  # torch gives it no types
    y = quotient.to(y.dtype)
    return y if bias is None else y + bias.to(y.dtype)


class _Quotient(torch.autograd.Function):
    """``y / d`` for a scalar d; its backward pass makes two passes over y where that of PyTorch's division makes five."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, divisor: Tensor) -> Tensor:
        quotient = y * divisor.reciprocal()
        ctx.save_for_backward(quotient if ctx.needs_input_grad[1] else None, divisor)
        return quotient

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        quotient, divisor = ctx.saved_tensors
        dy = g * divisor.reciprocal() if ctx.needs_input_grad[0] else None
        if quotient is None:
            return dy, None
        product = (g * quotient).sum() if torch.is_grad_enabled() else torch.dot(g.reshape(-1), quotient.reshape(-1))
        return dy, -product / divisor


class _FusedLinear(torch.autograd.Function):
    """``y = scale(s) x W' + b`` with ``s = u' W v``; backward in closed form (see ``specnorm_core.gradients``).

    In a small batch the time is that of the passes over W and its gradient. This makes one more than the plain layer, for ``W v``, which
    it hands to ``keep``, so that the power iteration makes only one, for ``W' u``; the rank-one term rides along with the product.
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
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        g = g if g.ndim == 2 else g.reshape(-1, g.shape[-1])
        db = g.sum(dim=0) if ctx.needs_input_grad[2] else None

        def column(one: Tensor, other: Tensor) -> Tensor:
            """Return ``-lam u / s``; lam = <g, y_hat> = <dL/dx, x> = <dL/dW simplified, W> needs no y and no bias bookkeeping."""
            lam = torch.dot(one.reshape(-1), other.reshape(-1)) / sigma
            part: Tensor = u * (torch.where(sigma > target, -lam, torch.zeros_like(lam)) if constraint == "cap" else -lam)
            return part

        products = _few_rows if len(rows) * FEW <= weight.shape[1] else _many_rows
        exact = column if mode == "full" else None
        dx, dw = products(g, rows, weight, scale=scale, v=v, column=exact, needs=ctx.needs_input_grad[:2])
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


def _few_rows(
    g: Tensor, x: Tensor, weight: Tensor, *, scale: Tensor, v: Tensor, column: Column | None, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return ``dL/dx, dL/dW`` where needed: ``scale G W`` and ``scale G' X + column v'``, the last term riding along with the product."""
    needs_x, needs_weight = needs
    g = g * scale
    if not (needs_weight and column):
        dw = None if not needs_weight else g.T * x if len(x) == 1 else torch.mm(g.T, x)
        return torch.mm(g, weight) if needs_x else None, dw
    dx = torch.mm(g, weight)
    u = column(dx, x)
    if len(x) == 1:
        dw = _outer_products(g[0], x[0], u, v)
    else:
        g, x = torch.cat([g, u[None]]), torch.cat([x, v[None]])
        dw = torch.mm(g.T, x)
    return dx if needs_x else None, dw


def _many_rows(
    g: Tensor, x: Tensor, weight: Tensor, *, scale: Tensor, v: Tensor, column: Column | None, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return what :func:`_few_rows` does, in the memory of the plain layer: a scaled copy of G is gone before ``dL/dx`` is there."""
    needs_x, needs_weight = needs
    dx = dw = None
    if needs_weight:
        dw = torch.mm((g * scale).T, x) if g.numel() < weight.numel() else torch.mm(g.T, x).mul_(scale)
    if needs_x:
        dx = torch.mm(g, weight).mul_(scale)
    if dw is not None and column:
        smaller = (dw, weight) if dx is None or dw.numel() < dx.numel() else (dx, x)
        dw.addmm_(column(*smaller)[:, None], v[None])
    return dx, dw


def _outer_products(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Return ``a x' + b y'``, ``(m, n)``, in as few passes over it as there is a way to."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and len(a) * len(x) > CACHE:
        # Row i is the sum of x and y with weights a_i and b_i: out of cache, the one operation that gets there in a single pass.
        bags, weights = torch.arange(2).expand(len(a), 2), torch.stack([a, b], dim=1)
        sums: Tensor = F.embedding_bag(bags, torch.stack([x, y]), per_sample_weights=weights, mode="sum")
        return sums
    return (a[:, None] * x).addmm_(b[:, None], y[None])  # faster than addr_, and than a product of two rows


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
