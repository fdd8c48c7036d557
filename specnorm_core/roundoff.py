"""What one float64 operation may lose, and numbers brought near one, where underflow is harmless: numpy only, never torch."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Real = NDArray[np.float64]
Stack = NDArray[np.float64] | NDArray[np.complex128]

UNIT = 2.0**-53
TINY = 2.0**-1022  # more than any one operation loses to underflow, flush-to-zero included


def gamma(operations: int) -> float:
    """Return an upper bound of the relative error of ``operations`` roundings in a row, with room for complex arithmetic."""
    roundings = 4 * (operations + 8) * UNIT
    if roundings >= 0.5:
        raise ValueError(f"no error bound holds for {operations} operations in float64")
    return up(roundings / (1 - roundings))


def up(value: float) -> float:
    """Return the next float64 above ``value``: at least the exact result of the one operation that gave ``value``."""
    return math.nextafter(value, math.inf)


def scaled(matrix: ArrayLike) -> tuple[Real, int]:
    """Return ``matrix`` in float64 times ``2^-exponent``, largest entry in [1/2, 1), and the exponent."""
    return scaled_array(matrix, ndim=2)


def scaled_array(array: ArrayLike, ndim: int | None = None) -> tuple[Real, int]:
    """Return ``array`` in float64 times ``2^-exponent``, largest entry in [1/2, 1), and the exponent.

    Raises:
        ValueError: another number of dimensions than ``ndim``, empty, complex, not finite, or too wide for float64.
    """
    raw: NDArray[Any] = np.asarray(array)
    if ndim is not None and raw.ndim != ndim:
        raise ValueError(f"expected {ndim} dimensions, got shape {raw.shape}")
    if raw.size == 0:
        raise ValueError(f"an array of shape {raw.shape} is empty")
    if raw.dtype.kind == "c" or raw.dtype == np.longdouble:
        raise ValueError(f"expected real numbers of at most 64 bits, got {raw.dtype}")
    A = raw.astype(np.float64)
    if raw.dtype.kind in "iu" and np.abs(A).max() > 2.0**53:
        raise ValueError("integers above 2^53 have no exact float64")
    largest = max(float(A.max()), -float(A.min()))
    if not math.isfinite(largest):
        raise ValueError("the weight holds a number that is not finite")
    exponent = math.frexp(largest)[1]
    return np.asarray(np.ldexp(A, -exponent, out=A)), exponent


def unscale(value: float, exponent: int, direction: float = math.inf) -> float:
    """Return ``value * 2^exponent``, rounded towards ``direction`` where it leaves the range of normal numbers."""
    try:
        result = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf if direction > 0 else math.nextafter(math.inf, 0.0)
    return result if result >= TINY else math.nextafter(result, direction)
