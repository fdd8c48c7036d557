"""Read a layer of another library without touching it: its weight, and what that library divides the weight with.

Reading ``layer.weight`` of a parametrized layer in train mode steps its power iteration, and the hook form's ``weight`` is whatever the
last forward left there: both are read from the parts that they are computed from.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COEFFICIENT = "_LipschitzCoefMultiplication"
FACTORS = {"_LConvNorm": "lconv_coefficient", COEFFICIENT: "_coef"}
"""deel-torchlip's parametrizations that multiply by a number, by class name, and the attribute that holds it."""
BJORCK = "_BjorckNorm"
SPECTRAL = "_SpectralNorm"


class ConversionError(ValueError):
    """A layer cannot be converted; the sentence names it."""


@dataclass(frozen=True)
class Incoming:
    """One layer as it came.

    Attributes:
        form: ``plain``, ``hook``, ``parametrization`` or ``deel-torchlip``.
        base: the plain PyTorch class that it computes as.
        weight: the weight that is divided; the layer's own parameter, except for the Björck form.
        divisor: what the source divides ``weight`` with, from its own u and v; None for a plain layer.
        factor: what multiplies the quotient: the norm claimed, of a convolution in its matricised form.
        operator: the norm claimed of a convolution as a map of images.
        orthogonal: whether ``weight`` is what a Björck iteration made of the parameter.
    """

    form: str
    base: type[nn.Module]
    weight: Tensor
    divisor: float | None = None
    factor: float = 1.0
    operator: float = 1.0
    orthogonal: bool = False


def read(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Incoming | None:
    """Return what ``module`` is, or None for one that no form of spectral norm can be read from.

    Args:
        module: any module; it is not changed, whatever its mode.
        kinds: the plain classes that a spectral layer exists for.

    Raises:
        ConversionError: the module is in a form that is not understood: leaving it as it is would leave a norm unbounded unseen.
    """
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)]
    if hooks:
        return _hook(module, hooks, kinds)
    if parametrize.is_parametrized(module):
        return _parametrized(module, kinds)
    if type(module) not in kinds:
        return None
    weight = module._parameters.get("weight")
    if weight is None:
        raise ConversionError("its weight is no parameter (weight norm or pruning?): make it a plain layer first")
    return Incoming("plain", type(module), weight)


def _hook(module: nn.Module, hooks: list[SpectralNorm], kinds: tuple[type[nn.Module], ...]) -> Incoming:
    if type(module) not in kinds or [hook.name for hook in hooks] != ["weight"]:
        names = ", ".join(hook.name for hook in hooks)
        raise ConversionError(f"there is no spectral layer for the spectral norm of {names} of a {type(module).__name__}")
    weight, u, v = (module.get_parameter("weight_orig"), module.get_buffer("weight_u"), module.get_buffer("weight_v"))
    _check_axis(type(module), weight, hooks[0].dim)
    return Incoming("hook", type(module), weight, quotient(weight, u, v, hooks[0].dim))


def _parametrized(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Incoming:
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)  # noqa: S101  # is_parametrized has looked
    chains = {name: list(chain.children()) for name, chain in lists.items()}
    found = [type(part).__name__ for chain in chains.values() for part in chain]
    known = [name for name in found if name in (SPECTRAL, BJORCK, *FACTORS)]
    if list(chains) != ["weight"] or known != found or not found or found[0] != SPECTRAL:
        raise ConversionError(f"its parametrization of {', '.join(chains)} by {', '.join(found)} is not understood: remove it first")
    original = module.get_parameter("parametrizations.weight.original")
    spectral: Any = chains["weight"][0]
    base = _base(module, kinds, torchlip=hasattr(module, "_coefficient_lip"))
    _check_axis(base, original, spectral.dim)
    named = [(type(part).__name__, part) for part in chains["weight"]]
    factors = {name: float(getattr(part, FACTORS[name])) for name, part in named if name in FACTORS}
    factor, operator = math.prod(factors.values(), start=1.0), factors.get(COEFFICIENT, 1.0)
    if BJORCK in found:
        # A copy, in the module's own mode: what its next forward would compute with.
        twin: Any = copy.deepcopy(module)
        weight = twin.weight.detach()
        return Incoming("deel-torchlip", base, weight, 1.0, factor, operator, orthogonal=True)
    form = "deel-torchlip" if hasattr(module, "_coefficient_lip") else "parametrization"
    return Incoming(form, base, original, quotient(original, spectral._u, spectral._v, spectral.dim), factor, operator)


def _base(module: nn.Module, kinds: tuple[type[nn.Module], ...], *, torchlip: bool) -> type[nn.Module]:
    own = parametrize.type_before_parametrizations(module)
    if getattr(module, "old_padding_mode", "zeros") == "symmetric":
        raise ConversionError("symmetric padding has no counterpart")
    for kind in own.__mro__ if torchlip else (own,):
        if kind in kinds:
            return kind
    raise ConversionError(f"there is no spectral layer for a {own.__name__}")


def _check_axis(base: type[nn.Module], weight: Tensor, dim: int) -> None:
    usual = 1 if issubclass(base, TRANSPOSED) else 0
    if weight.ndim > 2 and dim != usual:
        raise ConversionError(f"its spectral norm is taken along axis {dim}, and the spectral layer's along axis {usual}")


@torch.no_grad()
def quotient(weight: Tensor, u: Tensor, v: Tensor, dim: int) -> float:
    """Return ``u' W v`` as PyTorch takes it, ``W`` being ``weight`` with axis ``dim`` first and the others flattened; in float64."""
    matrix = weight.detach().double().movedim(dim, 0).flatten(1)
    return float(u.double() @ matrix @ v.double())


def other_hooks(module: nn.Module) -> int:
    """Return how many hooks of the user's own hang on ``module``."""
    before = [hook for hook in module._forward_pre_hooks.values() if not isinstance(hook, SpectralNorm)]
    return len(before) + len(module._forward_hooks) + len(module._backward_hooks) + len(module._backward_pre_hooks)
