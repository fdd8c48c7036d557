"""A network as data: what a bundle's ``architecture.json`` holds, and how to build the module again."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from specnorm_core.activations import FullSort, GroupSort
from specnorm_core.functional import Constraint, GradientMode
from specnorm_core.layers import (
    Norm,
    SpectralConv1d,
    SpectralConv2d,
    SpectralConv3d,
    SpectralConvolution,
    SpectralConvTranspose2d,
    SpectralLinear,
    choose,
)
from specnorm_core.orthogonal import ITERATIONS, OrthogonalLinear

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]


class Spec(BaseModel):
    """One layer as data."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spectral(Spec):
    """The options that the spectral layers share."""

    bias: bool = True
    gradient_mode: GradientMode = "full"
    constraint: Constraint = "unit"
    target: float = Field(default=1.0, gt=0)
    norm: Norm = "operator"

    def options(self) -> dict[str, object]:
        """Return what the layer's constructor takes by these names."""
        return self.model_dump(include={"bias", "gradient_mode", "constraint", "target", "norm"})


class Linear(Spectral):
    """``SpectralLinear``."""

    kind: Literal["linear"] = "linear"
    features: int = Field(ge=1, le=2**16)


class Orthogonal(Spec):
    """``OrthogonalLinear``."""

    kind: Literal["orthogonal"] = "orthogonal"
    features: int = Field(ge=1, le=2**16)
    bias: bool = True
    gradient_mode: GradientMode = "full"
    target: float = Field(default=1.0, gt=0)
    iterations: int = Field(default=ITERATIONS, ge=1, le=100)


class Convolution(Spectral):
    """What the convolutions share; sizes have one entry per axis."""

    channels: int = Field(ge=1, le=2**14)
    groups: int = Field(default=1, ge=1)

    def geometry(self) -> dict[str, Any]:
        """Return the rest of what the layer's constructor takes by name."""
        names = {"stride", "padding", "dilation", "groups", "padding_mode", "output_padding"}
        return self.model_dump(include=names)


class Conv1d(Convolution):
    """``SpectralConv1d``."""

    kind: Literal["conv1d"] = "conv1d"
    kernel: tuple[Positive] = (3,)
    stride: tuple[Positive] = (1,)
    padding: tuple[Natural] = (0,)
    dilation: tuple[Positive] = (1,)
    padding_mode: PaddingMode = "zeros"


class Conv2d(Convolution):
    """``SpectralConv2d``."""

    kind: Literal["conv2d"] = "conv2d"
    kernel: tuple[Positive, Positive] = (3, 3)
    stride: tuple[Positive, Positive] = (1, 1)
    padding: tuple[Natural, Natural] = (0, 0)
    dilation: tuple[Positive, Positive] = (1, 1)
    padding_mode: PaddingMode = "zeros"


class Conv3d(Convolution):
    """``SpectralConv3d``."""

    kind: Literal["conv3d"] = "conv3d"
    kernel: tuple[Positive, Positive, Positive] = (3, 3, 3)
    stride: tuple[Positive, Positive, Positive] = (1, 1, 1)
    padding: tuple[Natural, Natural, Natural] = (0, 0, 0)
    dilation: tuple[Positive, Positive, Positive] = (1, 1, 1)
    padding_mode: PaddingMode = "zeros"


class ConvTranspose2d(Convolution):
    """``SpectralConvTranspose2d``."""

    kind: Literal["convtranspose2d"] = "convtranspose2d"
    kernel: tuple[Positive, Positive] = (2, 2)
    stride: tuple[Positive, Positive] = (2, 2)
    padding: tuple[Natural, Natural] = (0, 0)
    dilation: tuple[Positive, Positive] = (1, 1)
    output_padding: tuple[Natural, Natural] = (0, 0)


class Sort(Spec):
    """``GroupSort``."""

    kind: Literal["groupsort"] = "groupsort"
    size: int = Field(default=2, ge=2, le=2**16)


class Sorted(Spec):
    """``FullSort``."""

    kind: Literal["fullsort"] = "fullsort"


class Relu(Spec):
    """``ReLU``."""

    kind: Literal["relu"] = "relu"


class LeakyRelu(Spec):
    """``LeakyReLU``; at slopes up to 1 its constant is 1."""

    kind: Literal["leakyrelu"] = "leakyrelu"
    slope: float = Field(default=0.01, ge=0, le=1)


class Tanh(Spec):
    """``Tanh``: the function has the constant 1, its computed values have no proved accuracy, so there is no certified radius."""

    kind: Literal["tanh"] = "tanh"


class Softplus(Spec):
    """``Softplus``: as for ``Tanh``, a bound and no certified radius."""

    kind: Literal["softplus"] = "softplus"


class Flatten(Spec):
    """Every axis but the first becomes one."""

    kind: Literal["flatten"] = "flatten"


class Unflatten(Spec):
    """A flat row becomes a signal ``(channels, length)``, an image or a volume."""

    kind: Literal["unflatten"] = "unflatten"
    shape: tuple[Positive, ...] = Field(min_length=2, max_length=4)


Activation = Sort | Sorted | Relu | LeakyRelu | Tanh | Softplus
LayerSpec = Annotated[
    Linear | Orthogonal | Conv1d | Conv2d | Conv3d | ConvTranspose2d | Activation | Flatten | Unflatten, Field(discriminator="kind")
]


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
