"""What the spectral layers share: the options, and (u, v) as a cache that follows the weight."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from specnorm_core import functional
from specnorm_core.functional import Constraint, GradientMode
from specnorm_core.krylov import leading

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
        self._image: Tensor | None = None
        self._seen = -1

    def _take(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take over the parameters of a plain layer, initialised as PyTorch does."""
        self.weight = nn.Parameter(weight.detach())
        self.bias = None if bias is None else nn.Parameter(bias.detach())

    def forward_map(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the linear map that sigma is the norm of, applied to ``x``."""
        raise TypeError(f"{type(self).__name__} must define the map that sigma is the norm of")

    def adjoint_map(self, y: Tensor, weight: Tensor) -> Tensor:
        """Return the adjoint of :meth:`forward_map` applied to ``y``."""
        with torch.enable_grad():
            probe = torch.zeros_like(self._v).requires_grad_()
            return torch.autograd.grad(self.forward_map(probe, weight), probe, y)[0]

    def matricise(self, weight: Tensor) -> Tensor:
        """Return ``weight`` as the matrix ``(out, rest)`` whose norm is the ``matricised`` one."""
        return weight.flatten(1)

    def domain(self) -> tuple[int, ...]:
        """Return the shape of ``v``."""
        raise TypeError(f"{type(self).__name__} must define the shape of v")

    def refresh(self, steps: int = 1) -> Self:
        """Step the power iteration on (u, v); from a start of its own where there are none yet.

        A forward pass in training left ``A v`` behind: the first step takes it instead of computing it again.
        """
        weight = self._wide()
        if torch.is_autocast_enabled(weight.device.type):
            with torch.autocast(weight.device.type, enabled=False):
                return self.refresh(steps)
        if self._v.numel() == 0:
            self._start(weight)
        u, v = functional.refine(
            lambda x: self.forward_map(x, weight), lambda y: self.adjoint_map(y, weight), self._v, steps=steps, image=self._image
        )
        # Past Module.__setattr__, whose search for parameters takes a fifth of the time for a small layer.
        self.__dict__.update(_u=u, _v=v, _image=None, _seen=self.weight._version)
        return self

    def forget_image(self) -> None:
        """Drop what a forward pass left behind: the next step of the power iteration is a function of the weight and v alone."""
        self._image = None

    def advance(self, steps: int = 1) -> Self:
        """Follow a step of the optimiser: what ``power_iteration`` calls."""
        return self.refresh(steps)

    @torch.no_grad()
    def rederive(self, steps: int = 20) -> Self:
        """Forget (u, v) and derive them from the weight, by ``steps`` of a Lanczos iteration with one start for all layers of a shape.

        Raises:
            ValueError: the weight is empty, zero or not finite.
        """
        weight = self._wide()
        with torch.autocast(weight.device.type, enabled=False):
            self._start(weight)
            u, v = leading(lambda x: self.forward_map(x, weight), lambda y: self.adjoint_map(y, weight), self._v, steps)
        self._u, self._v, self._image = u, v, None
        self._seen = self.weight._version
        return self

    def _start(self, weight: Tensor) -> None:
        """Derive a first (u, v) from the weight alone, so that a layer and its copy agree.

        Raises:
            ValueError: the weight is empty, zero or not finite, or the whole map is zero at the size of its input.
        """
        if not weight.numel():
            raise self._undefined("empty")
        size = weight.abs().amax()
        if not (torch.isfinite(size) and size > 0):
            raise self._undefined("zero" if size == 0 else "not finite")
        generator = torch.Generator().manual_seed(0)
        self._v = torch.randn(self.domain(), generator=generator, dtype=torch.float64).to(weight.device, weight.dtype)
        self._image = self.forward_map(self._v, weight)
        if not torch.isfinite(functional.unit(self._image)).all():
            self._v, self._image = torch.empty(0), None
            raise self._undefined("zero in all that it does to an input of this size, or too large for its type")

    def _undefined(self, what: str) -> ValueError:
        return ValueError(
            f"the weight of a {self.kind} layer of shape {tuple(self.weight.shape)} is {what}: its spectral norm is not defined"
        )

    def _wide(self) -> Tensor:
        weight = self.weight.detach()
        return weight.float() if weight.dtype.itemsize < 4 else weight

    def sigma(self) -> Tensor:
        """Return the estimate ``<u, A v>`` of sigma, a scalar tensor; a lower bound."""
        weight = self._wide()
        with torch.autocast(weight.device.type, enabled=False):
            return (self._u * self.forward_map(self._v, weight)).sum()

    def latest_sigma(self) -> Tensor:
        """Return sigma as the last forward pass in training took it, detached; as it is now, where there was none since a refresh."""
        return self.sigma().detach() if self._image is None else torch.dot(self._u.view(-1), self._image.view(-1))

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The cached ``(u, v)``."""
        return self._u, self._v

    def set_pair(self, u: Tensor, v: Tensor) -> None:
        """Take ``(u, v)`` from a checkpoint of the same weight: a resumed run goes on as if nothing had happened."""
        if v.shape != self.domain():
            raise ValueError(f"v must have shape {self.domain()}, got {tuple(v.shape)}")
        wide = self._wide()
        self._u, self._v, self._image = u.to(wide), v.to(wide), None
        self._seen = self.weight._version

    def _keep(self, weight: Tensor) -> functional.Keep:
        """Return what takes ``A v`` of a forward pass: in training it is left to :meth:`refresh`; no answer depends on it."""
        return self._leave if self.training and isinstance(weight, nn.Parameter) else functional.forget

    def _leave(self, image: Tensor) -> None:
        self.__dict__["_image"] = image

    def scaled(self, y: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``y``, the raw map of an input, scaled as the constraint says, plus ``bias``; sigma in float32 or wider."""
        weight = self.weight
        with torch.autocast(weight.device.type, enabled=False):
            image = self.forward_map(self._v, weight.float() if weight.dtype.itemsize < 4 else weight)
            sigma = (self._u * image).sum()
        if not functional.traced():
            self._keep(weight)(image.detach())
        return functional.composite(y, sigma, bias, mode=self.gradient_mode, constraint=self.constraint, target=self.target)

    def _follow(self) -> None:
        """See to (u, v) where the weight changed since they were refreshed: derive them again in eval mode, warn in training.

        A weight that a functional call put in the place of the parameter is used with the pair as it is; so is one under compilation.
        """
        weight = self.weight
        if torch.compiler.is_compiling() or not isinstance(weight, nn.Parameter) or weight.is_inference() or weight._version == self._seen:
            return
        if not self.training:
            self.rederive()
        elif torch.is_grad_enabled():
            warnings.warn(UNATTACHED, stacklevel=3)
            self._seen = weight._version

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        fresh = self._seen == self.weight._version
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        if self._v.numel():
            # Half precision would spoil the pair: it follows the device, and stays in float32 or wider.
            wide = self._wide()
            self._u, self._v, self._image = self._u.to(wide), self._v.to(wide), None
        self._seen = self.weight._version if fresh else -1
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": 0 if self._seen == self.weight._version else -1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch gives it no types
        if self._seen == 0:
            self._seen = self.weight._version  # a copy's weight counts its changes from the start

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        try:
            self.rederive()
        except ValueError as error:
            raise ValueError(f"layer {prefix.rstrip('.')!r}: {error}" if prefix else str(error)) from None

    def extra_repr(self) -> str:
        """Return the options, as ``print(model)`` shows them."""
        return f"gradient_mode={self.gradient_mode}, constraint={self.constraint}, target={self.target}, norm={self.norm}"
