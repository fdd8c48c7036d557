"""Rigorous bounds of the norm of a convolution as a map from images to images: numpy only, never torch.

A strided, dilated convolution is a stride-1 convolution of blocks (polyphase: ``stride`` pixels per axis are the channels of one
block), and a stride-1 convolution on a torus is block diagonal in the Fourier basis: its norm is the largest norm of the
symbol ``sum_j K_j exp(i w j)`` over the frequencies ``w`` of the torus.

- Zero padding, size known: the padded image fits a torus of ``ceil((n + pads) / stride)`` blocks on which no window that
  the convolution computes wraps around, so the operator is a selection of rows of the circular one.
- Size unknown: a grid of N frequencies misses at most the factor ``1 / cos(pi d / N)`` per axis for symbols of degree d (Ehlich and
  Zeller 1964), which makes the bound hold for every size, circular or padded with zeros.
- Circular padding, size known: exactly the torus of that size.
- Reflected and replicated borders copy pixels: the map that copies has norm ``sqrt(largest number of copies)``.

The symbol is summed directly, not by an FFT, so its rounding error has a proved term: each phase is within ``64 u`` per axis
(integers reduced exactly, libm within 8 ulp), each sum within ``gamma``.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specnorm_core.convolution import Geometry, Padding, at, convolve, correlate, geometry_of, pad, pad_map, unpad
from specnorm_core.dense_bounds import (
    UNIT,
    Real,
    Stack,
    gamma,
    rayleigh_lower,
    ritz,
    scaled_array,
    sigma_estimate,
    sigma_upper,
    stack_upper,
    unscale,
    up,
)

GRIDS = {1: 512, 2: 64, 3: 16}  # most frequencies per axis and degree when the size is unknown: off by 2e-5, 0.24 %, 6 %
ENTRIES = 2**21  # complex numbers of the symbol held at once
BUDGET = 2.0**34  # multiplications that a grid may cost; beyond it a coarser one with its factor has to do
SMALL = 512  # rows or columns up to which an operator is proved as a matrix
IMAGE = 16  # side of the image on which the estimate is made when no size is given


def conv_sigma_upper(
    kernel: ArrayLike,
    *,
    input_size: Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> float:
    """Return a number that is proved to be at least the operator norm of the convolution, rounding included.

    A transposed convolution is the adjoint of the convolution with the same kernel: give the size of its *output* as ``input_size``.

    Args:
        kernel: ``(out, in / groups, *taps)``.
        input_size: pixels per axis, without padding; None: the bound holds for every size.
        stride: pixels between windows.
        padding: pixels on both sides, per axis or as pairs (before, after).
        dilation: pixels between taps.
        groups: blocks of channels that do not mix.
        padding_mode: one of ``COPIES``.

    Raises:
        ValueError: a kernel that is not finite or empty, or options that do not describe a convolution.
    """
    K, exponent = scaled_array(kernel)
    geometry = geometry_of(K, stride=stride, padding=padding, dilation=dilation, groups=groups, mode=padding_mode, size=input_size)
    if not K.any():
        return 0.0
    if padding_mode == "zeros" and input_size is not None and is_small(K, geometry, input_size):
        return unscale(stack_upper(dense(K, geometry, input_size)), exponent)
    copies = COPIES[padding_mode](geometry, input_size)
    bound = min(young(K, groups), schur(K, geometry), symbol_upper(K, geometry, None if input_size is None else tuple(input_size)))
    return unscale(bound if copies == 1 else up(bound * up(math.sqrt(copies))), exponent)


def matricised_sigma_upper(kernel: ArrayLike) -> float:
    """Return a proved upper bound of the norm of the kernel flattened to ``(out, in * taps)``: *not* of the operator."""
    K = np.asarray(kernel)
    return sigma_upper(K.reshape(K.shape[0], -1) if K.size else K)


def conv_sigma_estimate(
    kernel: ArrayLike,
    *,
    input_size: Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    steps: int = 24,
) -> float:
    """Return a lower bound of the operator norm: ``norm(K x) / norm(x)`` at an image ``x`` found by Lanczos on the true operator.

    Arguments as for `conv_sigma_upper`; without ``input_size`` it is the norm on a small image, which every size above it exceeds
    or nearly so.
    """
    K, exponent = scaled_array(kernel)
    geometry = geometry_of(K, stride=stride, padding=padding, dilation=dilation, groups=groups, mode=padding_mode, size=input_size)
    size = tuple(input_size) if input_size is not None else tuple(max(IMAGE, q) for q in geometry.window)
    if not K.any() or min(geometry.outputs(size)) < 1:
        return 0.0
    if padding_mode == "zeros":
        if math.prod(geometry.taps) == 1 and not any(map(any, geometry.pads)):  # every pixel by itself, and the first has a window
            return unscale(max(sigma_estimate(block) for block in K.reshape(groups, -1, K.shape[1])), exponent, direction=0.0)
        # A smaller image with zeros around it is a part of the larger one, so its norm is no larger; and hardly smaller.
        size = tuple(min(n, max(2 * IMAGE, 2 * q)) for n, q in zip(size, geometry.window, strict=True))
    shape = (K.shape[1] * groups, *size)
    maps = tuple(pad_map(n, p, geometry.mode) for n, p in zip(size, geometry.pads, strict=True))

    def gram(x: NDArray[np.float64]) -> NDArray[np.float64]:
        y = convolve(K, pad(x.reshape(shape), maps), geometry, geometry.outputs(size))
        return unpad(correlate(K, y, geometry, maps), maps, size).ravel()

    v = ritz(gram, math.prod(shape), steps=steps)[1].reshape(shape)
    image = convolve(K, pad(v, maps), geometry, geometry.outputs(size))
    windows = math.sqrt(math.prod(geometry.outputs(size)))
    frobenius = float(np.sqrt(np.sum(K * K))) * windows * (1 + gamma(K.size))
    return unscale(rayleigh_lower(image, v, frobenius, K[0].size), exponent, direction=0.0)


def is_small(K: Real, geometry: Geometry, size: Sequence[int]) -> bool:
    """Say whether the operator is cheaper as a matrix, whose norm is then proved without the slack of a torus."""
    outputs = geometry.outputs(size)
    if min(outputs) < 1:
        return False
    rows, columns = K.shape[0] // geometry.groups * math.prod(outputs), K.shape[1] * math.prod(size)
    return bool(min(rows, columns) <= SMALL and rows * columns * geometry.groups <= 4 * SMALL**2)


def dense(K: Real, geometry: Geometry, size: Sequence[int]) -> Real:
    """Return the zero-padded operator as one matrix per group: the entries of the kernel in their places, so exact."""
    outputs, groups = geometry.outputs(size), geometry.groups
    out, inner, pixels = K.shape[0] // groups, K.shape[1], math.prod(size)
    A = np.zeros((groups, out, math.prod(outputs), inner, pixels))
    for tap in itertools.product(*map(range, geometry.taps)):
        spans = zip(tap, geometry.dilation, geometry.stride, geometry.pads, outputs, strict=True)
        places = np.meshgrid(*(j * d - p[0] + s * np.arange(o) for j, d, s, p, o in spans), indexing="ij")
        inside = np.all([(place >= 0) & (place < n) for place, n in zip(places, size, strict=True)], axis=0).ravel()
        windows = np.flatnonzero(inside)
        where = np.ravel_multi_index([place.ravel()[windows] for place in places], tuple(size))
        A[:, :, windows, :, where] = K[at(tap)].reshape(groups, out, inner)[None]
    return A.reshape(groups, out * math.prod(outputs), inner * pixels)


def young(K: Real, groups: int) -> float:
    """Return the sum over the taps of the norms of ``K[:, :, tap]``, largest over the groups."""
    blocks = K.reshape(groups, K.shape[0] // groups, K.shape[1], -1)
    norms = [sum(sigma_upper(block[:, :, j]) for j in range(block.shape[2])) for block in blocks] if K.size <= 2**18 else [math.inf]
    return max(norms) * (1 + gamma(blocks.shape[-1]))


def schur(K: Real, geometry: Geometry) -> float:
    """Return ``sqrt(row x column)``: the largest absolute sums into one output pixel and out of one input pixel."""
    magnitude = np.abs(K)
    row = float(magnitude.sum(axis=tuple(range(1, K.ndim))).max())
    by_output = magnitude.reshape(geometry.groups, -1, *K.shape[1:]).sum(axis=1)
    column = max(
        float(sum((by_output[at(tap)] for tap in taps), start=np.zeros(by_output.shape[:2])).max()) for taps in phases(geometry).values()
    )
    return up(math.sqrt(row * column)) * (1 + gamma(K.size))


def phases(geometry: Geometry) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the taps that fall on each place within a block of ``stride`` pixels."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for tap in itertools.product(*map(range, geometry.taps)):
        place = tuple(j * d % s for j, d, s in zip(tap, geometry.dilation, geometry.stride, strict=True))
        found.setdefault(place, []).append(tap)
    return found


def polyphase(K: Real, geometry: Geometry) -> Real:
    """Return the stride-1 kernel of blocks: ``(groups, rows, columns, *blocks)``, columns that no tap reaches left out."""
    out, inner = K.shape[0] // geometry.groups, K.shape[1]
    extent = tuple((q - 1) // s + 1 for q, s in zip(geometry.window, geometry.stride, strict=True))
    places = phases(geometry)
    P = np.zeros((geometry.groups, out, len(places), inner, *extent))
    for column, taps in enumerate(places.values()):
        for tap in taps:
            block = tuple(j * d // s for j, d, s in zip(tap, geometry.dilation, geometry.stride, strict=True))
            P[:, :, column, :][at(block)] = K[at(tap)].reshape(geometry.groups, out, inner)
    return P.reshape(geometry.groups, out, len(places) * inner, *extent)


def symbol_upper(K: Real, geometry: Geometry, size: tuple[int, ...] | None) -> float:
    """Return an upper bound of the norm without border copies, from the symbol on a grid of frequencies."""
    if geometry.mode == "circular" and (size is None or any(n % s for n, s in zip(size, geometry.stride, strict=True))):
        geometry = replace(
            geometry, stride=(1,) * len(geometry.taps)
        )  # blocks may not close around the torus; leaving out pixels lowers the norm
    P = polyphase(K, geometry)
    degrees = tuple(e // 2 for e in P.shape[3:])
    rows, columns = P.shape[1:3]
    cost = geometry.groups * min(rows, columns) ** 2 * (rows + columns)
    finest = GRIDS.get(len(degrees), 8)
    grid = [n for n in (finest, 32, 16) if n <= finest and cost * math.prod(n * d or 1 for d in degrees) <= BUDGET]
    coarse = tuple((grid[0] if grid else 8) * d or 1 for d in degrees)
    torus = coarse if size is None else tuple(n if e > 1 else 1 for n, e in zip(blocks(geometry, size), P.shape[3:], strict=True))
    if size is None or (cost * math.prod(torus) > BUDGET and math.prod(torus) > math.prod(coarse)):
        factor = math.prod(1 / math.cos(math.pi * d / n) for d, n in zip(degrees, coarse, strict=True))
        return grid_upper(P, coarse) * factor * (1 + gamma(64 * len(degrees)))
    return grid_upper(P, torus)


def blocks(geometry: Geometry, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the size, in blocks of ``stride`` pixels, of the torus on which the operator is a part of the circular one."""
    if geometry.mode == "circular":
        return tuple(n // s for n, s in zip(size, geometry.stride, strict=True))
    spans = zip(size, geometry.pads, geometry.window, geometry.stride, strict=True)
    return tuple(-(-max(n + max(p[0], 0) + max(p[1], 0), q) // s) for n, p, q, s in spans)


def grid_upper(P: Real, grid: tuple[int, ...]) -> float:
    """Return an upper bound of the norm of the symbol at the frequencies ``2 pi k / grid``, largest over groups and frequencies."""
    groups, rows, columns = P.shape[:3]
    taps = math.prod(P.shape[3:])
    flat = P.reshape(groups * rows * columns, taps)
    spread = np.sqrt(np.sum(np.abs(P).reshape(groups, -1, taps).sum(axis=2) ** 2, axis=1)).max() * (1 + gamma(P.size))
    slack = 2 * (gamma(taps) + 64 * len(grid) * UNIT) * float(spread)
    largest = 0.0
    for phase in frequencies(P.shape[3:], grid, max(1, ENTRIES // flat.shape[0])):
        symbol = (flat @ phase.real + 1j * (flat @ phase.imag)).reshape(groups, rows, columns, -1)
        stack: Stack = np.ascontiguousarray(symbol.transpose(0, 3, 1, 2)).reshape(-1, rows, columns)
        largest = max(largest, stack_upper(stack))
    return up(largest + slack) if slack else largest


def frequencies(extent: Sequence[int], grid: Sequence[int], chunk: int) -> Iterator[NDArray[np.complex128]]:
    """Yield ``exp(2 pi i k j / grid)`` as ``(taps, frequencies)``, ``chunk`` frequencies at a time.

    The kernel is real, so a frequency and its negative have the same norm: the last axis is run halfway.
    """
    halved = (*grid[:-1], grid[-1] // 2 + 1)
    total = math.prod(halved)
    for first in range(0, total, chunk):
        k = np.unravel_index(np.arange(first, min(first + chunk, total)), halved)
        phase = np.ones((1, len(k[0])), dtype=np.complex128)
        for places, n, frequency in zip(extent, grid, k, strict=True):
            angle = 2 * np.pi * (np.outer(np.arange(places), frequency) % n) / n
            phase = (phase[:, None] * (np.cos(angle) + 1j * np.sin(angle))[None]).reshape(-1, len(frequency))
        yield phase


def zeros_copies(geometry: Geometry, size: Sequence[int] | None) -> int:
    """Zero padding copies nothing."""
    return 1


def circular_copies(geometry: Geometry, size: Sequence[int] | None) -> int:
    """Circular padding that lets windows start at more places than there are pixels computes outputs twice."""
    if size is None:
        if any(sum(p) > q - 1 for p, q in zip(geometry.pads, geometry.window, strict=True)):
            raise ValueError("circular padding beyond the window has no bound for every size: give input_size")
        return 1
    unit = replace(geometry, stride=(1,) * len(size))
    return math.prod(max(1, -(-starts // n)) for starts, n in zip(unit.outputs(size), size, strict=True))


def border_copies(geometry: Geometry, size: Sequence[int] | None) -> int:
    """How often the padded image holds the pixel that it holds most often."""
    copies = 1
    for axis, pads in enumerate(geometry.pads):
        n = size[axis] if size is not None else None
        if n is not None:
            copies *= int(np.bincount(pad_map(n, pads, geometry.mode)).max())
        else:
            copies *= 1 + sum(pads) if geometry.mode == "replicate" else 1 + sum(p > 0 for p in pads)
    return copies


COPIES: dict[str, Callable[[Geometry, Sequence[int] | None], int]] = {
    "zeros": zeros_copies,
    "circular": circular_copies,
    "reflect": border_copies,
    "replicate": border_copies,
}
