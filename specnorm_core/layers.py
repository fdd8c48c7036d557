"""Layers whose weight is divided by its spectral norm: ``SpectralLinear`` and ``SpectralConv2d``.

The forward pass is pure: it reads (u, v) and changes nothing. They are a derived cache, neither parameter nor buffer, so the state dict is
that of the plain layer; they are derived again after a load and refreshed by ``power_iteration`` (once per optimiser step, by ``fit`` or
``attach``).
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specnorm_core import functional
from specnorm_core.functional import Constraint, GradientMode

Norm = Literal["operator", "matricised"]
NORMS = ("matricised", "operator")
UNATTACHED = (
    "the weight of this spectral layer changed since its (u, v) were refreshed, so sigma is stale: "
    "call specnorm_core.attach(model, optimizer) once, or specnorm_core.power_iteration(model) after every step"
)


def choose(what: str, value: str, choices: Any) -> str:
    """Return ``value``.

    Raises:
        ValueError: it is not among ``choices``, which the sentence lists.
    """
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(sorted(choices))}; got {value!r}")
    return value


class SpectralLayer(nn.Module):
    """What the spectral layers share: the options, and (u, v) as a cache that follows the weight.

    Args:
        gradient_mode: ``full`` (the gradient of the loss) or ``simplified`` (sigma held constant; a heuristic).
        constraint: ``unit`` (W c / sigma) or ``cap`` (W min(1, c / sigma)).
        target: c, above 0.
        norm: whose largest singular value sigma is: of the true linear ``operator``, or of the ``matricised`` kernel.
    """

    kind: str
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, *, gradient_mode: GradientMode, constraint: Constraint, target: float, norm: Norm) -> None:
        super().__init__()
        self.gradient_mode = choose("gradient_mode", gradient_mode, functional.GRADIENTS)
        self.constraint = choose("constraint", constraint, functional.CONSTRAINTS)
        self.norm = choose("norm", norm, NORMS)
        if not (target > 0 and math.isfinite(target)):
            raise ValueError(f"target must be a finite number above 0, got {target}")
        self.target = float(target)
        self._u = self._v = torch.empty(0)
        self._seen = -1

    def _take(self, plain: nn.Linear | nn.Conv2d) -> None:
        """Take over the parameters of the plain layer, initialised as PyTorch does."""
        self.weight = nn.Parameter(plain.weight.detach())
        self.bias = None if plain.bias is None else nn.Parameter(plain.bias.detach())

    def forward_map(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the linear map that sigma is the norm of, applied to ``x``."""
        raise TypeError(f"{type(self).__name__} must define the map that sigma is the norm of")

    def adjoint_map(self, y: Tensor, weight: Tensor) -> Tensor:
        """Return the adjoint of :meth:`forward_map` applied to ``y``."""
        with torch.enable_grad():
            probe = torch.zeros_like(self._v).requires_grad_()
            return torch.autograd.grad(self.forward_map(probe, weight), probe, y)[0]

    def domain(self) -> tuple[int, ...]:
        """Return the shape of ``v``."""
        raise TypeError(f"{type(self).__name__} must define the shape of v")

    @torch.no_grad()
    def refresh(self, steps: int = 1) -> Self:
        """Step the power iteration on (u, v); from a start of its own where there are none yet."""
        weight = self._wide()
        if self._v.numel() == 0:
            self._start(weight)
        u, v = functional.refine(lambda x: self.forward_map(x, weight), lambda y: self.adjoint_map(y, weight), self._u, steps=steps)
        self._u, self._v = u, v
        self._seen = self.weight._version
        return self

    def rederive(self, steps: int = 15) -> Self:
        """Forget (u, v) and derive them from the weight.

        Raises:
            ValueError: the weight is zero or not finite.
        """
        self._v = torch.empty(0)
        return self.refresh(steps)

    def _start(self, weight: Tensor) -> None:
        """Derive a first (u, v) from the weight alone, so that a layer and its copy agree.

        Raises:
            ValueError: the weight is zero or not finite.
        """
        size = weight.abs().amax() if weight.numel() else torch.zeros(())
        if not (torch.isfinite(size) and size > 0):
            what = "zero" if size == 0 else "not finite"
            raise ValueError(
                f"the weight of a {self.kind} layer of shape {tuple(self.weight.shape)} is {what}: its spectral norm is not defined"
            )
        generator = torch.Generator().manual_seed(0)
        self._v = torch.randn(self.domain(), generator=generator, dtype=torch.float64).to(weight.device, weight.dtype)
        self._u = functional.unit(self.forward_map(self._v, weight))

    def _wide(self) -> Tensor:
        weight = self.weight.detach()
        return weight.float() if weight.dtype.itemsize < 4 else weight

    def sigma(self) -> Tensor:
        """Return the estimate ``<u, A v>`` of sigma, a scalar tensor; a lower bound."""
        return (self._u * self.forward_map(self._v, self._wide())).sum()

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The cached ``(u, v)``."""
        return self._u, self._v

    def set_pair(self, u: Tensor, v: Tensor) -> None:
        """Take ``(u, v)`` from a checkpoint of the same weight: a resumed run goes on as if nothing had happened."""
        if v.shape != self.domain():
            raise ValueError(f"v must have shape {self.domain()}, got {tuple(v.shape)}")
        wide = self._wide()
        self._u, self._v = u.to(wide), v.to(wide)
        self._seen = self.weight._version

    def _warn_if_stale(self) -> None:
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling() and self.weight._version != self._seen:
            warnings.warn(UNATTACHED, stacklevel=3)
            self._seen = self.weight._version

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        if self._v.numel():
            # Half precision would spoil the pair: it follows the device, and stays in float32 or wider.
            wide = self._wide()
            self._u, self._v = self._u.to(wide), self._v.to(wide)
            self._seen = self.weight._version
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch gives it no types
        self._seen = self.weight._version  # a copy's weight counts its changes from the start

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.rederive()

    def extra_repr(self) -> str:
        """Return the options, as ``print(model)`` shows them."""
        return f"gradient_mode={self.gradient_mode}, constraint={self.constraint}, target={self.target}, norm={self.norm}"


class SpectralLinear(SpectralLayer):
    """``y = x W' c / sigma(W) + b``: ``x (..., in_features)`` to ``(..., out_features)``.

    Args:
        in_features: n.
        out_features: m.
        bias: whether a bias is added; it does not pass through W, so no gradient of sigma flows to or from it.
        **options: as in :class:`SpectralLayer`; the two norms are one for a matrix.
    """

    kind = "linear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        gradient_mode: GradientMode = "full",
        constraint: Constraint = "unit",
        target: float = 1.0,
        norm: Norm = "operator",
    ) -> None:
        super().__init__(gradient_mode=gradient_mode, constraint=constraint, target=target, norm=norm)
        self._take(nn.Linear(in_features, out_features, bias=bias))
        self.in_features, self.out_features = in_features, out_features
        self.rederive()

    def domain(self) -> tuple[int, ...]:
        """Return ``(in_features,)``."""
        return (self.weight.shape[1],)

    def forward_map(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``W x``, ``(m,)``."""
        return torch.mv(weight, x)

    def adjoint_map(self, y: Tensor, weight: Tensor) -> Tensor:
        """Return ``W' y``, ``(n,)``."""
        return torch.mv(weight.T, y)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x (..., n)``."""
        self._warn_if_stale()
        return functional.linear(
            x, self.weight, self.bias, self._u, self._v, mode=self.gradient_mode, constraint=self.constraint, target=self.target
        )

    def extra_repr(self) -> str:
        """Return sizes and options."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}"


def _two(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


class SpectralConv2d(SpectralLayer):
    """A 2-D convolution divided by its spectral norm: ``(B, in, h, w)`` to ``(B, out, h', w')``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one size or (height, width); as ``stride``, ``padding``, ``dilation``.
        stride: step of the kernel.
        padding: zeros added on each side.
        dilation: spacing of the kernel's entries.
        groups: blocks of channels.
        bias: whether a bias is added.
        input_size: (h, w) of the input: needed by the norm ``operator``, whose sigma is that of the map from image to image at this size.
        **options: as in :class:`SpectralLayer`. The ``matricised`` norm is what PyTorch and Miyato et al. 2018 use; it is *not* the norm of
            the convolution (33 to 79 % too low where measured) and never feeds a certificate.

    Raises:
        ValueError: ``operator`` without ``input_size``; an input of another size at run time.
    """

    kind = "conv2d"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        input_size: tuple[int, int] | None = None,
        gradient_mode: GradientMode = "full",
        constraint: Constraint = "unit",
        target: float = 1.0,
        norm: Norm = "operator",
    ) -> None:
        super().__init__(gradient_mode=gradient_mode, constraint=constraint, target=target, norm=norm)
        if norm == "operator" and input_size is None:
            raise ValueError("norm 'operator' needs input_size=(height, width): the norm of a convolution depends on the size of its input")
        self._take(nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias))
        self.stride, self.padding, self.dilation, self.groups = _two(stride), _two(padding), _two(dilation), groups
        self.input_size = None if input_size is None else (int(input_size[0]), int(input_size[1]))
        self.rederive()

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution of ``x (B, in, h, w)`` with ``weight``, bias excluded."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def domain(self) -> tuple[int, ...]:
        """Return the shape of ``v``: an image, or a row of the matricised kernel."""
        if self.norm == "matricised":
            return (self.weight[0].numel(),)
        assert self.input_size is not None  # noqa: S101  # the constructor refused it
        return (1, self.weight.shape[1] * self.groups, *self.input_size)

    def forward_map(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the map whose norm is meant, applied to ``x``."""
        return torch.mv(weight.flatten(1), x) if self.norm == "matricised" else self.convolve(x, weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x (B, in, h, w)``."""
        self._warn_if_stale()
        if self.norm == "operator" and tuple(x.shape[-2:]) != self.input_size:
            raise ValueError(
                f"sigma is that of inputs of size {self.input_size}, got {tuple(x.shape[-2:])}: set input_size to the size in use"
            )
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.float() if self.weight.dtype.itemsize < 4 else self.weight
            sigma = (self._u * self.forward_map(self._v, weight)).sum()
        bias = None if self.bias is None else self.bias[:, None, None]
        return functional.composite(
            self.convolve(x, self.weight), sigma, bias, mode=self.gradient_mode, constraint=self.constraint, target=self.target
        )
