"""Intervals that hold every value of a function between two limits, rounded outwards; whole arrays of them at a time.

The elementary functions of NumPy and SciPy are taken to be right to one part in 2^42; arithmetic is right to one part in 2^53.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

Numbers = NDArray[np.float64]
SLACK, TINY = 2.0**-42, 1e-300


@dataclass(frozen=True, eq=False)
class Interval:
    """Real numbers from ``low`` to ``high``; an infinite limit says that there is none."""

    low: Numbers
    high: Numbers

    @classmethod
    def of(cls, low: Any, high: Any = None) -> "Interval":
        """Return the interval between two limits, or that of one number."""
        return cls(np.asarray(low, dtype=np.float64), np.asarray(low if high is None else high, dtype=np.float64))

    def __add__(self, other: "Interval") -> "Interval":
        with np.errstate(all="ignore"):
            return outward(self.low + other.low, self.high + other.high, 2.0**-52)

    def __neg__(self) -> "Interval":
        return Interval(-self.high, -self.low)

    def __sub__(self, other: "Interval") -> "Interval":
        return self + -other

    def __mul__(self, other: "Interval") -> "Interval":
        corners = [times(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        low, high = np.minimum.reduce(corners), np.maximum.reduce(corners)
        return Interval(low, high) if self.is_sign() or other.is_sign() else outward(low, high, 2.0**-52)

    def is_sign(self) -> bool:
        """Say whether it is 1 or -1, which multiplies without rounding."""
        return bool(np.all((np.abs(self.low) == 1) & (self.low == self.high)))

    def union(self, other: "Interval") -> "Interval":
        """Return the smallest interval that holds both."""
        return Interval(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def largest(self) -> Numbers:
        """Return the largest magnitude."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def smallest(self) -> Numbers:
        """Return the smallest magnitude; 0 where the interval holds 0."""
        return np.maximum(np.maximum(self.low, -self.high), 0.0)

    def where(self, condition: NDArray[np.bool_], other: "Interval") -> "Interval":
        """Return this interval where ``condition`` holds, else the other."""
        return Interval(np.where(condition, self.low, other.low), np.where(condition, self.high, other.high))


def times(a: Numbers, b: Numbers) -> Numbers:
    """Return the product of limits; nought times no limit is nought, a product too small for a float64 is the smallest one."""
    with np.errstate(all="ignore"):
        product: Numbers = np.asarray(a * b)
    product = np.where((a == 0) | (b == 0), 0.0, product)
    return np.where((product == 0) & (a != 0) & (b != 0), np.sign(a) * np.sign(b) * TINY, product)


def outward(low: Numbers, high: Numbers, slack: float) -> Interval:
    """Return the interval, each limit moved outwards by a share of itself; what is not a number becomes no limit."""
    with np.errstate(all="ignore"):
        low, high = low - np.abs(low) * slack, high + np.abs(high) * slack
    return Interval(np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high))


def computed(low: Numbers, high: Numbers) -> Interval:
    """Return the interval between two values of an elementary function, which may be wrong in their last bits."""
    return outward(low - TINY, high + TINY, SLACK)


def increasing(function: Callable[[Numbers], Numbers]) -> Callable[[Interval], Interval]:
    """Return what an increasing function makes of an interval."""

    def image(x: Interval) -> Interval:
        with np.errstate(all="ignore"):
            return computed(function(x.low), function(x.high))

    return image


def bump(function: Callable[[Numbers], Numbers]) -> Callable[[Interval], Interval]:
    """Return what an even function that falls from 0 outwards makes of an interval."""

    def image(x: Interval) -> Interval:
        with np.errstate(all="ignore"):
            return computed(function(x.largest()), function(x.smallest()))

    return image


def logistic_slope(x: Numbers) -> Numbers:
    """Return the derivative of the logistic function, without cancellation."""
    return np.asarray(expit(x) * expit(-x))


def exponential(x: Interval) -> Interval:
    """Return ``exp``, exactly 1 at 0."""
    found = increasing(np.exp)(x)
    return Interval(np.where(x.low == 0, 1.0, np.maximum(found.low, 0.0)), np.where(x.high == 0, 1.0, found.high))


sigmoid = increasing(lambda x: np.asarray(expit(x)))
sigmoid_slope = bump(logistic_slope)
error_function = increasing(lambda x: np.asarray(erf(x)))
error_slope = bump(lambda x: np.asarray(2 / np.sqrt(np.pi) * np.exp(-x * x)))
softplus = increasing(lambda x: np.asarray(np.logaddexp(0.0, x)))


def logarithm(x: Interval) -> Interval:
    """Return ``log``; no lower limit where the interval reaches 0."""
    with np.errstate(all="ignore"):
        found = computed(np.log(x.low), np.log(x.high))
    return Interval(np.where(x.low > 0, found.low, -np.inf), np.where(x.high > 0, found.high, np.inf))


def reciprocal(x: Interval) -> Interval:
    """Return ``1 / x``; no limits where the interval holds 0."""
    with np.errstate(all="ignore"):
        found = outward(1 / x.high, 1 / x.low, 2.0**-52)
    apart = (x.low > 0) | (x.high < 0)
    return Interval(np.where(apart, found.low, -np.inf), np.where(apart, found.high, np.inf))


def square_root(x: Interval) -> Interval:
    """Return the square root; no limits below 0."""
    with np.errstate(all="ignore"):
        found = computed(np.sqrt(x.low), np.sqrt(x.high))
    return Interval(np.where(x.low >= 0, np.maximum(found.low, 0.0), -np.inf), np.where(x.low >= 0, found.high, np.inf))


def power(x: Interval, exponent: int) -> Interval:
    """Return ``x^n`` for a whole ``n >= 0``."""
    if exponent == 0:
        return Interval(np.ones_like(x.low), np.ones_like(x.high))
    if exponent % 2:
        return increasing(lambda a: np.asarray(a**exponent))(x)
    with np.errstate(all="ignore"):
        return computed(np.asarray(x.smallest() ** exponent), np.asarray(x.largest() ** exponent))
