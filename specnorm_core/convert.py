"""``spectral_norm(model)``: a copy of a model with spectral layers, from plain ones or another library's; ``plain(model)``: the way back.

The model that comes in is only read: no forward is run on it, its power iteration is not stepped, and what a layer holds after a forward or
under a parametrization, which ``copy`` or ``pickle`` refuses, is no hindrance.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from specnorm_core import functional
from specnorm_core.counterparts import KINDS, bare_layer, base_of
from specnorm_core.functional import Constraint, GradientMode
from specnorm_core.incoming import TRANSPOSED, ConversionError, Incoming, other_hooks, quotient, read
from specnorm_core.lanczos import settle
from specnorm_core.layers import Norm, SpectralLayer
from specnorm_core.norms import spectral_layers
from specnorm_core.orthogonal import OrthogonalLinear

TOLERANCE = 1e-6
"""How far a folded norm may be from what is claimed before it is worth a warning; also how far outputs move, relatively, without one."""
UNKNOWN_SIZE = 16
"""Side of the image that an operator norm is told for when no example says better."""
Sizes = set[tuple[int, ...]]


class ConversionWarning(UserWarning):
    """The incoming model's norm is not what it claims, or something was left behind; the sentence names the layer and gives numbers."""


def spectral_norm(
    model: nn.Module,
    *,
    example: Any = None,
    gradient_mode: GradientMode = "full",
    constraint: Constraint = "unit",
    target: float = 1.0,
    norm: Norm | None = None,
) -> nn.Module:
    """Return a copy of ``model`` in which every layer of ``KINDS`` is its spectral counterpart; ``model`` is not touched.

    A layer comes plain, in PyTorch's hook form, in its parametrization form, or from deel-torchlip; in train or eval mode, before or after
    a forward. Shared layers and tied parameters stay shared. With the default options a layer that was normalised before computes what it
    computed, to 1e-6 where its own sigma had converged; where it had not, a :class:`ConversionWarning` says by how much.

    Args:
        model: what is read.
        example: a batch of inputs (a tensor, or a tuple of arguments): tells the image size that each convolution meets.
        gradient_mode: as in :class:`~specnorm_core.layers.SpectralLayer`.
        constraint: likewise.
        target: c; multiplied with the factor that a deel-torchlip layer brings.
        norm: which norm of a convolution; None: ``operator`` for a plain one (needs ``example``), ``matricised`` for one of another
            library, whose norm that is.

    Raises:
        ConversionError: a layer is in a form that is not understood, has a zero or non-finite weight, or needs ``example``; it is named.
    """
    found = _read(model)
    sizes = _image_sizes(model, found, example) if example is not None else {}
    options: dict[str, Any] = {"gradient_mode": gradient_mode, "constraint": constraint}
    memo: dict[int, Any] = {}
    for name, (module, incoming) in found.items():
        with _named(name, "converted"):
            met = sizes.get(name, set())
            layer = _build(module, incoming, met, memo, norm=norm, target=target * incoming.factor, **options)
            true = settle(layer)
            if incoming.orthogonal:
                layer.target = target * true
            _tell(_title(name), module, incoming, (layer.norm, true), met)
        memo[id(module)] = layer.train(module.training)
    _tell_left(model, found)
    converted: nn.Module = copy.deepcopy(model, memo)
    return converted


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with a plain PyTorch layer, its weight ``W c / sigma``, in the place of every spectral one.

    Sigma is converged first, so outputs are equal to 1e-6 where the model's own had converged. It is an estimate from below: for a weight
    whose norm is *proved* to be at most c, export the model (``export.fold``).

    Raises:
        ConversionError: a weight is zero or not finite; the layer is named.
    """
    memo: dict[int, Any] = {}
    for name, layer in spectral_layers(model).items():
        with _named(name, "folded"):
            weight = _folded(layer).to(layer.weight.dtype)
            folded = bare_layer(base_of(layer), layer, weight)
        folded.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        if layer.bias is not None:
            folded.bias = copy.deepcopy(layer.bias, memo)
        memo[id(layer)] = folded.train(layer.training)
    converted: nn.Module = copy.deepcopy(model, memo)
    return converted


def load_torch_state_dict(model: nn.Module, state: Mapping[str, Any], strict: bool = True) -> Any:
    """Load into ``model``, which :func:`spectral_norm` made, the state dict of the same model in PyTorch's hook or parametrization form.

    The keys may be mixed; those of plain layers load as they are. Sigma is derived from the weights, and the stored u and v serve to tell
    whether the stored norm was what it claimed.

    Returns:
        What ``load_state_dict`` returns: the keys missing and unexpected.

    Raises:
        ConversionError: a layer of the state dict has a Björck form; convert that module itself.
        RuntimeError: keys or shapes do not match, as ``load_state_dict`` raises it.
    """
    pairs = {"weight_orig": ("weight_u", "weight_v")}
    pairs["parametrizations.weight.original"] = ("parametrizations.weight.0._u", "parametrizations.weight.0._v")
    renamed, stored = OrderedDict(state), {}
    for key, value in state.items():
        for original, names in pairs.items():
            name, match, _ = key.rpartition(original)
            if match and key == name + original and (not name or name.endswith(".")):
                if any(other.startswith(f"{name}parametrizations.weight.1.") for other in state):
                    raise ConversionError(f"{_title(name[:-1])} has more than a spectral norm in its state dict: convert the module itself")
                u, v = (renamed.pop(name + part, None) for part in names)
                renamed.pop(f"{name}weight", None)  # the hook form's oldest version stores the folded weight as well
                renamed[f"{name}weight"] = renamed.pop(key)
                stored[name[:-1]] = (value, u, v)
    result = model.load_state_dict(renamed, strict=strict)
    for name, layer in spectral_layers(model).items():
        true = settle(layer)
        weight, u, v = stored.get(name, (None, None, None))
        if weight is not None and u is not None and v is not None:
            _tell_stale(_title(name), true / quotient(weight, u, v, int(base_of(layer) in TRANSPOSED)), 1.0)
    return result


def _title(name: str) -> str:
    return f"layer {name!r}" if name else "the model itself"


@contextmanager
def _named(name: str, what: str) -> Iterator[None]:
    """Say in every error which layer it is of."""
    try:
        yield
    except ValueError as error:
        raise ConversionError(f"{_title(name)} cannot be {what}: {error}") from None


@torch.no_grad()
def _folded(layer: SpectralLayer) -> Tensor:
    """Return the weight that ``layer`` computes with once its sigma is converged, in float64."""
    twin = copy.deepcopy(layer).double()
    sigma = torch.tensor(settle(twin), dtype=torch.float64)
    if isinstance(twin, OrthogonalLinear):
        return twin.orthonormal() * twin.target
    return twin.weight.detach() * functional.CONSTRAINTS[twin.constraint](sigma, twin.target).to(twin.weight.device)


def _read(model: nn.Module) -> dict[str, tuple[nn.Module, Incoming]]:
    found: dict[str, tuple[nn.Module, Incoming]] = {}
    for name, module in model.named_modules():
        with _named(name, "converted"):
            incoming = read(module, tuple(KINDS))
        if incoming is not None:
            found[name] = (module, incoming)
    return found


@torch.no_grad()
def _image_sizes(model: nn.Module, found: Mapping[str, tuple[nn.Module, Incoming]], example: Any) -> dict[str, Sizes]:
    """Return the image sizes that each convolution meets, from a forward of a plain copy in eval mode."""
    sizes: dict[str, Sizes] = {}
    memo: dict[int, Any] = {}

    def watch(name: str, axes: int) -> Callable[..., None]:
        return lambda _, inputs: sizes.setdefault(name, set()).add(tuple(inputs[0].shape[-axes:]))

    for name, (module, incoming) in found.items():
        with _named(name, "converted"):
            bare = bare_layer(incoming.base, module, incoming.weight)
        if axes := KINDS[incoming.base].axes:
            bare.register_forward_pre_hook(watch(name, axes))
        memo[id(module)] = bare
    copy.deepcopy(model, memo).eval()(*(example if isinstance(example, tuple) else (example,)))
    return sizes


def _build(
    module: nn.Module, incoming: Incoming, sizes: Sizes, memo: dict[int, Any], *, norm: Norm | None, **options: Any
) -> SpectralLayer:
    kind = KINDS[incoming.base]
    options = {**kind.arguments(module, incoming.weight), **options}
    if kind.axes:
        options["norm"] = norm or ("operator" if incoming.form == "plain" else "matricised")
        if options["norm"] == "operator":
            options["input_size"] = _only(sizes)
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced at once
        layer: SpectralLayer = kind.spectral(**options)
    weight = incoming.weight
    layer.weight = copy.deepcopy(weight, memo) if isinstance(weight, nn.Parameter) else nn.Parameter(weight.clone())
    if layer.bias is not None:
        layer.bias = copy.deepcopy(module.bias, memo)  # type: ignore[assignment]  # a Parameter
    return layer


def _only(sizes: Sizes) -> tuple[int, ...]:
    if not sizes:
        raise ConversionError("the norm of a convolution depends on the size of its input: give example=, or norm='matricised'")
    if len(sizes) > 1:
        raise ConversionError(f"it meets images of several sizes, {sorted(sizes)}, and has one norm for each: give norm='matricised'")
    return next(iter(sizes))


def _tell(title: str, module: nn.Module, incoming: Incoming, found: tuple[str, float], sizes: Sizes) -> None:
    """Warn of what the incoming layer claims and does not keep; ``found`` is the norm meant and sigma in it."""
    norm, true = found
    if hooks := other_hooks(module):
        _warn(f"{title}: {hooks} hook(s) of its own did not come along")
    if incoming.divisor is None:
        return
    folded = true / incoming.divisor * (1.0 if incoming.orthogonal else incoming.factor)
    axes = KINDS[incoming.base].axes
    if incoming.orthogonal:
        _warn(
            f"{title}: its Björck iteration is not continued; it computes as before, at the norm {folded:.7g} that its weight has "
            f"({incoming.factor:.6g} is claimed), and training will hold that sigma alone"
        )
    elif not axes or norm == "matricised":
        _tell_stale(title, folded, incoming.factor)
    if axes:
        size = max(sizes, default=(max(UNKNOWN_SIZE, *_reach(module, incoming)),) * axes)
        operator = abs(_operator_norm(module, incoming, size) * folded / true if norm == "matricised" else folded)
        if operator > incoming.operator * (1 + TOLERANCE):
            _warn(
                f"{title}: its sigma is that of the matricised kernel; as a convolution of images of size {' x '.join(map(str, size))} "
                f"its norm is {operator:.7g}, not {incoming.operator:.6g}"
                + ("" if sizes else " (give example= for the size that it meets)")
            )


def _operator_norm(module: nn.Module, incoming: Incoming, size: tuple[int, ...]) -> float:
    return settle(_build(module, incoming, {size}, {}, norm="operator"))


def _reach(module: Any, incoming: Incoming) -> list[int]:
    """Return how many pixels the kernel and its padding need, per axis."""
    arguments = KINDS[incoming.base].arguments(module, incoming.weight)
    spans = zip(*(arguments[name] for name in ("kernel_size", "dilation", "padding")), strict=True)
    return [d * (k - 1) + 1 + 2 * p for k, d, p in spans]


def _tell_stale(title: str, folded: float, claimed: float) -> None:
    if abs(folded / claimed - 1) > TOLERANCE:
        _warn(
            f"{title}: its u and v are stale (trained on, averaged or copied without them): divided by its own estimate of sigma, "
            f"its weight has norm {abs(folded):.7g}, not {claimed:.6g}; here sigma is converged: outputs scale by {claimed / folded:.7g}"
        )


def _tell_left(model: nn.Module, found: Mapping[str, Any]) -> None:
    left = [
        f"{name!r} ({type(module).__name__})"
        for name, module in model.named_modules()
        if not isinstance(module, SpectralLayer)
        and not any(other in (name, "") or name.startswith(f"{other}.") for other in found)
        and any(not is_lazy(parameter) and parameter.ndim >= 2 for parameter in module.parameters(recurse=False))
    ]
    if left:
        _warn(f"left as they are, their norms unbounded: {', '.join(left)}")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, ConversionWarning, stacklevel=4)
