"""One layer as data: what an architecture lists, and what its JSON holds."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from specnorm_core.functional import Constraint, GradientMode
from specnorm_core.layers import Norm
from specnorm_core.orthogonal import ITERATIONS

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
