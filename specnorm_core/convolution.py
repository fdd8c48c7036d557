"""A convolution in numpy, with its adjoint: what the bounds of its norm are checked against. Never imports torch."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specnorm_core.roundoff import Real

Numbers = NDArray[np.floating[Any]]
Padding = int | Sequence[int] | Sequence[tuple[int, int]]
NUMPY_MODES = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}
MODES = ("zeros", *NUMPY_MODES)


@dataclass(frozen=True)
class Geometry:
    """How the windows of a convolution lie on its image, one entry per spatial axis."""

    taps: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    mode: str

    @property
    def window(self) -> tuple[int, ...]:
        """Pixels that one window spans."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.taps, self.dilation, strict=True))

    def outputs(self, size: Sequence[int]) -> tuple[int, ...]:
        """Number of windows on an image of ``size``."""
        spans = zip(size, self.pads, self.window, self.stride, strict=True)
        return tuple((n + sum(p) - q) // s + 1 for n, p, q, s in spans)


def geometry_of(
    K: Real,
    *,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    mode: str,
    size: Sequence[int] | None,
) -> Geometry:
    """Return the options in one form.

    Raises:
        ValueError: they do not describe a convolution.
    """
    axes = K.ndim - 2
    if axes < 1:
        raise ValueError(f"a kernel is (out, in, *taps), got shape {K.shape}")
    if mode not in MODES:
        raise ValueError(f"padding_mode is one of {sorted(MODES)}, got {mode!r}")
    steps, gaps = (tuple([option] * axes if isinstance(option, int) else option) for option in (stride, dilation))
    sides: Sequence[int | tuple[int, int]] = [padding] * axes if isinstance(padding, int) else list(padding)
    pads = tuple((side, side) if isinstance(side, int) else (int(side[0]), int(side[1])) for side in sides)
    if not len(steps) == len(gaps) == len(pads) == axes or (size is not None and len(size) != axes):
        raise ValueError(
            f"a kernel of shape {K.shape} has {axes} spatial axes; stride, padding, dilation and input_size need as many entries"
        )
    if min(*steps, *gaps, groups) < 1 or (size is not None and min(size) < 1):
        raise ValueError("stride, dilation, groups and input_size are at least 1")
    if K.shape[0] % groups:
        raise ValueError(f"{K.shape[0]} output channels do not divide into {groups} groups")
    if mode != "zeros" and min(min(p) for p in pads) < 0:
        raise ValueError("negative padding has a meaning for zeros only")
    return Geometry(tuple(K.shape[2:]), steps, pads, gaps, groups, mode)


def pad_map(n: int, pads: tuple[int, int], mode: str) -> NDArray[np.intp]:
    """Return which of ``n`` pixels each place of the padded axis holds; ``n`` itself stands for zero."""
    if mode == "zeros":
        places = np.arange(-pads[0], n + pads[1])
        return np.where((places >= 0) & (places < n), places, n)
    if mode == "reflect" and max(pads) >= n:
        raise ValueError(f"reflected padding {pads} needs more than {n} pixels")
    return np.pad(np.arange(n), pads, mode=NUMPY_MODES[mode])  # type: ignore[call-overload, no-any-return]  # one of numpy's words


def pad(x: Numbers, maps: Sequence[NDArray[np.intp]]) -> Numbers:
    """Return the image ``(channels, *size)`` with its border."""
    for axis, places in enumerate(maps, start=1):
        zero = np.zeros_like(x.take([0], axis=axis))
        x = np.concatenate([x, zero], axis=axis).take(places, axis=axis)
    return x


def unpad(x: Numbers, maps: Sequence[NDArray[np.intp]], size: Sequence[int]) -> Numbers:
    """The adjoint of `pad`."""
    for axis, (places, n) in enumerate(zip(maps, size, strict=True), start=1):
        total = np.zeros((n + 1, *np.delete(x.shape, axis)), dtype=x.dtype)
        np.add.at(total, places, np.moveaxis(x, axis, 0))
        x = np.moveaxis(total[:n], 0, axis)
    return x


def at(places: Sequence[int | slice]) -> Any:
    """Return the index of the last axes at ``places``."""
    return (..., *places)


def windows(geometry: Geometry, outputs: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Yield each tap with the pixels of the padded image that it meets."""
    for tap in itertools.product(*map(range, geometry.taps)):
        spans = zip(tap, geometry.dilation, geometry.stride, outputs, strict=True)
        yield tap, tuple(slice(j * d, j * d + s * (o - 1) + 1, s) for j, d, s, o in spans)


def convolve(K: Numbers, x: Numbers, geometry: Geometry, outputs: Sequence[int]) -> Numbers:
    """Return the convolution of the padded image ``x``: ``(out, *outputs)``."""
    grouped = x.reshape(geometry.groups, -1, *x.shape[1:])
    blocks = K.reshape(geometry.groups, -1, *K.shape[1:])
    y = np.zeros((geometry.groups, blocks.shape[1], math.prod(outputs)), dtype=K.dtype)
    for tap, where in windows(geometry, outputs):
        y += blocks[at(tap)] @ grouped[at(where)].reshape(*grouped.shape[:2], -1)
    return y.reshape(-1, *outputs)


def correlate(K: Numbers, y: Numbers, geometry: Geometry, maps: Sequence[NDArray[np.intp]]) -> Numbers:
    """The adjoint of `convolve`: ``(in, *padded size)``."""
    outputs = y.shape[1:]
    blocks = K.reshape(geometry.groups, -1, *K.shape[1:])
    grouped = y.reshape(geometry.groups, blocks.shape[1], -1)
    x = np.zeros((geometry.groups, K.shape[1], *(len(places) for places in maps)), dtype=K.dtype)
    for tap, where in windows(geometry, outputs):
        x[at(where)] += (blocks[at(tap)].swapaxes(1, 2) @ grouped).reshape(*x.shape[:2], *outputs)
    return x.reshape(-1, *x.shape[2:])
