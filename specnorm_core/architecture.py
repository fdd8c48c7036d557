"""A network as data: what a bundle's ``architecture.json`` holds, and how to build the module again."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from specnorm_core.activations import FullSort, GroupSort
from specnorm_core.functional import GradientMode
from specnorm_core.layers import (
    SpectralConv1d,
    SpectralConv2d,
    SpectralConv3d,
    SpectralConvolution,
    SpectralConvTranspose2d,
    SpectralLinear,
    choose,
)
from specnorm_core.orthogonal import OrthogonalLinear
from specnorm_core.specs import (
    Activation,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    Flatten,
    LayerSpec,
    LeakyRelu,
    Linear,
    Orthogonal,
    Positive,
    Relu,
    Softplus,
    Sort,
    Sorted,
    Spec,
    Spectral,
    Tanh,
    Unflatten,
)


class Architecture(Spec):
    """A chain of layers on inputs of ``input_shape`` (without the batch), normalised inside the graph as ``(x - shift) * scale``."""

    input_shape: tuple[Positive, ...] = Field(min_length=1, max_length=4)
    shift: float = 0.0
    scale: float = Field(default=1.0, gt=0)
    layers: tuple[LayerSpec, ...] = Field(min_length=1, max_length=256)

    def with_gradient_mode(self, mode: GradientMode) -> "Architecture":
        """Return the same network with every spectral layer in ``mode``."""
        layers = tuple(
            layer.model_copy(update={"gradient_mode": mode}) if isinstance(layer, Spectral | Orthogonal) else layer for layer in self.layers
        )
        return self.model_copy(update={"layers": layers})


class Network(nn.Sequential):
    """What an architecture builds: ``(x - shift) * scale``, then the layers in order; a layer's name is its position.

    The normalisation is an affine map whose norm is ``scale``; it counts in the bound.
    """

    def __init__(
        self, layers: list[nn.Module], *, shift: float, scale: float, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> None:
        super().__init__(*layers)
        self.shift, self.scale = shift, scale
        self.input_shape, self.output_shape = input_shape, output_shape

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of ``x (B, *input_shape)``."""
        y: Tensor = super().forward((x - self.shift) * self.scale)  # type: ignore[no-untyped-call]  # torch gives it no types
        return y


Shape = tuple[int, ...]


def _linear(spec: Linear, shape: Shape) -> tuple[nn.Module, Shape]:
    (features,) = _expect(spec, shape, 1)
    return SpectralLinear(features, spec.features, **spec.options()), (spec.features,)  # type: ignore[arg-type]  # checked by pydantic


def _orthogonal(spec: Orthogonal, shape: Shape) -> tuple[nn.Module, Shape]:
    (features,) = _expect(spec, shape, 1)
    options = spec.model_dump(include={"bias", "gradient_mode", "target", "iterations"})
    return OrthogonalLinear(features, spec.features, **options), (spec.features,)


def _conv(spec: Conv1d | Conv2d | Conv3d | ConvTranspose2d, shape: Shape) -> tuple[nn.Module, Shape]:
    kind = CONVOLUTIONS[type(spec)]
    channels, *size = _expect(spec, shape, kind.axes + 1)
    options: dict[str, Any] = {**spec.geometry(), **spec.options()}
    layer = kind(channels, spec.channels, spec.kernel, input_size=tuple(size), **options)
    return layer, (spec.channels, *layer.output_size(tuple(size)))


def _sort(spec: Sort, shape: Shape) -> tuple[nn.Module, Shape]:
    if shape[0] % spec.size:
        raise ValueError(f"groupsort needs a number of features that {spec.size} divides, got {shape[0]}")
    return GroupSort(spec.size), shape


def _unflatten(spec: Unflatten, shape: Shape) -> tuple[nn.Module, Shape]:
    (features,) = _expect(spec, shape, 1)
    if math.prod(spec.shape) != features:
        raise ValueError(f"{features} features do not make an image of {spec.shape}")
    return nn.Unflatten(1, spec.shape), spec.shape


def _expect(spec: Spec, shape: Shape, rank: int) -> Shape:
    if len(shape) != rank:
        raise ValueError(f"{type(spec).__name__.lower()} takes a sample of {rank} axes, got {shape}: put flatten or unflatten before it")
    return shape


CONVOLUTIONS: dict[type[Spec], type[SpectralConvolution]] = {
    Conv1d: SpectralConv1d,
    Conv2d: SpectralConv2d,
    Conv3d: SpectralConv3d,
    ConvTranspose2d: SpectralConvTranspose2d,
}

BUILDERS: dict[type[Spec], Callable[..., tuple[nn.Module, Shape]]] = {
    Linear: _linear,
    Orthogonal: _orthogonal,
    **dict.fromkeys(CONVOLUTIONS, _conv),
    Sort: _sort,
    Sorted: lambda spec, shape: (FullSort(), shape),
    Relu: lambda spec, shape: (nn.ReLU(), shape),
    LeakyRelu: lambda spec, shape: (nn.LeakyReLU(spec.slope), shape),
    Tanh: lambda spec, shape: (nn.Tanh(), shape),
    Softplus: lambda spec, shape: (nn.Softplus(), shape),
    Flatten: lambda spec, shape: (nn.Flatten(), (math.prod(shape),)),
    Unflatten: _unflatten,
}


def build(architecture: Architecture, *, seed: int | None = None) -> Network:
    """Return the network that ``architecture`` describes, initialised from ``seed`` where one is given.

    Raises:
        ValueError: the shapes do not follow from one another; the sentence names the layer.
    """
    shape: Shape = architecture.input_shape
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for index, spec in enumerate(architecture.layers):
            try:
                layer, shape = BUILDERS[type(spec)](spec, shape)
            except ValueError as error:
                raise ValueError(f"layer {index}: {error}") from None
            layers.append(layer)
    return Network(layers, shift=architecture.shift, scale=architecture.scale, input_shape=architecture.input_shape, output_shape=shape)


ACTIVATIONS: dict[str, Activation] = {spec.kind: spec for spec in (Sort(), Sorted(), Relu(), LeakyRelu(), Tanh(), Softplus())}


def _mlp(widths: tuple[int, ...], dense: type[Linear | Orthogonal] = Linear) -> Callable[..., tuple[LayerSpec, ...]]:
    def layers(shape: Shape, outputs: int, activation: Activation) -> tuple[LayerSpec, ...]:
        hidden: list[LayerSpec] = [] if len(shape) == 1 else [Flatten()]
        for width in widths:
            hidden += [dense(features=width), activation]
        return (*hidden, dense(features=outputs))

    return layers


def _cnn(shape: Shape, outputs: int, activation: Activation) -> tuple[LayerSpec, ...]:
    first: tuple[LayerSpec, ...] = ()
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        if side * side != shape[0]:
            raise ValueError(f"the preset cnn needs images; {shape[0]} flat features are no square")
        first = (Unflatten(shape=(1, side, side)),)
    return (
        *first,
        Conv2d(channels=16, padding=(1, 1)), activation,
        Conv2d(channels=32, kernel=(2, 2), stride=(2, 2)), activation,
        Flatten(), Linear(features=128), activation, Linear(features=outputs),
    )  # fmt: skip


PRESETS: dict[str, Callable[..., tuple[LayerSpec, ...]]] = {
    "mlp-small": _mlp((64,)),
    "mlp": _mlp((128, 128)),
    "mlp-orthogonal": _mlp((128, 128), Orthogonal),
    "cnn": _cnn,
}


def preset(
    name: str,
    input_shape: Shape,
    outputs: int,
    *,
    activation: str = "groupsort",
    gradient_mode: GradientMode = "full",
    shift: float = 0.0,
    scale: float = 1.0,
) -> Architecture:
    """Return the named network for samples of ``input_shape`` and ``outputs`` classes.

    Raises:
        ValueError: no preset or activation has this name; the sentence lists those that there are.
    """
    layers = PRESETS[choose("arch", name, PRESETS)](input_shape, outputs, ACTIVATIONS[choose("activation", activation, ACTIVATIONS)])
    return Architecture(input_shape=input_shape, shift=shift, scale=scale, layers=layers).with_gradient_mode(gradient_mode)
