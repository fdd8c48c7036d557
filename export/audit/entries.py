"""What operators do to single entries: the term of an entrywise operator, and the limits between which its results lie."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from export.audit import formulas
from export.audit.formulas import MOST_PARTS, Term, constant
from export.audit.intervals import Interval
from export.audit.node import Node
from export.audit.tails import HIGHEST
from export.audit.values import Formula, NoBoundError, Value

ROUNDING = 2.0**-24
"""A step this small, relative to the numbers beside it, is one that float32 cannot show."""
WIDE = {TensorProto.FLOAT, TensorProto.DOUBLE}
Limits = tuple[float, float]


def folded(op: str) -> Callable[[Node, list[Term]], Term]:
    """Return the term of an operator that takes its inputs two by two, from the left."""

    def build(node: Node, terms: list[Term]) -> Term:
        result = terms[0]
        for term in terms[1:]:
            result = Term(op, (result, term))
        return result

    return build


def of_one(make: Callable[[Term], Term]) -> Callable[[Node, list[Term]], Term]:
    """Return the term of an operator with one input."""
    return lambda node, terms: make(terms[0])


def between(term: Term, low: float, high: float) -> Term:
    """Return the term kept between two limits, where they are finite."""
    term = Term("max", (term, constant(low))) if math.isfinite(low) else term
    return Term("min", (term, constant(high))) if math.isfinite(high) else term


def clip(node: Node, terms: list[Term]) -> Term:
    """Clip, by attributes or inputs."""
    low, high = (float(np.ravel(node.option(name, place, limit))[0]) for name, place, limit in (("min", 1, -np.inf), ("max", 2, np.inf)))
    return between(terms[0], low, high)


def hard_sigmoid(node: Node, terms: list[Term]) -> Term:
    """HardSigmoid."""
    alpha, beta = float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5))
    return between(Term("add", (Term("mul", (constant(alpha), terms[0])), constant(beta))), 0.0, 1.0)


def leaky(node: Node, terms: list[Term]) -> Term:
    """LeakyRelu."""
    alpha = float(node.attribute("alpha", 0.01))
    return Term("max" if alpha <= 1 else "min", (terms[0], Term("mul", (constant(alpha), terms[0]))))


def power(node: Node, terms: list[Term]) -> Term:
    """Pow with a whole exponent, 1/2 or -1/2.

    Raises:
        NoBoundError: with any other.
    """
    base, exponent = terms
    if exponent.op == "constant" and abs(exponent.number) == 0.5:
        root = Term("sqrt", (base,))
        return root if exponent.number > 0 else formulas.reciprocal(root)
    if exponent.op != "constant" or exponent.number != int(exponent.number) or not 1 <= abs(exponent.number) <= HIGHEST:
        raise NoBoundError("its exponent is no small whole number")
    whole = base if abs(exponent.number) == 1 else Term("power", (base,), abs(exponent.number))
    return whole if exponent.number > 0 else formulas.reciprocal(whole)


def divided(node: Node, terms: list[Term]) -> Term:
    """Div."""
    return Term("mul", (terms[0], formulas.reciprocal(terms[1])))


def cast(node: Node, terms: list[Term]) -> Term:
    """Cast to a floating-point type that is wide enough.

    Raises:
        NoBoundError: any other type jumps.
    """
    if int(node.attribute("to", 0)) not in WIDE:
        raise NoBoundError("it rounds to a type that jumps")
    return terms[0]


TERMS: dict[str, Callable[[Node, list[Term]], Term]] = {
    "Abs": of_one(lambda a: Term("max", (a, formulas.negative(a)))),
    "Add": folded("add"),
    "Cast": cast,
    "Clip": clip,
    "Div": divided,
    "Erf": of_one(lambda a: Term("erf", (a,))),
    "Exp": of_one(lambda a: Term("exp", (a,))),
    "HardSigmoid": hard_sigmoid,
    "Identity": of_one(lambda a: a),
    "LeakyRelu": leaky,
    "Log": of_one(formulas.logarithm),
    "Max": folded("max"),
    "Min": folded("min"),
    "Mul": folded("mul"),
    "Neg": of_one(formulas.negative),
    "Pow": power,
    "Reciprocal": of_one(formulas.reciprocal),
    "Relu": of_one(lambda a: Term("max", (a, constant(0.0)))),
    "Sigmoid": of_one(lambda a: Term("sigmoid", (a,))),
    "Softplus": of_one(lambda a: Term("softplus", (a,))),
    "Sqrt": of_one(lambda a: Term("sqrt", (a,))),
    "Sub": lambda node, terms: Term("add", (terms[0], formulas.negative(terms[1]))),
    "Sum": folded("add"),
    "Tanh": of_one(formulas.tanh),
}
"""The term of each operator that may be a part of a formula."""
DATA = {"Clip": 1}
"""How many inputs are data, where not all of them are."""


def formula_of(node: Node) -> tuple[Formula, tuple[str, ...]] | None:
    """Return the function of one earlier tensor that a node computes entry by entry, and what it leaves out; None where it does not."""
    if node.op == "Where":
        return piecewise(node)
    if node.op not in TERMS:
        return None
    given = [value for value in node.inputs[: DATA.get(node.op)] if value is not None]
    found = operands(given)
    if found is None or any(value is not None and value.constant is None for value in node.inputs[DATA.get(node.op, len(node.inputs)) :]):
        return None
    origin, terms = found
    try:
        term = TERMS[node.op](node, terms)
    except (NoBoundError, ValueError):
        return None
    return (Formula(origin, term), ()) if term.size <= MOST_PARTS else None


def operands(given: Sequence[Value]) -> tuple[Value, list[Term]] | None:
    """Return the one tensor that all of these are functions of, and the functions; None where there is no such tensor."""
    described = [value.described() for value in given if value.constant is None]
    if not described or any(formula.origin is not described[0].origin for formula in described) or not described[0].origin.floating:
        return None
    origin, terms = described[0].origin, []
    for value in given:
        if value.constant is None:
            terms.append(value.described().term)
        elif value.constant.size == 1 and value.constant.ndim <= (0 if origin.shape is None else len(origin.shape)):
            number = float(value.constant.ravel()[0])
            if not math.isfinite(number):
                return None
            terms.append(constant(number))
        else:
            return None
    return origin, terms


def piecewise(node: Node) -> tuple[Formula, tuple[str, ...]] | None:
    """Where on a comparison of a tensor with a number: two pieces that meet there, up to a step that float32 cannot show."""
    condition = node.input()
    compare = condition.maker
    if compare is None or compare.op not in {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}:
        return None
    found = operands([compare.input(0), compare.input(1), node.input(1), node.input(2)])
    if found is None:
        return None
    origin, (left, right, yes, no) = found
    if {left.op, right.op} != {"x", "constant"}:
        return None
    above_is_yes = compare.op.startswith("Greater") == (left.op == "x")
    threshold = right.number if right.op == "constant" else left.number
    below, above = (no, yes) if above_is_yes else (yes, no)
    a, b = (formulas.both(term, Interval.of(threshold))[0] for term in (below, above))
    step = float((a - b).largest())
    if step > ROUNDING * float(a.largest()):
        return None
    term = Term("step", (below, above, formulas.X), threshold)
    note = f"{node.place}: a step of {step:.2g} at {threshold:g} is taken for rounding"
    return (Formula(origin, term), (note,) if step else ()) if term.size <= MOST_PARTS else None


def image(node: Node) -> Limits:
    """Return the limits of a term of independent inputs: interval by interval."""
    given = [value for value in node.inputs[: DATA.get(node.op)] if value is not None]
    single = [value.constant is not None and value.constant.size == 1 and bool(np.isfinite(value.constant).all()) for value in given]
    variables = [Term("x", number=float(place + 1)) for place in range(len(given))]
    term = TERMS[node.op](node, [constant(v.range[0]) if alone else x for v, x, alone in zip(given, variables, single, strict=True)])
    found = formulas.over(term, [Interval.of(*value.range) for value in given])
    return float(found.low), float(found.high)


def same(node: Node) -> Limits:
    """The limits of the first input."""
    return node.input().range


def all_of(node: Node) -> Limits:
    """The limits of all inputs together."""
    return hull([value.range for value in node.inputs if value is not None])


def hull(limits: Sequence[Limits]) -> Limits:
    """Return the smallest limits that hold all of these."""
    return min(low for low, _ in limits), max(high for _, high in limits)


def with_nought(node: Node) -> Limits:
    """The limits of the first input, and 0."""
    return hull([node.input().range, (0.0, 0.0)])


def padded(node: Node) -> Limits:
    """The limits of the first input, and the value that it is padded with."""
    value = node.option("value", 2, 0.0)
    return hull([node.input().range, (float(np.ravel(value)[0]),) * 2])


def chosen(node: Node) -> Limits:
    """The limits of both branches."""
    return hull([node.input(1).range, node.input(2).range])


def fixed(low: float, high: float) -> Callable[[Node], Limits]:
    """Return limits that hold whatever comes in."""
    return lambda node: (low, high)


LIMITS: dict[str, Callable[[Node], Limits]] = {
    **dict.fromkeys(sorted(TERMS), image),
    **dict.fromkeys(
        ["DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "GlobalAveragePool", "GlobalMaxPool"], same
    ),
    **dict.fromkeys(["ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze"], same),
    **dict.fromkeys(["Tile", "TopK", "Transpose", "Unsqueeze"], same),
    **dict.fromkeys(["AveragePool", "Trilu", "Upsample"], with_nought),
    "Concat": all_of,
    "MaxPool": lambda node: same(node) if all(d == 1 for d in node.attribute("dilations", [1])) else (-math.inf, math.inf),
    "Mean": all_of,
    "Pad": padded,
    "Resize": lambda node: same(node) if node.attribute("mode", b"nearest") in (b"nearest", b"linear") else (-math.inf, math.inf),
    "Softmax": fixed(0.0, 1.0),
    "Where": chosen,
    "Atan": fixed(-1.5707963267948968, 1.5707963267948968),
    "Cos": fixed(-1.0, 1.0),
    "Sin": fixed(-1.0, 1.0),
    "Softsign": fixed(-1.0, 1.0),
}
"""Between which limits the results of an operator lie; where it is not here, there are none."""


def limits(node: Node) -> Limits:
    """Return the limits of what a node gives."""
    try:
        low, high = LIMITS[node.op](node) if node.op in LIMITS else (-math.inf, math.inf)
    except (NoBoundError, ValueError, TypeError, IndexError):
        return -math.inf, math.inf
    return (-math.inf, math.inf) if math.isnan(low) or math.isnan(high) else (low, high)
