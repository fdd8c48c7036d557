"""A function far out: a polynomial and something that dies away exponentially, with its slope.

On ``t >= start`` a `Tail` says ``f(t) = p(t) + e(t)`` with ``|e(t)| <= size exp(-rate t)`` and the same for the slope of ``e``.
Sums, products and the usual activations of such functions are of the same kind, so the slope of a whole formula is bounded out to infinity.
"""

import math
from dataclasses import dataclass

import numpy as np

from export.audit.intervals import Interval, error_function, exponential, logarithm, power, reciprocal, sigmoid, softplus, square_root

HIGHEST = 8
"""Largest degree that is followed."""
ROUND = 1 + 2.0**-40
ZERO = Interval.of(0.0)


class UnboundedError(Exception):
    """The function is not of this kind, or not from this start on."""


@dataclass(frozen=True, eq=False)
class Tail:
    """``polynomial`` (one coefficient per power of ``t``), and the size and rate of what dies away, from ``start`` on."""

    start: float
    polynomial: tuple[Interval, ...]
    size: float = 0.0
    rate: float = math.inf

    def __add__(self, other: "Tail") -> "Tail":
        longest = max(len(self.polynomial), len(other.polynomial))
        summed = tuple(coefficient(self.polynomial, i) + coefficient(other.polynomial, i) for i in range(longest))
        return Tail(self.start, trimmed(summed), (self.size + other.size) * ROUND, min(self.rate, other.rate))

    def __mul__(self, other: "Tail") -> "Tail":
        product = [ZERO] * (len(self.polynomial) + len(other.polynomial) - 1)
        for i, a in enumerate(self.polynomial):
            for j, b in enumerate(other.polynomial):
                product[i + j] = product[i + j] + a * b
        parts = [
            dying(self.start, self.polynomial, other.size, other.rate),
            dying(self.start, other.polynomial, self.size, self.rate),
            (2 * self.size * other.size, min(self.rate, other.rate)),
        ]
        size, rate = sum(size for size, _ in parts) * ROUND, min((rate for size, rate in parts if size), default=math.inf)
        return Tail(self.start, trimmed(tuple(product)), size, rate)

    def left(self) -> float:
        """Return the largest size of what dies away."""
        return self.size * math.exp(-self.rate * self.start) * ROUND if self.size else 0.0

    def level(self) -> Interval:
        """Return all values, where the polynomial is a constant.

        Raises:
            UnboundedError: it is not.
        """
        if len(self.polynomial) > 1:
            raise UnboundedError
        return self.polynomial[0] + Interval.of(-self.left(), self.left())

    def slope(self) -> Interval:
        """Return the slopes.

        Raises:
            UnboundedError: the polynomial bends.
        """
        if len(self.polynomial) > 2:
            raise UnboundedError
        return coefficient(self.polynomial, 1) + Interval.of(-self.left(), self.left())

    def growth(self) -> tuple[int, float]:
        """Return the sign of the values, and a ``g > 0`` with ``|p(t)| >= g t``.

        Raises:
            UnboundedError: neither is clear from here on.
        """
        degree = len(self.polynomial) - 1
        if degree < 1:
            raise UnboundedError
        leading = self.polynomial[degree]
        rest = sum(float(c.largest()) * self.start ** (i - degree) for i, c in enumerate(self.polynomial[:degree])) * ROUND
        share = (float(leading.smallest()) - rest) / ROUND
        growth = share * self.start ** (degree - 1) / ROUND
        if share <= 0 or growth * self.start <= self.left():
            raise UnboundedError
        return (1 if float(leading.low) > 0 else -1), growth


def coefficient(polynomial: tuple[Interval, ...], place: int) -> Interval:
    """Return a coefficient, 0 beyond the last."""
    return polynomial[place] if place < len(polynomial) else ZERO


def trimmed(polynomial: tuple[Interval, ...]) -> tuple[Interval, ...]:
    """Return the polynomial without leading coefficients that are exactly 0.

    Raises:
        UnboundedError: its degree is beyond what is followed.
    """
    while len(polynomial) > 1 and polynomial[-1].low == polynomial[-1].high == 0:
        polynomial = polynomial[:-1]
    if len(polynomial) > HIGHEST + 1:
        raise UnboundedError
    return polynomial


def dying(start: float, polynomial: tuple[Interval, ...], size: float, rate: float) -> tuple[float, float]:
    """Return size and rate of a polynomial times what dies away, its slope included: half the rate pays for the polynomial."""
    if size == 0 or all(c.low == c.high == 0 for c in polynomial):
        return 0.0, math.inf
    total = 0.0
    for i, c in enumerate(polynomial):
        for power_, factor in ((i, 1.0), (i - 1, float(i))):
            if power_ >= 0 and factor:
                at = max(start, 2 * power_ / rate)
                total += factor * float(c.largest()) * at**power_ * math.exp(-rate * at / 2)
    return size * total * ROUND, rate / 2


def constant(start: float, value: float) -> Tail:
    """Return a constant."""
    return Tail(start, (Interval.of(value),))


def variable(start: float, sign: int) -> Tail:
    """Return ``t`` or ``-t``."""
    return Tail(start, (ZERO, Interval.of(float(sign))))


def settled(u: Tail, value: Interval, steepest: float) -> Tail:
    """Return ``f(u)`` of a ``u`` that tends to a constant, where ``f`` has there that value and around it no larger slope.

    Raises:
        UnboundedError: the slope has no bound.
    """
    if not math.isfinite(steepest):
        raise UnboundedError
    return Tail(u.start, (value,), u.size * steepest * ROUND, u.rate)


def saturated(u: Tail, limit: Interval, steepness: float) -> Tail:
    """Return ``f(u)`` where ``|f(u) - limit|`` and ``|f'(u)|`` are at most ``steepness exp(-|u|)`` and ``u`` grows without end."""
    _, growth = u.growth()
    slopes = tuple(coefficient(u.polynomial, i) * Interval.of(float(i)) for i in range(1, len(u.polynomial)))
    steep = (slopes[0] + Interval.of(-1 - u.size, 1 + u.size), *slopes[1:])  # the slope of u, or 1 for the value itself
    size, rate = dying(u.start, steep, steepness * math.exp(u.left()) * ROUND, growth)
    return Tail(u.start, (limit,), size, rate)


def flat(u: Tail) -> bool:
    """Say whether the polynomial is a constant."""
    return len(u.polynomial) == 1


def sigmoid_tail(u: Tail) -> Tail:
    """Return the logistic function of ``u``."""
    if flat(u):
        return settled(u, sigmoid(u.polynomial[0]), 0.25)
    return saturated(u, Interval.of(1.0 if u.growth()[0] > 0 else 0.0), 1.0)


def erf_tail(u: Tail) -> Tail:
    """Return the error function of ``u``: ``erfc(u) <= exp(-u^2) <= exp(-u)`` from 1 on."""
    if flat(u):
        return settled(u, error_function(u.polynomial[0]), 1.13)
    sign, growth = u.growth()
    if growth * u.start - u.left() < 1:
        raise UnboundedError
    return saturated(u, Interval.of(float(sign)), 1.13)


def exp_tail(u: Tail) -> Tail:
    """Return ``exp(u)``."""
    if flat(u):
        return settled(u, exponential(u.polynomial[0]), float(exponential(u.level()).high))
    if u.growth()[0] > 0:
        raise UnboundedError
    return saturated(u, ZERO, 1.0)


def softplus_tail(u: Tail) -> Tail:
    """Return ``log(1 + exp(u))``, which is ``u`` plus the same of ``-u``."""
    if flat(u):
        return settled(u, softplus(u.polynomial[0]), 1.0)
    dead = saturated(u, ZERO, 1.0)
    return dead + u if u.growth()[0] > 0 else dead


def log_tail(u: Tail) -> Tail:
    """Return the logarithm of what tends to a positive constant."""
    least = float(u.level().low)
    if least <= 0:
        raise UnboundedError
    return settled(u, logarithm(u.polynomial[0]), 1 / least * ROUND)


def sqrt_tail(u: Tail) -> Tail:
    """Return the square root of what tends to a positive constant."""
    least = float(u.level().low)
    if least <= 0:
        raise UnboundedError
    return settled(u, square_root(u.polynomial[0]), 0.5 / math.sqrt(least) * ROUND)


def reciprocal_tail(u: Tail) -> Tail:
    """Return one over what tends to a constant other than 0."""
    least = float(u.level().smallest())
    if least <= 0:
        raise UnboundedError
    return settled(u, reciprocal(u.polynomial[0]), 1 / least**2 * ROUND)


def power_tail(u: Tail, exponent: int) -> Tail:
    """Return ``u^n``."""
    if flat(u) and u.size == 0:
        return Tail(u.start, (power(u.polynomial[0], exponent),))
    result = constant(u.start, 1.0)
    for _ in range(exponent):
        result = result * u
    return result


def larger(a: Tail, b: Tail, *, sign: int = 1) -> Tail:
    """Return the one that is the larger from here on (``sign`` -1: the smaller).

    Raises:
        UnboundedError: neither is.
    """
    if a is b:
        return a
    difference = a + b * constant(b.start, -1.0)
    if flat(difference):
        level = difference.level()
        ahead = np.sign(float(level.low)) if float(level.smallest()) > 0 or level.low == level.high == 0 else None
    else:
        ahead = difference.growth()[0]
    if ahead is None:
        raise UnboundedError
    return a if ahead * sign >= 0 else b
