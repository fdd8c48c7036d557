"""Tighter than the product of the norms: a quadratic certificate through linear maps and functions with slopes in [0, 1], proved.

Let ``v`` stack the difference of two inputs and the differences ``p_j`` of the outputs of every function (see `relations`), and let
``z_j = C_j v`` be what goes into function j. Slopes in [0, 1] mean ``p (z - p) >= 0`` for every number, so for any ``t_j > 0``

    v' M v  :=  |x|^2 + sum_j 2 p_j' T_j (p_j - C_j v)  <=  |x|^2,        T_j = diag(t_j).

If ``[[M, C'], [C, Q]]`` is positive semidefinite, where ``y = C v`` is the output, then for every ``u`` (Cauchy and Schwarz)
``(u'y)^2 <= u'Qu v'Mv <= u'Qu |x|^2``. Hence the output's Lipschitz constant is at most ``sqrt(norm(Q))``, and that of the difference of
the outputs i and j at most ``sqrt(Q_ii + Q_jj - 2 Q_ij)``: the last layer enters pair by pair. (LipSDP: Fazlyab et al. 2019.)

The ``t_j`` and ``Q`` are found in floating point; nothing rests on how. First guesses: those that give the product of the norms, and the
closed form of ECLipsE-Fast (Xu and Sivaranjani 2024), ``t_j = 1 / norm(C_j M^-1 C_j')``; then some steps downhill. What is proved is the
one matrix inequality, for the very floats chosen, by a Cholesky factorisation with every rounding accounted for (`proves_positive`):

- ``T_j C_j`` is rounded once per entry: off by at most ``u norm_F`` of the block;
- where ``C_j`` itself was composed of several maps, `relations` bounds in norm what rounding left out, times ``max t_j``;
- rows and columns are scaled by powers of two, which is exact and a congruence, so that it changes no sign.
"""

import base64
import io
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

from export.audit.relations import Expression
from specnorm_core.bounds import sigma_upper, up
from specnorm_core.ceiling import proves_positive
from specnorm_core.roundoff import UNIT, gamma

Real = NDArray[np.float64]
FIRST_MARGIN = 2.0**-30
EFFORT = 1e10
"""Multiplications that the steps downhill may cost."""
WIDEST_RANGE = 2.0**400
"""Diagonals beyond it, or below its inverse, are left alone: so what underflow loses stays below ``2^-400`` per scaled entry."""
POWER = 32
"""Of the power mean that takes the place of the largest eigenvalue, which has no slope where two meet."""
MOST = 2560
"""Most variables and outputs of a form: beyond, its matrices may take more memory than the file is worth."""
LEAST = 1e-150
"""What a largest eigenvalue must exceed for its inverse to be of use."""
FARTHEST = 350.0
"""Largest logarithm of a multiplier: beyond it a square overflows."""
INSIDE = 2.0**-24
"""How far the guess that gives the product stays inside the cone, relatively."""


@dataclass(frozen=True)
class Certificate:
    """A proved bound of one output, and what it takes to prove it again without a search.

    Args:
        bound: Lipschitz constant of the output.
        pairs: ``[i, j]``: that of the difference of the outputs i and j; 0 on the diagonal.
        sensitivity: that of each output by itself.
        multipliers: ``t``.
        square: ``Q``.
    """

    bound: float
    pairs: Real
    sensitivity: tuple[float, ...]
    multipliers: Real
    square: Real

    def encode(self) -> str:
        """Return the multipliers and ``Q`` as text, to be kept in the file that they are about."""
        stream = io.BytesIO()
        np.savez(stream, multipliers=self.multipliers, square=self.square)
        return base64.b64encode(stream.getvalue()).decode()


def decode(text: str) -> tuple[Real, Real] | None:
    """Return multipliers and ``Q`` from a file; None where that is not what it holds. Nothing in them is trusted."""
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as held:
            t, Q = held["multipliers"], held["square"]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = t.ndim == 1 and Q.ndim == 2 and len(Q) == Q.shape[1] and t.dtype == Q.dtype == np.float64 and bool((Q == Q.T).all())
    return (t, Q) if fits and bool(np.isfinite(Q).all()) and bool((np.isfinite(t) & (t > 0)).all()) else None


class Form:
    """The quadratic form of one output: which variables it needs, and where they stand in ``v``."""

    def __init__(self, output: Expression) -> None:
        self.output, self.system = output, output.system
        needed: set[int] = {0}
        waiting = set(output.parts)
        while waiting:
            number = waiting.pop()
            needed.add(number)
            waiting |= (set(self.system.inputs[number - 1].parts) if number else set()) - needed
        self.numbers = sorted(needed)
        ends = np.cumsum([0] + [self.system.sizes[number] for number in self.numbers])
        self.places = {number: slice(int(a), int(b)) for number, a, b in zip(self.numbers, ends, ends[1:], strict=False)}
        self.functions = [number for number in self.numbers if number]
        self.size = int(ends[-1])
        self.maps = {number: self.whole(self.system.inputs[number - 1]) for number in self.functions}
        self.last = self.whole(output)

    def whole(self, expression: Expression) -> Real:
        """Return the matrix of an expression over all variables."""
        matrix = np.zeros((int(np.prod(expression.shape)), self.size))
        for number, part in expression.parts.items():
            matrix[:, self.places[number]] = part.toarray()
        return matrix

    def matrix(self, multipliers: Real) -> Real:
        """Return M for ``t`` in the order of the variables: ``(size,)``, the first block unused."""
        M = np.zeros((self.size, self.size))
        first = self.places[0]
        M[first, first] = np.eye(first.stop)
        for number in self.functions:
            here = self.places[number]
            rows = -multipliers[here, None] * self.maps[number][:, : here.start]
            M[here, : here.start] = rows
            M[: here.start, here] = rows.T
            M[here, here] = np.diag(2 * multipliers[here])
        return M


def certify(output: Expression, hint: str | None = None, effort: float = EFFORT) -> Certificate | None:
    """Return what is proved of ``output``; None where nothing could be.

    ``hint`` is what an earlier `Certificate` encoded: where it proves the output, there is no search, and the same numbers come out again
    on every machine.
    """
    if sum(output.system.sizes) + math.prod(output.shape) > MOST:
        return None
    form = Form(output)
    held = decode(hint) if hint else None
    if held is not None and len(held[0]) == form.size and len(held[1]) == len(form.last) and holds(form, *held):
        return stated(form, *held)
    tried = sorted(candidates(form, effort), key=lambda t: value_and_slope(form, np.log(t))[0])
    return next((found for found in (prove(form, t) for t in tried) if found is not None), None)


def candidates(form: Form, effort: float) -> Iterator[Real]:
    """Yield multipliers that are worth a proof."""
    yield product(form, INSIDE)
    if form.functions:
        starts = [greedy(form), product(form, 0.2)]
        yield starts[0]
        yield downhill(form, min(starts, key=lambda t: value_and_slope(form, np.log(t))[0]), effort)


def product(form: Form, inside: float) -> Real:
    """Return multipliers that give the product of the norms, but for ``inside``: how far they stay within the cone, per function."""
    t = np.ones(form.size)
    for depth, number in enumerate(form.functions, start=1):
        t[form.places[number]] = (1 - inside) ** depth * form.system.starts[number - 1]
    return t


def greedy(form: Form) -> Real:
    """Return the multipliers of ECLipsE-Fast: ``t_j = 1 / norm(C_j M^-1 C_j')``, function by function."""
    t = np.ones(form.size)
    factor = np.eye(form.places[0].stop)
    for number in form.functions:
        here, C = form.places[number], form.maps[number]
        X = linalg.solve_triangular(factor, C[:, : here.start].T, lower=True, check_finite=False)
        A = X.T @ X
        largest = float(linalg.eigvalsh(A, subset_by_index=[len(A) - 1] * 2)[0])
        t[here] = value = 1 / largest if largest > LEAST else 1.0  # of what never moves, any will do
        grown = np.zeros((here.stop, here.stop))
        grown[: here.start, : here.start] = factor
        grown[here, : here.start] = -value * X.T
        grown[here, here] = linalg.cholesky(2 * value * np.eye(len(A)) - value * value * A, lower=True)
        factor = grown
    return t


def value_and_slope(form: Form, logarithms: Real, barrier: float = 0.0) -> tuple[float, Real]:
    """Return a smooth upper bound of ``log norm(C M^-1 C')`` and its slope in ``log t``; infinite outside the cone.

    ``barrier`` times ``sum(log t) - log det M`` is added: it grows towards the border of the cone.
    """
    if not (logarithms < FARTHEST).all():
        return math.inf, np.zeros(form.size)
    t = np.exp(logarithms)
    try:
        factor = linalg.cho_factor(form.matrix(t), lower=True, overwrite_a=True, check_finite=False)
        Y = linalg.cho_solve(factor, form.last.T, check_finite=False)
        values, vectors = linalg.eigh(form.last @ Y)
    except (linalg.LinAlgError, ValueError):
        return math.inf, np.zeros(form.size)
    if not values[-1] > 0:
        return math.inf, np.zeros(form.size)
    ratios = np.maximum(values, 0) / values[-1]
    total = float(np.sum(ratios**POWER))
    Z = Y @ (vectors * np.sqrt(ratios ** (POWER - 1) / (total * values[-1])))
    value, slope = math.log(values[-1]) + math.log(total) / POWER, np.zeros(form.size)
    inverse = linalg.cho_solve(factor, np.eye(form.size), check_finite=False) if barrier else None
    if barrier:
        behind = form.places[0].stop
        value += barrier * float(np.sum(logarithms[behind:]) - 2 * np.sum(np.log(np.diagonal(factor[0]))))
    for number in form.functions:
        here = form.places[number]
        slope[here] = -2 * t[here] * np.sum(Z[here] * (Z[here] - form.maps[number] @ Z), axis=1)
        if inverse is not None:
            change = np.diagonal(inverse)[here] - np.sum(form.maps[number] * inverse[here], axis=1)
            slope[here] += barrier * (1 - 2 * t[here] * change)
    return value, slope


def downhill(form: Form, start: Real, effort: float) -> Real:
    """Return multipliers that L-BFGS finds from ``start``, in two rounds with a lower barrier in the second.

    The problem is convex in ``t``, and smooth in ``log t`` within the cone.
    """
    steps = int(min(100, effort / (2 * form.size**3 + 2 * form.size**2 * len(form.last))))
    x = np.log(start)
    best = (value_and_slope(form, x)[0], x)
    for weight in (2.0**-5, 2.0**-11) if steps >= 3 else ():

        def function(x: Real, weight: float = weight) -> tuple[float, Real]:
            value, slope = value_and_slope(form, x, weight / form.size)
            return (value, slope) if math.isfinite(value) else (1e6, slope)

        x = optimize.minimize(function, x, jac=True, method="L-BFGS-B", options={"maxfun": steps, "maxiter": steps}).x
        value = value_and_slope(form, x)[0]
        best = min(best, (value, x), key=lambda pair: pair[0])
    return np.asarray(np.exp(best[1]))


def prove(form: Form, t: Real) -> Certificate | None:
    """Return the certificate that the multipliers ``t`` give, proved for some ``Q`` just above ``C M^-1 C'``; None where it cannot be."""
    try:
        factor = linalg.cho_factor(form.matrix(t), lower=True, overwrite_a=True)
    except (linalg.LinAlgError, ValueError):
        return None
    Q = form.last @ linalg.cho_solve(factor, form.last.T)
    Q = (Q + Q.T) / 2
    step = FIRST_MARGIN * float(np.diagonal(Q).max(initial=0.0))
    for _ in range(5):
        if step > 0 and holds(form, t, Q + step * np.eye(len(Q))):
            # Twice the step: what another machine rounds otherwise does not undo the proof.
            return stated(form, t, Q + 2 * step * np.eye(len(Q)))
        step *= 64
    return None


def stated(form: Form, t: Real, Q: Real) -> Certificate:
    """Return what follows from a ``Q`` that is proved, rounded up."""
    scale, diagonal = form.system.bound, np.diagonal(Q)
    sums = diagonal[:, None] + diagonal[None]
    square = np.maximum(sums - 2 * Q, 0) + 8 * UNIT * (sums + 2 * np.abs(Q))
    pairs = np.nextafter(np.nextafter(np.sqrt(square), np.inf) * scale, np.inf) * (1 - np.eye(len(Q)))
    alone = tuple(up(up(math.sqrt(q)) * scale) for q in diagonal.tolist())
    return Certificate(up(up(math.sqrt(sigma_upper(Q))) * scale), pairs, alone, t, Q)


def holds(form: Form, t: Real, Q: Real) -> bool:
    """Say whether ``[[M, C'], [C, Q]]`` is proved to be positive semidefinite for the exact ``T_j C_j`` and ``C``."""
    whole = np.block([[form.matrix(t), form.last.T], [form.last, Q]])
    diagonal = np.diagonal(whole)
    if not ((diagonal > 1 / WIDEST_RANGE) & (diagonal < WIDEST_RANGE)).all() or not np.isfinite(whole).all():
        return False
    scale = np.ldexp(1.0, -np.round(np.log2(diagonal) / 2).astype(int))
    whole *= scale[:, None]
    whole *= scale[None]
    slack = 2 * UNIT * float(np.linalg.norm(whole)) * (1 + gamma(whole.size)) + whole.size / WIDEST_RANGE
    for number in form.functions:
        here = form.places[number]
        slack += float((scale[here] * t[here]).max()) * left_out(form, scale, form.system.inputs[number - 1])
    slack += float(scale[form.size :].max()) * left_out(form, scale, form.output)
    return proves_positive(whole, slack * (1 + 2.0**-40))


def left_out(form: Form, scale: Real, expression: Expression) -> float:
    """Return the norm of what rounding left out of an expression, its columns scaled."""
    return sum(error * float(scale[form.places[number]].max()) for number, error in expression.errors.items())
