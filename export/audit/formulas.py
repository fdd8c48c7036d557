"""Formulas of one variable: what exporters write for GELU, SiLU, Softplus, Mish, HardSwish and their like, in any order, any constants.

No pattern is matched. A tensor whose entries are each a function of the same entry of an earlier tensor carries that function as a `Term`,
and the slope of the term is bounded by interval arithmetic: cell by cell between two points, and as a `Tail` beyond them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from export.audit import intervals, tails
from export.audit.intervals import Interval
from export.audit.tails import Tail, UnboundedError

MOST_PARTS = 256
STARTS = (16.0, 64.0, 256.0, 2048.0)
ROUNDS, MOST_CELLS, TOLERANCE = 30, 2**16, 1e-5


@dataclass(frozen=True)
class Term:
    """An operator, the terms that it takes, and a number where it has one."""

    op: str
    parts: tuple["Term", ...] = ()
    number: float = 0.0

    @cached_property
    def size(self) -> int:
        """How many operators it holds."""
        return 1 + sum(part.size for part in self.parts)


X = Term("x")
Dual = tuple[Interval, Interval]
"""Values and slopes."""


def constant(number: float) -> Term:
    """Return a constant."""
    return Term("constant", number=number)


def negative(a: Term) -> Term:
    """Return ``-a``."""
    return constant(-a.number) if a.op == "constant" else Term("mul", (constant(-1.0), a))


def reciprocal(a: Term) -> Term:
    """Return ``1 / a``; of ``1 + exp(b)`` as the logistic function of ``-b``, which has no part that grows without end."""
    inner = after_one(a)
    return Term("reciprocal", (a,)) if inner is None else Term("sigmoid", (negative(inner),))


def logarithm(a: Term) -> Term:
    """Return ``log a``; of ``1 + exp(b)`` as the softplus of ``b``."""
    inner = after_one(a)
    return Term("log", (a,)) if inner is None else Term("softplus", (inner,))


def after_one(a: Term) -> Term | None:
    """Return the ``b`` of ``1 + exp(b)``."""
    if a.op == "add" and constant(1.0) in a.parts:
        other = a.parts[1] if a.parts[0] == constant(1.0) else a.parts[0]
        return other.parts[0] if other.op == "exp" else None
    return None


def tanh(a: Term) -> Term:
    """Return ``tanh a`` as ``2 sigmoid(2 a) - 1``."""
    return Term("add", (Term("mul", (constant(2.0), Term("sigmoid", (Term("mul", (constant(2.0), a)),)))), constant(-1.0)))


def chained(value: Callable[[Interval], Interval], slope: Callable[[Interval], Interval]) -> Callable[[Term, list[Dual]], Dual]:
    """Return values and slopes of a function of one term."""
    return lambda term, parts: (value(parts[0][0]), slope(parts[0][0]) * parts[0][1])


def larger(term: Term, parts: list[Dual]) -> Dual:
    """Return values and slopes of the larger of two."""
    (a, da), (b, db) = parts
    slopes = da.where(a.low >= b.high, db.where(a.high <= b.low, da.union(db)))
    return Interval(np.maximum(a.low, b.low), np.maximum(a.high, b.high)), slopes


def smaller(term: Term, parts: list[Dual]) -> Dual:
    """Return values and slopes of the smaller of two."""
    value, slope = larger(term, [(-a, -da) for a, da in parts])
    return -value, -slope


def stepped(term: Term, parts: list[Dual]) -> Dual:
    """Return values and slopes of two pieces that meet at ``number``; the third part is the variable."""
    (a, da), (b, db), (x, _) = parts
    below, above = x.high <= term.number, x.low >= term.number
    return a.where(below, b.where(above, a.union(b))), da.where(below, db.where(above, da.union(db)))


def powered(term: Term, parts: list[Dual]) -> Dual:
    """Return values and slopes of a whole power."""
    (a, da), exponent = parts[0], int(term.number)
    return intervals.power(a, exponent), Interval.of(float(exponent)) * intervals.power(a, exponent - 1) * da


def inverse_square(x: Interval) -> Interval:
    """Return ``-1 / x^2``."""
    return -intervals.reciprocal(intervals.power(x, 2))


def half_inverse_root(x: Interval) -> Interval:
    """Return ``1 / (2 sqrt x)``."""
    found = intervals.reciprocal(Interval.of(2.0) * intervals.square_root(x))
    return found.where(x.low > 0, Interval.of(-np.inf, np.inf))


def inverse(x: Interval) -> Interval:
    """Return ``1 / x`` for positive ``x``; no limits otherwise."""
    return intervals.reciprocal(x).where(x.low > 0, Interval.of(-np.inf, np.inf))


DUALS: dict[str, Callable[[Term, list[Dual]], Dual]] = {
    "add": lambda term, parts: (parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]),
    "mul": lambda term, parts: (parts[0][0] * parts[1][0], parts[0][0] * parts[1][1] + parts[1][0] * parts[0][1]),
    "erf": chained(intervals.error_function, intervals.error_slope),
    "exp": chained(intervals.exponential, intervals.exponential),
    "log": chained(intervals.logarithm, inverse),
    "max": larger,
    "min": smaller,
    "power": powered,
    "reciprocal": chained(intervals.reciprocal, inverse_square),
    "sigmoid": chained(intervals.sigmoid, intervals.sigmoid_slope),
    "softplus": chained(intervals.softplus, intervals.sigmoid),
    "sqrt": chained(intervals.square_root, half_inverse_root),
    "step": stepped,
}

TAILS: dict[str, Callable[[Term, list[Tail]], Tail]] = {
    "add": lambda term, parts: parts[0] + parts[1],
    "mul": lambda term, parts: parts[0] * parts[1],
    "erf": lambda term, parts: tails.erf_tail(parts[0]),
    "exp": lambda term, parts: tails.exp_tail(parts[0]),
    "log": lambda term, parts: tails.log_tail(parts[0]),
    "max": lambda term, parts: tails.larger(*parts),
    "min": lambda term, parts: tails.larger(*parts, sign=-1),
    "power": lambda term, parts: tails.power_tail(parts[0], int(term.number)),
    "reciprocal": lambda term, parts: tails.reciprocal_tail(parts[0]),
    "sigmoid": lambda term, parts: tails.sigmoid_tail(parts[0]),
    "softplus": lambda term, parts: tails.softplus_tail(parts[0]),
    "sqrt": lambda term, parts: tails.sqrt_tail(parts[0]),
}


def both(term: Term, x: Interval) -> Dual:
    """Return values and slopes of a term on each cell of ``x``."""
    return evaluated(term, {0.0: (x, Interval(np.ones_like(x.low), np.ones_like(x.low)))})


def over(term: Term, variables: Sequence[Interval]) -> Interval:
    """Return the values of a term of several variables, ``Term("x", number=1)`` and so on."""
    return evaluated(term, {float(i + 1): (x, Interval.of(0.0)) for i, x in enumerate(variables)})[0]


def evaluated(term: Term, variables: dict[float, Dual]) -> Dual:
    """Return values and slopes of a term, those of its variables known."""
    done: dict[int, Dual] = {}

    def of(part: Term) -> Dual:
        if part.op == "x":
            return variables[part.number]
        if part.op == "constant":
            return Interval.of(part.number), Interval.of(0.0)
        if id(part) not in done:
            done[id(part)] = DUALS[part.op](part, [of(inner) for inner in part.parts])
        return done[id(part)]

    return of(term)


def tail(term: Term, start: float, sign: int) -> Tail:
    """Return a term of ``x = sign t`` for ``t >= start``.

    Raises:
        UnboundedError: it is no polynomial plus what dies away, from there on.
    """
    done: dict[int, Tail] = {}

    def of(part: Term) -> Tail:
        if part.op == "x":
            return tails.variable(start, sign)
        if part.op == "constant":
            return tails.constant(start, part.number)
        if part.op == "step":
            if abs(part.number) >= start:
                raise UnboundedError
            return of(part.parts[1 if sign > 0 else 0])
        if id(part) not in done:
            done[id(part)] = TAILS[part.op](part, [of(inner) for inner in part.parts])
        return done[id(part)]

    return of(term)


@lru_cache(maxsize=4096)
def slope(term: Term, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a proved bound of the magnitude of the slope of a term between two limits; infinite where none was found."""
    best = math.inf
    for start in STARTS:
        try:
            ends = [tail(term, start, sign) for sign, limit in ((1, high), (-1, -low)) if limit > start]
            far = max((float(end.slope().largest()) for end in ends), default=0.0)
        except (UnboundedError, OverflowError):
            continue
        best = min(best, max(far, near(term, max(low, -start), min(high, start))))
        if all(end.left() <= TOLERANCE * far for end in ends):
            break
    return best


def thresholds(term: Term) -> set[float]:
    """Return where the pieces of a term meet."""
    inner = set().union(*(thresholds(part) for part in term.parts)) if term.parts else set()
    return inner | {term.number} if term.op == "step" else inner


def near(term: Term, low: float, high: float) -> float:
    """Return a bound of the slope between two finite limits, by halving the cells in which it may be largest."""
    if low > high:
        return 0.0
    corners = np.clip([0.0, *thresholds(term)], low, high)
    edges = np.unique(np.append(np.linspace(low, high, 257), corners))
    lows, highs = (edges[:-1], edges[1:]) if len(edges) > 1 else (edges, edges)
    settled = attained = 0.0
    for _ in range(ROUNDS):
        middle = (lows + highs) / 2
        at_most = np.broadcast_to(both(term, Interval(lows, highs))[1].largest(), lows.shape)
        attained = max(attained, float(both(term, Interval(middle, middle))[1].smallest().max()))
        still = at_most > attained * (1 + TOLERANCE)
        settled = max(settled, float(at_most[~still].max(initial=0.0)))
        open_ = float(at_most[still].max(initial=0.0))
        if not still.any() or 2 * int(still.sum()) > MOST_CELLS:
            break
        lows, highs = np.concatenate([lows[still], middle[still]]), np.concatenate([middle[still], highs[still]])
    return max(settled, open_)
