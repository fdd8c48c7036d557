"""Activations written out by exporters, and what only looks like one: slopes proved by interval arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from export.audit import audit, entries, formulas, steps, tails
from export.audit.formulas import Term, X
from export.audit.intervals import Interval
from export.audit.values import Value

NUMBERS = {
    "half": 0.5, "one": 1, "two": 2, "three": 3, "six": 6, "sixth": 1 / 6, "root": 2**-0.5, "cube": 0.044715, "tilt": (2 / np.pi) ** 0.5,
    "quick": 1.702, "nought": 0, "minus": -1, "twenty": 20, "nan": np.nan, "third": 1 / 3, "ten": 10,
}  # fmt: skip
GATE = "e = Erf(s)\n a = Add(e, one)\n"
CUBIC = "c = Pow(x, three)\n d = Mul(c, cube)\n i = Add(x, d)\n j = Mul(i, tilt)\n t = Tanh(j)\n a = Add(t, one)\n"
ACTIVATIONS = {
    "gelu": ("s = Div(x, two_root)\n" + GATE + "h = Mul(x, a)\n y = Mul(h, half)", 1.4142, 1.1290),
    "gelu, another order": ("s = Mul(x, root)\n" + GATE + "h = Mul(half, x)\n y = Mul(a, h)", 1.4142, 1.1290),
    "tanh gelu": (CUBIC + "h = Mul(x, half)\n y = Mul(h, a)", 1.4142, 1.1292),
    "tanh gelu by products": (
        CUBIC.replace("c = Pow(x, three)", "b = Mul(x, x)\n c = Mul(x, b)") + "h = Mul(x, half)\n y = Mul(h, a)",
                              1.4142, 1.1292),
    "quick gelu": ("s = Mul(x, quick)\n g = Sigmoid(s)\n y = Mul(x, g)", 2.3994 / 1.702, 1.0999),
    "silu": ("g = Sigmoid(x)\n y = Mul(x, g)", 2.3994, 1.0999),
    "silu by exp": ("n = Neg(x)\n e = Exp(n)\n a = Add(one, e)\n y = Div(x, a)", 2.3994, 1.0999),
    "mish": ("s = Softplus(x)\n t = Tanh(s)\n y = Mul(x, t)", 1.4906, 1.0886),
    "hard swish": ("a = Add(x, three)\n c = Clip(a, nought, six)\n m = Mul(x, c)\n y = Div(m, six)", 2.99, 1.5001),
    "hard swish, divided first": ("a = Add(x, three)\n c = Clip(a, nought, six)\n d = Div(x, six)\n y = Mul(d, c)", 2.99, 1.5001),
    "hard swish by hard sigmoid": ("g = HardSigmoid<alpha = 0.16666667>(x)\n y = Mul(x, g)", 2.99, 1.5001),
    "softplus": ("e = Exp(x)\n a = Add(e, one)\n y = Log(a)", 12.0, 1.0001),
    "softplus, stable": (
        "b = Abs(x)\n n = Neg(b)\n e = Exp(n)\n a = Add(e, one)\n l = Log(a)\n m = Max(x, nought)\n y = Add(m, l)", 12.0, 1.0001),
    "elu by where": ("p = Greater(x, nought)\n e = Exp(x)\n f = Sub(e, one)\n m = Mul(f, two)\n y = Where(p, x, m)", -0.021, 2.0001),
    "leaky relu by where": ("p = Less(x, nought)\n m = Mul(x, two)\n y = Where(p, m, x)", -1.0, 2.0001),
    "square of a bounded one": ("t = Tanh(x)\n y = Pow(t, two)", 0.6585, 0.7699),
    "inverse of a positive one": ("a = Sigmoid(x)\n b = Add(a, half)\n y = Reciprocal(b)", -1.0986, 0.3334),
    "log of a positive one": ("s = Sigmoid(x)\n b = Add(s, half)\n y = Log(b)", -0.5493, 0.2681),
    "root of a positive one": ("s = Sigmoid(x)\n b = Add(s, half)\n q = Sqrt(b)\n y = Mul(q, one)", -0.3, 0.13),
    "what cancels": ("m = Mul(x, three)\n y = Sub(m, x)", 0.0, 2.0001),
}  # fmt: skip


def model(body, shape="N,4"):
    found = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}')
    numbers = {**NUMBERS, "two_root": 2**0.5}
    found.graph.initializer.extend(numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items())
    return found


def attained(found, at):
    """The steepest difference quotient in a small neighbourhood of a point, in double precision where the operators allow it."""
    points = at + np.linspace(-0.02, 0.02, 41)
    x = np.repeat(points[:, None], 4, axis=1).astype(np.float32)
    y = np.asarray(ReferenceEvaluator(found).run(None, {"x": x})[0])[:, 0].astype(np.float64)
    return float(np.abs((y[4:] - y[:-4]) / (x[4:, 0].astype(np.float64) - x[:-4, 0])).max())


def holds(name):
    body, at, _ = ACTIVATIONS[name]
    return attained(model(body), at) <= audit(model(body)).lipschitz["y"].bound * (1 + 1e-3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_written_out_activation_has_its_slope(name):
    body, at, most = ACTIVATIONS[name]
    stated = audit(model(body)).lipschitz["y"]
    assert stated.rigorous
    assert 0.98 * stated.bound <= attained(model(body), at) * (1 + 1e-3)
    assert holds(name)
    assert stated.bound <= most
    assert audit(model(body)).rows_independent


def smaller(slopes):
    return Interval(0.7 * np.asarray(slopes.low), 0.7 * np.asarray(slopes.high))


CATCHES = {
    "add": "gelu", "mul": "hard swish", "erf": "gelu", "exp": "elu by where", "log": "log of a positive one", "max": "hard swish",
    "min": "hard swish", "power": "square of a bounded one", "reciprocal": "inverse of a positive one", "sigmoid": "silu",
    "softplus": "mish", "sqrt": "root of a positive one", "step": "elu by where",
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(formulas.DUALS))
def test_a_slope_of_any_part_that_is_too_small_by_30_percent_is_caught(op, monkeypatch):
    honest = formulas.DUALS[op]

    def small(term, parts):
        value, slope = honest(term, parts)
        return value, smaller(slope)

    formulas.slope.cache_clear()
    monkeypatch.setitem(formulas.DUALS, op, small)
    caught = not holds(CATCHES[op])
    formulas.slope.cache_clear()
    assert caught


TAILS = {
    "add": Term("add", (X, Term("sigmoid", (X,)))),
    "mul": Term("mul", (X, Term("sigmoid", (X,)))),
    "erf": Term("mul", (X, Term("erf", (X,)))),
    "exp": Term("exp", (Term("mul", (formulas.constant(-1.0), X)),)),
    "log": Term("log", (Term("add", (formulas.constant(2.0), Term("sigmoid", (X,)))),)),
    "max": Term("max", (X, formulas.constant(1.0))),
    "min": Term("min", (X, Term("sigmoid", (X,)))),
    "power": Term("power", (Term("softplus", (X,)),), 3.0),
    "reciprocal": Term("reciprocal", (Term("add", (formulas.constant(2.0), Term("sigmoid", (X,)))),)),
    "sigmoid": Term("sigmoid", (Term("sigmoid", (X,)),)),
    "softplus": Term("softplus", (X,)),
    "sqrt": Term("sqrt", (Term("add", (formulas.constant(2.0), Term("sigmoid", (X,)))),)),
}


@pytest.mark.parametrize(("op", "sign"), [(op, sign) for op in TAILS for sign in ((1, -1) if op != "exp" else (1,))])
def test_far_out_a_term_is_its_polynomial_up_to_what_dies_away_and_so_is_its_slope(op, sign):
    for start in (4.0, 8.0, 16.0):
        found = formulas.tail(TAILS[op], start, sign)
        t = start * np.array([1.0, 1.1, 1.5, 2.0])
        value, slope = formulas.both(TAILS[op], Interval.of(sign * t))
        powers = np.stack([t**i for i in range(len(found.polynomial))])
        p = sum(float(c.low) * power for c, power in zip(found.polynomial, powers, strict=True))
        dp = sum(i * float(c.low) * t ** (i - 1) for i, c in enumerate(found.polynomial) if i)
        left = found.size * np.exp(-found.rate * t) if found.size else 0 * t
        assert (np.abs(value.low - p) <= left + 1e-9 * (1 + np.abs(p))).all()
        assert (np.abs(sign * slope.low - dp) <= left + 1e-9 * (1 + np.abs(dp))).all()


def test_every_part_of_a_formula_has_a_slope_a_tail_and_such_a_case():
    assert set(formulas.DUALS) - {"step"} == set(formulas.TAILS) == set(TAILS)


NEAR_MISSES = {
    "a gelu whose gate falls": "s = Mul(x, root)\n e = Erf(s)\n a = Sub(one, e)\n y = Mul(x, a)",
    "a gelu whose gate is wider": "s = Mul(x, ten)\n" + GATE + "y = Mul(x, a)",
    "a silu of twice": "d = Mul(x, two)\n g = Sigmoid(d)\n y = Mul(d, g)",
    "a swish with a cubic gate": "c = Mul(x, x)\n d = Mul(c, x)\n g = Sigmoid(d)\n y = Mul(x, g)",
    "a hard swish with a wider clip": "a = Add(x, three)\n c = Clip(a, nought, twenty)\n m = Mul(x, c)\n y = Div(m, six)",
    "a mish without softplus": "t = Tanh(x)\n y = Mul(x, t)",
    "a shifted product": "a = Add(x, ten)\n g = Sigmoid(x)\n y = Mul(a, g)",
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_only_looks_like_an_activation_gets_its_own_slope(name):
    found = model(NEAR_MISSES[name])
    x = np.linspace(-40, 40, 8001, dtype=np.float32)
    y = np.asarray(ReferenceEvaluator(found).run(None, {"x": np.repeat(x[:, None], 4, 1)})[0])[:, 0].astype(np.float64)
    steepest = float(np.abs(np.diff(y) / np.diff(x.astype(np.float64))).max())
    bound = audit(found).lipschitz["y"].bound
    assert steepest <= bound * (1 + 1e-2)
    assert bound <= steepest * 1.05 + 1e-6


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("y = Mul(x, x)", "Mul at 'y'"),
        ("g = Sigmoid(x)\n h = Mul(x, x)\n y = Mul(h, g)", "Mul at 'h'"),
        ("n = Neg(x)\n g = Erf(n)\n c = Pow(x, three)\n y = Mul(c, g)", "Pow at 'c'"),
        ("p = Greater(x, nought)\n a = Add(x, one)\n y = Where(p, a, x)", "Greater at 'p'"),
        ("p = Greater(x, one)\n e = Exp(x)\n y = Where(p, e, x)", "Greater at 'p'"),
        ("t = Tanh(x)\n y = Reciprocal(t)", "Reciprocal at 'y'"),
        ("s = Sigmoid(x)\n y = Log(s)\n", "Log at 'y'"),
        ("r = Relu(x)\n y = Sqrt(r)", "Sqrt at 'y'"),
        ("g = Sigmoid(x)\n h = Mul(x, nan)\n y = Mul(h, g)", "'nan' holds a number"),
        ("g = Sigmoid(x)\n y = Pow(g, half)", "Pow at 'y'"),
        ("s = Sin(x)\n y = Mul(x, s)", "Mul at 'y'"),
    ],
)
def test_a_formula_without_a_bounded_slope_has_no_bound(body, cause):
    stated = audit(model(body)).lipschitz["y"]
    if body.startswith("s = Sigmoid(x)"):  # log sigmoid has slope 1, which the tail of a logarithm of what dies away does not show
        assert stated.bound is None or stated.bound >= 1
        return
    assert stated.bound is None
    assert cause in stated.reason


def test_a_step_that_float32_cannot_show_is_told_and_a_larger_one_ends_the_bound():
    steps_at = {name: model(f"p = Greater(x, {name})\n s = Softplus(x)\n y = Where(p, x, s)") for name in ("twenty", "ten")}
    stated = audit(steps_at["twenty"]).lipschitz["y"]
    assert stated.bound == pytest.approx(1.0, rel=1e-3)
    assert not stated.rigorous
    assert "a step of 2.1e-09 at 20 is taken for rounding" in stated.reason
    assert audit(steps_at["ten"]).lipschitz["y"].bound is None


BOXED = "z = Clip(x, minus, two)\n "
LIMITED = {
    "Abs": "Abs(z)", "Add": "Add(z, three)", "Clip": "Clip(z, nought, one)", "Div": "Div(three, q)", "Erf": "Erf(z)", "Exp": "Exp(z)",
    "HardSigmoid": "HardSigmoid(z)", "Identity": "Identity(z)", "LeakyRelu": "LeakyRelu<alpha = 3.0>(z)", "Log": "Log(q)",
    "Max": "Max(z, one)", "Min": "Min(z, one)", "Mul": "Mul(z, minus)", "Neg": "Neg(z)",
    "Pow": "Pow(z, three)", "Reciprocal": "Reciprocal(q)",
    "Relu": "Relu(z)", "Sigmoid": "Sigmoid(z)", "Softplus": "Softplus(z)", "Sqrt": "Sqrt(q)", "Sub": "Sub(one, z)", "Sum": "Sum(z, z)",
    "Tanh": "Tanh(z)", "Cast": "Cast<to = 11>(z)", "Atan": "Atan(w)", "Cos": "Cos(z)", "Sin": "Sin(z)", "Softsign": "Softsign(w)",
    "Where": "Where(z_is, z, q)", "Concat": "Concat<axis = 1>(z, q)", "Mean": "Mean(z, z)", "Softmax": "Softmax<axis = 1>(w)",
    "Transpose": "Transpose<perm = [0, 1]>(z)", "Dropout": "Dropout(z)", "ReduceMax": "ReduceMax<keepdims = 1>(z, axis)",
    "ReduceMin": "ReduceMin<keepdims = 1>(z, axis)", "ReduceMean": "ReduceMean<keepdims = 1>(z, axis)", "Flatten": "Flatten(z)",
    "Gather": "Gather<axis = 1>(z, axis)", "Tile": "Tile(z, pair)", "Pad": "Pad(z, pads, ten)", "Trilu": "Trilu(cube_)",
    "Slice": "Slice(z, axis, pair_end, axis)", "TopK": "TopK(z, axis)",
}  # fmt: skip


def limits_of(op):
    call = LIMITED[op]
    outs = "y, i" if op == "TopK" else "y"
    body = BOXED + "q = Add(z, two)\n w = Mul(x, ten)\n cube_ = Reshape(z, square)\n" + f"{outs} = {call}"
    found = model(body).graph
    extra = {"z_is": np.array([True, False, True, True]), "axis": np.array([1]), "pair": np.array([1, 2]), "pads": np.array([0, 1, 0, 0]),
             "square": np.array([-1, 2, 2]), "pair_end": np.array([3])}  # fmt: skip
    found.initializer.extend(numpy_helper.from_array(value, name) for name, value in extra.items())
    return found


@pytest.mark.parametrize("op", LIMITED)
def test_no_entry_lies_outside_its_limits_and_limits_too_narrow_by_30_percent_are_caught(op, monkeypatch):
    found = limits_of(op)
    whole = model("y = Relu(x)")
    whole.graph.CopyFrom(found)
    corners = np.array([-1.0, 2.0, 0.0, 0.5, -30.0, 30.0])
    x = np.array(np.meshgrid(*[corners] * 4)).reshape(4, -1).T.astype(np.float32)
    y = np.asarray(ReferenceEvaluator(whole).run(None, {"x": x})[0])

    def limits():
        known = {t.name: steps.constants.constant(t.name, numpy_helper.to_array(t)) for t in found.initializer}
        known["x"] = Value("x", ("N", 4), bound=1.0, rows=True)
        for _ in steps.walked(found.node, known, 18):
            pass
        return known["y"].range

    low, high = limits()
    assert low - 1e-6 <= y.min()
    assert y.max() <= high + 1e-6
    honest = entries.LIMITS[op]
    monkeypatch.setitem(entries.LIMITS, op, lambda node: tuple(0.7 * limit for limit in honest(node)))
    low, high = limits()
    assert low > y.min() + 1e-6 or high < y.max() - 1e-6


WITHOUT_CASE = {"AveragePool", "DepthToSpace", "Expand", "GatherElements", "GatherND", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
                "Resize",                 "Reshape", "SpaceToDepth", "Split", "Squeeze", "Unsqueeze", "Upsample"}  # fmt: skip


def test_every_operator_with_limits_has_such_a_case_or_only_moves_and_averages():
    assert set(LIMITED) | WITHOUT_CASE == set(entries.LIMITS)
    assert not set(LIMITED) & WITHOUT_CASE


def test_products_of_bounded_activations_have_a_bound_and_of_unbounded_ones_none():
    gates = "a = Sigmoid(x)\n b = Gather<axis = 1>(x, order)\n t = Tanh(b)\n y = Mul(a, t)"
    found = model(gates)
    found.graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 3, 2]), "order"))
    assert audit(found).lipschitz["y"].bound == pytest.approx(1.25)
    half = model(gates.replace("t = Tanh(b)", "t = Relu(b)"))
    half.graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 3, 2]), "order"))
    assert "Mul at 'y'" in audit(half).lipschitz["y"].reason
    assert replace(Value("v", None), limits=(-3.0, 2.0)).magnitude == 3.0
    assert tails.constant(1.0, 2.0).left() == 0.0
