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
- Small images, with any border: the operator as a matrix.

The symbol is summed directly, not by an FFT, so its rounding error has a proved term: see `symbol_bounds`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specnorm_core.border_copies import COPIES
from specnorm_core.convolution import Geometry, Numbers, Padding, at, convolve, correlate, geometry_of, pad, pad_map, unpad
from specnorm_core.deadline import NEVER, Deadline
from specnorm_core.dense_bounds import Proved, sigma_estimate, sigma_upper, stack_upper
from specnorm_core.ritz import rayleigh_lower, ritz
from specnorm_core.roundoff import Real, gamma, scaled_array, unscale, up
from specnorm_core.symbol_bounds import grid_upper

P = ParamSpec("P")
GRIDS = {1: 512, 2: 64, 3: 16}  # most frequencies per axis and degree when the size is unknown: off by 2e-5, 0.24 %, 6 %
COARSER = (32, 16, 8)  # where these cost too much: off by 1 %, 4 %, 17 % in 2-D
BUDGET = 2.0**38  # multiplications that a grid may cost; beyond it a coarser one with its factor has to do
SMALL = 512  # rows or columns up to which an operator is proved as a matrix
BORDERED = 2048  # the same where a border copies pixels, for which nothing else is tight
IMAGE = 16  # side of the image on which the estimate is made when no size is given
WIDE = 2**18  # entries of a kernel above which the estimate takes a smaller image and shorter numbers


def prove_conv_sigma(
    kernel: ArrayLike,
    *,
    input_size: Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    deadline: Deadline = NEVER,
) -> Proved:
    """Return a number that is proved to be at least the operator norm of the convolution, rounding included, and what makes it looser.

    A transposed convolution is the adjoint of the convolution with the same kernel: give the size of its *output* as ``input_size``.

    Args:
        kernel: ``(out, in / groups, *taps)``.
        input_size: pixels per axis, without padding; None: the bound holds for every size.
        stride: pixels between windows.
        padding: pixels on both sides, per axis or as pairs (before, after).
        dilation: pixels between taps.
        groups: blocks of channels that do not mix.
        padding_mode: one of ``COPIES``.
        deadline: when a looser bound has to do.

    Raises:
        ValueError: a kernel that is not finite or empty, or options that do not describe a convolution.
    """
    K, exponent = scaled_array(kernel)
    geometry = geometry_of(K, stride=stride, padding=padding, dilation=dilation, groups=groups, mode=padding_mode, size=input_size)
    if not K.any():
        return Proved(0.0)
    size = None if input_size is None else tuple(input_size)
    copies = COPIES[padding_mode](geometry, size)
    if size is not None and is_small(K, geometry, size, SMALL if copies == 1 else BORDERED):
        return Proved(unscale(matrix_upper(K, geometry, size), exponent))
    if geometry.mode == "circular" and (size is None or any(n % s for n, s in zip(size, geometry.stride, strict=True))):
        # Blocks may not close around the torus, and taps of several places in a block meet one pixel; leaving out pixels lowers the norm.
        geometry = replace(geometry, stride=(1,) * len(geometry.taps))
    crude = min(young(K, groups), schur(K, geometry))
    bound, looser = symbol_upper(K, geometry, size, crude, deadline)
    return Proved(unscale(bound if copies == 1 else up(bound * up(math.sqrt(copies))), exponent), looser)


def value_of(prove: Callable[P, Proved]) -> Callable[P, float]:
    """Return a function of the same arguments that gives what is proved alone."""

    @wraps(prove)
    def value(*arguments: P.args, **options: P.kwargs) -> float:
        return prove(*arguments, **options).value

    return value


conv_sigma_upper = value_of(prove_conv_sigma)
"""The bound of `prove_conv_sigma` alone."""


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
    deadline: Deadline = NEVER,
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
        side = 2 * IMAGE if K.size <= WIDE else IMAGE
        size = tuple(min(n, max(side, 2 * q)) for n, q in zip(size, geometry.window, strict=True))
    v = leading_image(K, geometry, size, steps, deadline)
    maps = tuple(pad_map(n, p, geometry.mode) for n, p in zip(size, geometry.pads, strict=True))
    image = convolve(K, pad(v, maps), geometry, geometry.outputs(size))
    windows = math.sqrt(math.prod(geometry.outputs(size)))
    frobenius = float(np.sqrt(np.sum(K * K))) * windows * (1 + gamma(K.size))
    return unscale(rayleigh_lower(image, v, frobenius, K[0].size), exponent, direction=0.0)


def leading_image(K: Real, geometry: Geometry, size: tuple[int, ...], steps: int, deadline: Deadline) -> Real:
    """Return an image that the convolution makes as long as it can, nearly: Lanczos, on wide kernels with products in float32."""
    shape = (K.shape[1] * geometry.groups, *size)
    maps = tuple(pad_map(n, p, geometry.mode) for n, p in zip(size, geometry.pads, strict=True))
    kernel: Numbers = K.astype(np.float32) if K.size > WIDE else K

    def gram(x: NDArray[np.float64]) -> NDArray[np.float64]:
        y = convolve(kernel, pad(x.astype(kernel.dtype).reshape(shape), maps), geometry, geometry.outputs(size))
        return unpad(correlate(kernel, y, geometry, maps), maps, size).ravel().astype(np.float64)

    return ritz(gram, math.prod(shape), steps=steps, deadline=deadline)[1].reshape(shape)


def is_small(K: Real, geometry: Geometry, size: Sequence[int], most: int) -> bool:
    """Say whether the operator is cheaper as a matrix, whose norm is then proved without the slack of a torus or of a border."""
    outputs = geometry.outputs(size)
    if min(outputs) < 1:
        return False
    rows, columns = K.shape[0] // geometry.groups * math.prod(outputs), K.shape[1] * math.prod(size)
    return bool(min(rows, columns) <= most and rows * columns * geometry.groups <= 4 * most**2)


def matrix_upper(K: Real, geometry: Geometry, size: Sequence[int]) -> float:
    """Return an upper bound of the norm of the operator as a matrix, whose entries may be sums where a border copies pixels."""
    A = dense(K, geometry, size)
    if geometry.mode == "zeros":
        return stack_upper(A)
    taps = math.prod(geometry.taps)
    lost = float(np.sqrt(np.square(dense(np.abs(K), geometry, size)).sum(axis=(1, 2)).max()))
    return up(stack_upper(A) + gamma(taps) * lost * (1 + gamma(A.size)))


def dense(K: Real, geometry: Geometry, size: Sequence[int]) -> Real:
    """Return the operator as one matrix per group: the entries of the kernel in their places, so exact where no border copies pixels."""
    outputs, groups = geometry.outputs(size), geometry.groups
    out, inner, pixels = K.shape[0] // groups, K.shape[1], math.prod(size)
    maps = [pad_map(n, p, geometry.mode) for n, p in zip(size, geometry.pads, strict=True)]
    A = np.zeros((groups, out, math.prod(outputs), inner, pixels))
    for tap in itertools.product(*map(range, geometry.taps)):
        spans = zip(maps, tap, geometry.dilation, geometry.stride, outputs, strict=True)
        places = np.meshgrid(*(held[j * d + s * np.arange(o)] for held, j, d, s, o in spans), indexing="ij")
        inside = np.all([place < n for place, n in zip(places, size, strict=True)], axis=0).ravel()
        windows = np.flatnonzero(inside)
        where = np.ravel_multi_index([place.ravel()[windows] for place in places], tuple(size))
        A[:, :, windows, :, where] += K[at(tap)].reshape(groups, out, inner)[None]
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


def symbol_upper(K: Real, geometry: Geometry, size: tuple[int, ...] | None, crude: float, deadline: Deadline) -> Proved:
    """Return an upper bound of the norm without border copies, from the symbol on the finest grid of frequencies that can be paid for."""
    P = polyphase(K, geometry)
    wanted = grids(P, None if size is None else blocks(geometry, size))
    paid = [pair for pair in wanted if cost(P, pair[0]) <= BUDGET] or wanted[-1:]
    for grid, factor in paid:
        found = grid_upper(P, grid, crude, deadline.attempt())
        finest = grid == wanted[0][0]
        if found is not None and (finest or found * factor <= crude):
            looser = "" if finest else f"a grid of {' x '.join(map(str, grid))} frequencies, at most {factor - 1:.2%} above"
            return Proved(min(found * factor, crude), looser)
    return Proved(crude, "norms of rows and columns")


def grids(P: Real, torus: tuple[int, ...] | None) -> list[tuple[tuple[int, ...], float]]:
    """Return grids of frequencies, finest first, each with the factor that covers what lies between them (none for a ``torus``)."""
    extent, degrees = P.shape[3:], tuple(e // 2 for e in P.shape[3:])
    finest = GRIDS.get(len(degrees), 8)
    coarse = {n: tuple(n * d or 1 for d in degrees) for n in (finest, *COARSER) if n <= finest}
    slack = 1 + gamma(64 * len(degrees))
    found = [(grid, math.prod(1 / math.cos(math.pi / n) for d in degrees if d) * slack) for n, grid in coarse.items()]
    if torus is None:
        return found
    exact = tuple(n if e > 1 else 1 for n, e in zip(torus, extent, strict=True))
    return [(exact, 1.0)] + [(grid, factor) for grid, factor in found if math.prod(grid) < math.prod(exact)]


def cost(P: Real, grid: tuple[int, ...]) -> float:
    """Return about how many multiplications a grid takes."""
    groups, rows, columns = P.shape[:3]
    return float(groups * min(rows, columns) ** 2 * (rows + columns) * math.prod(grid) / 2)


def blocks(geometry: Geometry, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the size, in blocks of ``stride`` pixels, of the torus on which the operator is a part of the circular one."""
    if geometry.mode == "circular":
        return tuple(n // s for n, s in zip(size, geometry.stride, strict=True))
    spans = zip(size, geometry.pads, geometry.window, geometry.stride, strict=True)
    return tuple(-(-max(n + max(p[0], 0) + max(p[1], 0), q) // s) for n, p, q, s in spans)
