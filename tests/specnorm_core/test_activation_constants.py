"""The constants of the curved activations, proved in interval arithmetic (mpmath's ``iv``: every operation rounds outwards).

On [-20, 20] by branch and bound: an interval whose image under the derivative, from the mean value form
``f'(c) + f''(X) (X - c)``, is not below the constant is halved, until none is left. Beyond 20 each derivative has a bound that falls
with ``|x|``, given with it, and is evaluated at 20.
"""

from itertools import pairwise

import pytest
import torch
from mpmath import iv, mp
from torch import nn

from specnorm_core.activations import CONSTANTS

END = 20
DIGITS = 30


def logistic(x):
    return 1 / (1 + iv.exp(-x))


def square(x):
    return iv.mpf(x) ** 2


class SiLU:
    """``x s(x)``; ``s' = s (1 - s)``. Beyond: ``1 + x exp(-x)`` on the right, ``(1 + |x|) exp(-|x|)`` on the left."""

    layer = nn.SiLU()

    def first(self, x):
        s = logistic(x)
        return s * (1 + x * (1 - s))

    def second(self, x):
        s = logistic(x)
        return s * (1 - s) * (2 + x * (1 - 2 * s))

    def beyond(self, x):
        return 1 + (1 + x) * iv.exp(-x)


class Mish:
    """``x t(x)``, ``t = tanh(softplus(x))``, ``t' = (1 - t^2) s``, ``t'' = (1 - t^2) s (1 - s - 2 t s)``; with ``e = exp(x)``
    ``t = (e^2 + 2 e) / (e^2 + 2 e + 2)``. Beyond: ``1 - t^2 <= 4 exp(-2 softplus) <= 4 exp(-2 x)`` on the right,
    ``t <= softplus <= exp(x)`` and ``s <= exp(x)`` on the left.
    """

    layer = nn.Mish()

    def parts(self, x):
        grown = square(1 + iv.exp(x))
        t = 1 - 2 / (grown + 1)
        return t, 4 * grown / square(grown + 1), logistic(x)  # 1 - t^2 = 4 g / (g + 1)^2

    def first(self, x):
        t, fall, s = self.parts(x)
        return t + x * fall * s

    def second(self, x):
        t, fall, s = self.parts(x)
        return fall * s * (2 + x * (1 - s - 2 * t * s))

    def beyond(self, x):
        return 1 + 4 * (1 + x) * iv.exp(-x)


class GELU:
    """``x Phi(x)``. Beyond: ``Phi <= 1`` and ``|x| phi(x) <= |x| exp(-x^2 / 2)``."""

    layer = nn.GELU()

    def first(self, x):
        return (1 + error_function(x / iv.sqrt(2))) / 2 + x * self.density(x)

    def second(self, x):
        return self.density(x) * (2 - square(x))

    def density(self, x):
        return iv.exp(-square(x) / 2) / iv.sqrt(2 * iv.pi)

    def beyond(self, x):
        return 1 + x * iv.exp(-square(x) / 2)


class GELUTanh:
    """``x (1 + tanh g) / 2``, ``g = a (x + b x^3)``. Beyond: ``1 - tanh^2 <= 4 exp(-2 |g|)``."""

    layer = nn.GELU("tanh")

    def parts(self, x):
        a, b = iv.sqrt(2 / iv.pi), iv.mpf("0.044715")
        g, slope, bend = a * (x + b * x**3), a * (1 + 3 * b * square(x)), 6 * a * b * x
        t = 1 - 2 / (iv.exp(2 * g) + 1)
        return t, 4 / square(iv.exp(g) + iv.exp(-g)), slope, bend, g

    def first(self, x):
        t, fall, slope, *_ = self.parts(x)
        return (1 + t) / 2 + x * fall * slope / 2

    def second(self, x):
        t, fall, slope, bend, _ = self.parts(x)
        return fall * (slope + x * bend / 2 - x * t * square(slope))

    def beyond(self, x):
        *_, slope, _, g = self.parts(x)
        return 1 + 2 * x * slope * iv.exp(-2 * g)


def error_function(x):
    """erf of an interval: it grows, and mpmath's value at 30 digits is widened by 1e-15."""
    with mp.workdps(DIGITS):
        low, high = mp.erf(mp.mpf(x.a)), mp.erf(mp.mpf(x.b))
        return iv.mpf([low, high]) + iv.mpf(["-1e-15", "1e-15"])


CURVES = (SiLU(), Mish(), GELU(), GELUTanh())


def largest_slope_is_below(curve, constant):
    """Whether ``|f'| < constant`` is proved everywhere."""
    if not (curve.beyond(iv.mpf(END)) < constant):
        return False
    todo = [iv.mpf([k, k + 1]) for k in range(-END, END)]
    while todo:
        x = todo.pop()
        middle = iv.mpf(x.mid)
        enclosure = curve.first(middle) + curve.second(x) * (x - middle)
        if enclosure < constant and enclosure > -constant:
            continue
        if x.delta < iv.mpf("1e-9"):
            return False
        todo += [iv.mpf([x.a, middle.b]), iv.mpf([middle.a, x.b])]
    return True


every_curve = pytest.mark.parametrize("curve", CURVES, ids=lambda curve: type(curve).__name__)


@every_curve
def test_the_constant_is_proved_and_a_smaller_one_is_not(curve):
    constant = CONSTANTS[type(curve.layer)](curve.layer)
    assert largest_slope_is_below(curve, constant)
    assert not largest_slope_is_below(curve, constant - 1e-5)


@every_curve
def test_the_derivatives_that_the_proof_uses_are_those_of_the_layer(curve):
    x = torch.linspace(-6, 6, 49, dtype=torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(curve.layer(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    for at, slope, bend in zip(x.tolist(), first.tolist(), second.tolist(), strict=True):
        assert float(curve.first(iv.mpf(at)).mid) == pytest.approx(slope, abs=1e-12)
        assert float(curve.second(iv.mpf(at)).mid) == pytest.approx(bend, abs=1e-12)


def test_beyond_the_interval_each_bound_falls():
    for curve in CURVES:
        values = [curve.beyond(iv.mpf(x)) for x in (20, 25, 40, 80)]
        assert all(later.b <= earlier.b for earlier, later in pairwise(values))


def test_the_closed_forms_in_the_docstring_hold():
    """SiLU's largest slope is ``(r + 2) / 4`` with ``r tanh(r / 2) = 2``; GELU's is at sqrt(2)."""
    below, above = iv.mpf("2.39935"), iv.mpf("2.399359")
    assert below * (1 - 2 / (iv.exp(below) + 1)) < 2 < above * (1 - 2 / (iv.exp(above) + 1))
    assert (above + 2) / 4 <= CONSTANTS[nn.SiLU](nn.SiLU())
    assert GELU().first(iv.sqrt(2)) < CONSTANTS[nn.GELU](nn.GELU())
