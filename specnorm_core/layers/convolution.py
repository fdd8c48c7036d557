"""Spectral convolutions over one, two or three axes, and the transposed one over two: one implementation, whatever the axes."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specnorm_core.convolution import MODES
from specnorm_core.functional import Constraint, GradientMode
from specnorm_core.layers.base import Norm, SpectralLayer, choose

Sizes = int | Sequence[int]


def _each(what: str, value: Sizes, axes: int, least: int) -> tuple[int, ...]:
    """Return one entry per axis.

    Raises:
        ValueError: another number of entries, or one below ``least``.
    """
    entries = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(entries) != axes or not all(isinstance(entry, int) and entry >= least for entry in entries):
        raise ValueError(f"{what} must be a whole number of at least {least} or {axes} of them, got {value!r}")
    return entries


class SpectralConvolution(SpectralLayer):
    """A convolution divided by its spectral norm: ``(B, in, *size)`` to ``(B, out, *size')``; use one of the classes below.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one size or one per axis; as ``stride``, ``padding``, ``dilation``.
        stride: step of the kernel.
        padding: pixels added on each side.
        dilation: spacing of the kernel's entries.
        groups: blocks of channels.
        bias: whether a bias is added.
        padding_mode: what the added pixels hold: ``zeros``, ``circular``, ``reflect`` or ``replicate``.
        input_size: pixels per axis of the input: needed by the norm ``operator``, whose sigma is that of the map from image to image at
            this size, border included.
        **options: as in :class:`SpectralLayer`. The ``matricised`` norm is what PyTorch and Miyato et al. 2018 use; it is *not* the norm of
            the convolution (33 to 79 % too low where measured) and never feeds a certificate.

    Raises:
        ValueError: ``operator`` without ``input_size``; an input of another size at run time; options that do not describe a convolution.
    """

    axes: ClassVar[int]
    plain: ClassVar[Callable[..., Any]]
    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        *,
        stride: Sizes = 1,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        input_size: Sizes | None = None,
        gradient_mode: GradientMode = "full",
        constraint: Constraint = "unit",
        target: float = 1.0,
        norm: Norm = "operator",
        **more: Any,
    ) -> None:
        super().__init__(gradient_mode=gradient_mode, constraint=constraint, target=target, norm=norm)
        if norm == "operator" and input_size is None:
            raise ValueError(
                f"norm 'operator' needs input_size, {self.axes} of them: the norm of a convolution depends on the size of its input"
            )
        self.kernel_size = _each("kernel_size", kernel_size, self.axes, 1)
        self.stride, self.dilation = _each("stride", stride, self.axes, 1), _each("dilation", dilation, self.axes, 1)
        self.padding, self.groups = _each("padding", padding, self.axes, 0), groups
        self.padding_mode = choose("padding_mode", padding_mode, MODES)
        self.in_channels, self.out_channels = in_channels, out_channels
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": groups, "bias": bias, **more}
        plain = self.plain(in_channels, out_channels, self.kernel_size, **options)
        self._take(plain.weight, plain.bias)
        self.input_size = None if input_size is None else _each("input_size", input_size, self.axes, 1)
        self._configure(**more)
        if self.input_size is not None:
            self._check_size(self.input_size)
        self.rederive()

    def _configure(self) -> None:
        """Take the options that only one of the classes has."""

    def _check_size(self, size: tuple[int, ...]) -> None:
        """Refuse an image that the kernel or the border does not fit."""
        spans = list(zip(size, self.padding, self.kernel_size, self.dilation, strict=True))
        if any(n + 2 * p < d * (k - 1) + 1 for n, p, k, d in spans):
            raise ValueError(f"a kernel of {self.kernel_size} does not fit an image of {size} with padding {self.padding}")
        spare = {"circular": 0, "reflect": 1}.get(self.padding_mode)
        if spare is not None and any(p > n - spare for n, p, *_ in spans):
            raise ValueError(f"padding {self.padding} of mode {self.padding_mode} is too wide for an image of {size}")

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution of ``x (B, in, *size)`` with ``weight``, bias excluded."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, [p for p in reversed(self.padding) for _ in range(2)], mode=self.padding_mode)
            padding = 0
        return self.function(x, weight, None, self.stride, padding, self.dilation, self.groups)

    def domain(self) -> tuple[int, ...]:
        """Return the shape of ``v``: an image, or a row of the matricised kernel."""
        if self.norm == "matricised":
            return (self.matricise(self.weight).shape[1],)
        assert self.input_size is not None  # noqa: S101  # the constructor refused it
        return (1, self.in_channels, *self.input_size)

    def forward_map(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the map whose norm is meant, applied to ``x``."""
        return torch.mv(self.matricise(weight), x) if self.norm == "matricised" else self.convolve(x, weight)

    def image_size(self, input_size: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the size of the image that the kernel's windows lie on when the input has ``input_size``."""
        return input_size

    def output_size(self, input_size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size of the output for an input of ``input_size``."""
        parts = zip(input_size, self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x (B, in, *size)``.

        Raises:
            ValueError: the norm is ``operator`` and ``x`` has another size than ``input_size``.
        """
        self._follow()
        size = tuple(x.shape[-self.axes :])
        if self.norm == "operator" and size != self.input_size:
            raise ValueError(f"sigma is that of inputs of size {self.input_size}, got {size}: set input_size to the size in use")
        bias = None if self.bias is None else self.bias.view(-1, *[1] * self.axes)
        return self.scaled(self.convolve(x, self.weight), bias)

    def extra_repr(self) -> str:
        """Return sizes and options."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "input_size")
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{self.in_channels}, {self.out_channels}, {sizes}, {super().extra_repr()}"


class SpectralConv1d(SpectralConvolution):
    """A spectral convolution of signals ``(B, in, length)``; arguments as for :class:`SpectralConvolution`."""

    kind, axes, plain, function = "conv1d", 1, nn.Conv1d, staticmethod(F.conv1d)


class SpectralConv2d(SpectralConvolution):
    """A spectral convolution of images ``(B, in, height, width)``; arguments as for :class:`SpectralConvolution`."""

    kind, axes, plain, function = "conv2d", 2, nn.Conv2d, staticmethod(F.conv2d)


class SpectralConv3d(SpectralConvolution):
    """A spectral convolution of volumes ``(B, in, depth, height, width)``; arguments as for :class:`SpectralConvolution`."""

    kind, axes, plain, function = "conv3d", 3, nn.Conv3d, staticmethod(F.conv3d)


class SpectralConvTranspose2d(SpectralConvolution):
    """The adjoint of a convolution: ``(B, in, h, w)`` to ``(B, out, h', w')``, ``h' = (h - 1) s - 2 p + d (k - 1) + output_padding + 1``.

    Its norm at an input of ``input_size`` is that of the convolution with the same kernel on images of the *output's* size. The weight is
    ``(in, out / groups, *kernel)`` as in PyTorch, which matricises it as ``(out / groups, in * taps)``; so does the norm ``matricised``.

    Args:
        output_padding: pixels added to one side of the output; below the stride or the dilation.
        **options: as for :class:`SpectralConvolution`; the only padding mode is ``zeros``.
    """

    kind, axes, plain, function = "convtranspose2d", 2, nn.ConvTranspose2d, staticmethod(F.conv_transpose2d)

    def _configure(self, output_padding: Sizes = 0) -> None:
        self.output_padding = _each("output_padding", output_padding, self.axes, 0)
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode of a transposed convolution must be zeros; got {self.padding_mode!r}")
        if any(extra >= max(s, d) for extra, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True)):
            raise ValueError(f"output_padding must be below the stride or the dilation, got {self.output_padding}")

    def _check_size(self, size: tuple[int, ...]) -> None:
        output = self.image_size(size)
        if output is None or min(output) < 1:
            raise ValueError(f"padding {self.padding} leaves nothing of the output of an image of {size}")

    def image_size(self, input_size: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the size of the output."""
        return None if input_size is None else self.output_size(input_size)

    def output_size(self, input_size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size of the output for an input of ``input_size``."""
        parts = zip(input_size, self.stride, self.padding, self.dilation, self.kernel_size, self.output_padding, strict=True)
        return tuple((n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, s, p, d, k, extra in parts)

    def matricise(self, weight: Tensor) -> Tensor:
        """Return the matrix ``(out / groups, in * taps)``."""
        return weight.transpose(0, 1).flatten(1)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the transposed convolution of ``x (B, in, h, w)`` with ``weight``, bias excluded."""
        return self.function(x, weight, None, self.stride, self.padding, self.output_padding, self.groups, self.dilation)
