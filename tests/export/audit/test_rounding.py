"""The float32 error bound: walked on the graph, against exact evaluation; every coefficient attained by a graph, or by definition."""

import math
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.audit import certified
from export.audit.rounding import REACH, ROUNDED, TINY, UNIT, Affine, Roundings, gamma
from export.audit.values import NoBoundError


def graph(nodes, weights, shape, out=1, opset=19):
    """A graph from ``x`` to ``y``; nodes as (op, inputs, output, attributes)."""
    value = helper.make_tensor_value_info
    made = [helper.make_node(op, inputs, [output] if isinstance(output, str) else output, **more) for op, inputs, output, more in nodes]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    inputs, outputs = value("x", TensorProto.FLOAT, ["N", *shape]), value("y", TensorProto.FLOAT, ["N", *["d"] * out])
    model = helper.make_model(
        helper.make_graph(made, "g", [inputs], [outputs], constants), opset_imports=[helper.make_opsetid("", opset)], ir_version=9
    )
    outputs.type.tensor_type.ClearField("shape")
    return model


def walked(model):
    roundings = Roundings(["x"])
    certified(model, chain=False, watch=roundings.follow)
    return roundings


def bound(model, y="y"):
    return walked(model).error(y)


def run(model, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


RNG = np.random.default_rng(0)


def f32(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


PAIR = [
    ("ReduceMax", ["x", "axes"], "a", {"keepdims": 1}),
    ("ReduceMin", ["x", "axes"], "b", {"keepdims": 1}),
    ("Concat", ["a", "b"], "y", {"axis": 2}),
]
CASES = {
    "Gemm": ([("Gemm", ["x", "w", "b"], "y", {"transB": 1})], {"w": f32(5, 7), "b": f32(5)}, (7,), 1),
    "Conv": (
        [("Conv", ["x", "w", "b"], "y", {"pads": [1, 1, 1, 1], "strides": [2, 1]})], {"w": f32(4, 2, 3, 3), "b": f32(4)}, (2, 5, 6), 3,
    ),
    "Conv groups": ([("Conv", ["x", "w"], "y", {"group": 2})], {"w": f32(4, 2, 3, 3)}, (4, 5, 6), 3),
    "Conv border": (
        [("Pad", ["x", "p"], "e", {"mode": "wrap"}), ("Conv", ["e", "w"], "y", {})],
        {"w": f32(4, 2, 3, 3), "p": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}, (2, 5, 6), 3,
    ),
    "ConvTranspose": ([("ConvTranspose", ["x", "w", "b"], "y", {"strides": [2, 2]})], {"w": f32(2, 3, 2, 2), "b": f32(3)}, (2, 4, 4), 3),
    "Pad": ([("Pad", ["x", "p"], "y", {"mode": "edge"})], {"p": np.int64([0, 2, 0, 1])}, (4,), 1),
    "Sub": ([("Sub", ["x", "c"], "y", {})], {"c": f32(6)}, (6,), 1),
    "Mul": ([("Mul", ["x", "c"], "y", {})], {"c": f32(6)}, (6,), 1),
    "LeakyRelu": ([("LeakyRelu", ["x"], "y", {"alpha": 0.3})], {}, (6,), 1),
    "LeakyRelu steep": ([("LeakyRelu", ["x"], "y", {"alpha": 3.3})], {}, (6,), 1),
    "Relu": ([("Relu", ["x"], "y", {})], {}, (6,), 1),
    "Identity": ([("Identity", ["x"], "y", {})], {}, (6,), 1),
    "ReduceMax": ([("ReduceMax", ["x", "axes"], "y", {"keepdims": 0})], {"axes": np.int64([1])}, (3, 2), 1),
    "ReduceMin": ([("ReduceMin", ["x", "axes"], "y", {"keepdims": 0})], {"axes": np.int64([2])}, (3, 2), 1),
    "TopK": ([("TopK", ["x", "k"], ["y", "i"], {"axis": 1})], {"k": np.int64([4])}, (6,), 1),
    "Concat": (PAIR, {"axes": np.int64([2])}, (3, 2), 2),
    "Concat twice": ([("Relu", ["x"], "r", {}), ("Concat", ["x", "r"], "y", {"axis": 1})], {}, (4,), 1),
    "Gather": ([("Gather", ["x", "i"], "y", {"axis": 1})], {"i": np.int64([0, 2, 2, -1])}, (4,), 1),
    "Reshape": ([("Reshape", ["x", "s"], "y", {})], {"s": np.int64([0, 3, 2])}, (6,), 2),
    "Flatten": ([("Flatten", ["x"], "y", {})], {}, (3, 2), 1),
    "Transpose": ([("Transpose", ["x"], "y", {"perm": [0, 2, 1]})], {}, (3, 2), 2),
    "Slice": ([("Slice", ["x", "a", "e", "d"], "y", {})], {"a": np.int64([1]), "e": np.int64([3]), "d": np.int64([1])}, (4,), 1),
    "Split": ([("Split", ["x"], ["y", "z"], {"axis": 1, "num_outputs": 2})], {}, (4,), 1),
    "Squeeze": ([("Squeeze", ["x", "d"], "y", {})], {"d": np.int64([1])}, (1, 4), 1),
    "Unsqueeze": ([("Unsqueeze", ["x", "d"], "y", {})], {"d": np.int64([1])}, (4,), 2),
    "Compress": ([("Compress", ["x", "m"], "y", {"axis": 1})], {"m": np.array([True, False, True])}, (3,), 1),
    "DepthToSpace": ([("DepthToSpace", ["x"], "y", {"blocksize": 2})], {}, (4, 2, 2), 3),
    "SpaceToDepth": ([("SpaceToDepth", ["x"], "y", {"blocksize": 2})], {}, (1, 2, 4), 3),
}  # fmt: skip
"""One operator each, of every row of the table."""
EXACT = {"Relu", "Identity", "ReduceMax", "ReduceMin", "TopK", "Concat", "Pad", "Gather", "Reshape", "Flatten", "Transpose", "Slice",
         "Split", "Squeeze", "Unsqueeze", "Compress", "DepthToSpace", "SpaceToDepth"}  # fmt: skip


def doubled(model):
    """The same graph in float64, every constant of it widened."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for weight in copy.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype == np.float32:
            weight.CopyFrom(numpy_helper.from_array(array.astype(np.float64), weight.name))
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


def exact(model, x):
    """The graph in float64, by ONNX's own reference implementation; for single operators that is exact to 2^-50."""
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(doubled(model)).run(None, {"x": x.astype(np.float64)})[0])


def test_every_operator_of_the_table_has_a_case():
    assert {name.split()[0] for name in CASES} == set(ROUNDED)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e12])
def test_what_a_runtime_computes_is_within_the_bound_of_the_exact_value(name, scale):
    nodes, weights, shape, _ = CASES[name]
    model = graph(nodes, weights, shape)
    x = np.concatenate([f32(100, *shape, scale=scale), np.full((1, *shape), scale, dtype=np.float32), np.zeros((1, *shape), np.float32)])
    off = (run(model, x).astype(np.float64) - exact(model, x)).reshape(len(x), -1)
    error = bound(model)
    allowed = error.slope * np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1) + error.offset
    assert (np.linalg.norm(off, axis=1) <= allowed * (1 + 1e-6)).all()
    assert (error == Affine(0.0, 0.0)) == (name.split()[0] in EXACT)


def norm(values):
    return math.sqrt(float(sum(Fraction(float(v)) ** 2 for v in np.ravel(values))))


def test_a_sum_of_products_may_be_off_by_a_rounding_for_every_term():
    """The formula by definition: ``gamma(k + 2) (norm(|W|) norm(x) + norm(b))``; its sharpness no summation order of a runtime attains."""
    w, b = np.float32([[1, -2, 2]]), np.float32([3])
    error = bound(graph([("Gemm", ["x", "w", "b"], "y", {"transB": 1})], {"w": w, "b": b}, (3,)))
    assert error.slope == pytest.approx(3 * 5 * UNIT, rel=1e-6)
    assert error.offset == pytest.approx(3 * 5 * UNIT, rel=1e-6)
    assert error.slope >= 3 * 5 * UNIT
    assert gamma(5) == pytest.approx(5 * UNIT / (1 - 5 * UNIT), rel=1e-11)


def test_it_is_the_absolute_weights_that_count():
    """Norm 2 where the signs cancel, 4 where they do not."""
    signs = np.float32([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    error = bound(graph([("Gemm", ["x", "w"], "y", {"transB": 1})], {"w": signs}, (4,)))
    assert error.slope == pytest.approx(4 * 6 * UNIT, rel=1e-6)
    kernel = signs.reshape(4, 4, 1, 1)
    assert bound(graph([("Conv", ["x", "w"], "y", {})], {"w": kernel}, (4, 2, 2))).slope == pytest.approx(4 * 6 * UNIT, rel=1e-3)


def test_what_a_border_copies_counts_in_what_the_sums_after_it_round():
    """From an image of 2 x 2 that is wrapped around, 3 x 3 ones sum nine numbers into each pixel: norm 9, that of the sums is less."""
    before = ("Pad", ["x", "p"], "e", {"mode": "wrap"})
    weights = {"w": np.ones((1, 1, 3, 3), np.float32), "p": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}
    error = bound(graph([before, ("Conv", ["e", "w"], "y", {})], weights, (1, 2, 2)))
    assert error.slope == pytest.approx(gamma(9 + 2) * 9, rel=1e-6)


def test_as_many_terms_count_as_meet_in_one_number_and_a_bias_counts_in_every_pixel():
    for op, shape, terms, pixels in (("Conv", (3, 2, 2, 2), 8, 9), ("ConvTranspose", (2, 3, 2, 2), 8, 25)):
        kernel = np.zeros(shape, np.float32)
        kernel[0, 0, 0, 0] = 1
        zero = bound(graph([(op, ["x", "w"], "y", {})], {"w": kernel}, (2, 4, 4)))
        assert zero.slope == pytest.approx((terms + 2) * UNIT, rel=1e-3)
        shifted = bound(graph([(op, ["x", "w", "b"], "y", {})], {"w": kernel, "b": np.float32([3, 4, 0])}, (2, 4, 4)))
        assert shifted.offset == pytest.approx((terms + 2) * UNIT * 5 * math.sqrt(pixels), rel=1e-6)


def worst_sum(w, x, b):
    """The largest error of ``w'x + b`` over orders of summation, in float32 with every product rounded, exactly."""
    true = sum((Fraction(float(p)) * Fraction(float(q)) for p, q in zip(w, x, strict=True)), Fraction(float(b)))
    worst = Fraction(0)
    for order in [np.arange(len(w)), np.arange(len(w))[::-1], *(RNG.permutation(len(w)) for _ in range(20))]:
        total = np.float32(b)
        for i in order:
            total = np.float32(total + np.float32(w[i] * x[i]))
        worst = max(worst, abs(Fraction(float(total)) - true))
    return worst


def test_no_order_of_summation_exceeds_the_bound_and_an_adverse_one_comes_near():
    """One large term first, then terms of half a unit in its last place: every addition is off by its unit roundoff."""
    terms = 64
    w = np.ones(terms, dtype=np.float32)
    x = np.concatenate([[np.float32(1)], np.full(terms - 1, np.float32(2.0**-24))]).astype(np.float32)
    model = graph([("Gemm", ["x", "w"], "y", {"transB": 1})], {"w": w[None]}, (terms,))
    error = bound(model)
    allowed = error.slope * norm(x) + error.offset
    worst = float(worst_sum(w, x, 0.0))
    assert worst <= allowed
    assert worst >= (terms - 1) * UNIT * 0.99
    # sqrt(64) of the norm of |W| is spread over entries that the sum meets one by one: what is left is the count of roundings.
    assert worst >= gamma(terms - 1) * float(np.abs(w) @ x) * 0.98


@pytest.mark.parametrize("seed", range(6))
def test_random_and_searched_sums_in_every_order_stay_within_the_bound(seed):
    rng = np.random.default_rng(seed)
    worst = 0.0
    for _ in range(30):
        k = int(rng.integers(1, 24))
        w, x = (rng.choice([1, -1], k) * rng.choice([1 + 2.0**-12, 1 - 2.0**-13, 2.0**-24, rng.random()], k) for _ in range(2))
        w, x, b = w.astype(np.float32), x.astype(np.float32), np.float32(rng.choice([0, 1, -3]))
        error = bound(graph([("Gemm", ["x", "w", "b"], "y", {"transB": 1})], {"w": w[None], "b": b[None]}, (k,)))
        allowed = error.slope * norm(x) + error.offset
        found = float(worst_sum(w, x, b))
        assert found <= allowed
        worst = max(worst, found / allowed)
    assert worst > 0.05, "the cases are hard enough to tell"


SHARP = {
    # 1 + u times 1 + u is 1 + 2 u + u^2: half a unit in the last place short of a float32, so off by a whole unit roundoff.
    "Mul": ([("Mul", ["x", "c"], "y", {})], {"c": np.float32([1 + 2.0**-12])}, np.float32([[1 + 2.0**-12]]), UNIT, 2),
    "Sub": ([("Sub", ["x", "c"], "y", {})], {"c": np.float32([-(2.0**-24)])}, np.float32([[1]]), UNIT, 2),
    "LeakyRelu": ([("LeakyRelu", ["x"], "y", {"alpha": 1 + 2.0**-12})], {}, np.float32([[-1 - 2.0**-12]]), UNIT, 2),
    "Gemm": ([("Gemm", ["x", "w"], "y", {"transB": 1})], {"w": np.float32([[1 + 2.0**-12]])}, np.float32([[1 + 2.0**-12]]), UNIT, 3),
    "Conv": ([("Conv", ["x", "w"], "y", {})], {"w": np.float32([[[[1 + 2.0**-12]]]])}, np.float32([[[[1 + 2.0**-12]]]]), UNIT, 3),
    "ConvTranspose": (
        [("ConvTranspose", ["x", "w"], "y", {})], {"w": np.float32([[[[1 + 2.0**-12]]]])}, np.float32([[[[1 + 2.0**-12]]]]), UNIT, 3
    ),
}  # fmt: skip
"""One rounding of the largest relative size, by operator: where the bound counts more roundings than one, so many times it is off."""


@pytest.mark.parametrize("name", SHARP)
def test_one_rounding_is_attained_so_a_bound_of_less_than_its_share_would_be_false(name):
    nodes, weights, x, least, roundings = SHARP[name]
    model = graph(nodes, weights, x.shape[1:])
    off = float(np.abs(run(model, x).astype(np.float64) - exact(model, x)).max())
    error, size = bound(model), norm(x)
    assert off >= least * 0.999 * size * 0.999
    allowed = error.slope * size + error.offset
    assert off <= allowed
    assert allowed <= off * (roundings + 0.01), "and the bound is no more than the roundings that it counts"


def test_errors_grow_by_the_norm_of_what_comes_after_and_add_up():
    """By definition, on a chain: e2 = sigma2 e1 + gamma_k norm(|W2|) size1, size1 = (sigma1 + gamma norm(|W1|)) norm(x) + norm(b1)."""
    one, two, b = np.float32([[3, 0], [0, -2]]), np.float32([[0, 5], [1, 0]]), np.float32([0, 7])
    model = graph(
        [("Gemm", ["x", "v", "b"], "h", {"transB": 1}), ("Relu", ["h"], "r", {}), ("Gemm", ["r", "w"], "y", {"transB": 1})],
        {"v": one, "w": two, "b": b}, (2,),
    )  # fmt: skip
    first = gamma(4)
    e1, s1 = Affine(3 * first, 7 * first), Affine(3 + 3 * first, 7 + 7 * first)
    error = bound(model)
    assert error.slope == pytest.approx(5 * e1.slope + gamma(4) * 5 * s1.slope, rel=1e-9)
    assert error.offset == pytest.approx(5 * e1.offset + gamma(4) * 5 * s1.offset, rel=1e-9)
    assert error.slope >= (5 * e1.slope + gamma(4) * 5 * s1.slope)


def test_repeated_entries_repeat_their_errors():
    before = ("Mul", ["x", "c"], "h", {})
    plain = bound(graph([before, ("Identity", ["h"], "y", {})], {"c": np.float32(3)}, (4,)))
    for after, constants, factor in (
        (("Gather", ["h", "i"], "y", {"axis": 1}), {"i": np.int64([1, 1, 1, 1, -3])}, math.sqrt(5)),
        (("Pad", ["h", "p"], "y", {"mode": "edge"}), {"p": np.int64([0, 3, 0, 1])}, 2.0),
        (("Concat", ["h", "h"], "y", {"axis": 1}), {}, math.sqrt(2)),
        (("Pad", ["h", "p"], "y", {}), {"p": np.int64([0, 3, 0, 1])}, 1.0),
    ):
        error = bound(graph([before, after], {"c": np.float32(3)} | constants, (4,)))
        assert error.slope == pytest.approx(plain.slope * factor, rel=1e-9)
        assert error.slope >= plain.slope * factor * (1 - 1e-15)


def test_a_sort_in_pairs_costs_nothing_and_what_only_looks_like_one_does():
    model = graph([("Mul", ["x", "c"], "h", {}), *[(op, ["h" if i == "x" else i for i in inputs], *rest) for op, inputs, *rest in PAIR]],
                  {"c": np.float32(3), "axes": np.int64([2])}, (3, 2))  # fmt: skip
    scaled = bound(graph([("Mul", ["x", "c"], "y", {})], {"c": np.float32(3)}, (3, 2)))
    assert bound(model) == scaled
    model.graph.node[2].op_type = "ReduceMax"  # twice the larger
    assert bound(model).slope == pytest.approx(math.sqrt(2) * scaled.slope)
    model.graph.node[2].op_type = "ReduceMin"
    model.graph.node[2].input[0] = "x"  # the smaller of other numbers
    assert bound(model).slope == pytest.approx(math.sqrt(2) * scaled.slope)


REFUSED = {
    "Tanh at 't': nothing is known of how accurately it is computed": [("Tanh", ["x"], "y", {"name": "t"})],
    "Softplus": [("Softplus", ["x"], "h", {"name": "s"}), ("Relu", ["h"], "y", {})],
    "alpha and beta are rounded": [("Gemm", ["x", "w"], "y", {"alpha": 0.5})],
    "widens the rows": [("Reshape", ["x", "image"], "h", {}), ("Sub", ["h", "wide"], "y", {})],
    "is not a constant": [("Sub", ["one", "x"], "y", {})],
    "pads with other numbers than 0": [("Pad", ["x", "p", "one"], "y", {})],
    "its rows are not proved to be apart": [("ReduceMax", ["x", "batch"], "y", {"keepdims": 1})],
    "may overflow float32": [("Mul", ["x", "huge"], "h", {}), ("Mul", ["h", "tiny"], "y", {})],
    "its sums may overflow float32": [("Gemm", ["x", "huge weights"], "y", {})],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_has_no_rule_has_no_bound_and_is_named(words):
    constants = {
        "w": np.eye(4, dtype=np.float32), "wide": np.ones((3, 4), np.float32), "p": np.int64([0, 1, 0, 1]), "one": np.float32(1),
        "batch": np.int64([0]), "image": np.int64([0, 1, 4]), "huge": np.float32(2.0**80), "tiny": np.float32(2.0**-80),
        "huge weights": np.full((4, 1), 2.0**61, np.float32) * np.float32([[1], [-1], [1], [-1]]),
    }  # fmt: skip
    model = graph(REFUSED[words], {k: v for k, v in constants.items() if any(k in node[1] for node in REFUSED[words])}, (4,))
    with pytest.raises(NoBoundError, match=words):
        bound(model)


def test_of_several_inputs_nothing_is_proved():
    roundings = Roundings(["x", "z"])
    certified(graph([("Relu", ["x"], "y", {})], {}, (4,)), chain=False, watch=roundings.follow)
    with pytest.raises(NoBoundError, match="Relu at 'y': it does not depend on one float32 input alone"):
        roundings.error("y")


def test_nothing_overflows_within_reach_and_a_factor_of_four_beyond_something_would():
    error = bound(graph([("Gemm", ["x", "w"], "y", {})], {"w": np.full((4, 1), 2.0**60, np.float32)}, (4,)))
    assert math.isfinite(error.slope)
    x = np.full((1, 4), REACH / 2, np.float32)
    assert norm(x) == REACH
    model = graph([("Gemm", ["x", "w"], "y", {})], {"w": np.full((4, 1), 2.0**60, np.float32)}, (4,))
    assert np.isfinite(run(model, x)).all()
    assert not np.isfinite(run(model, x * 4)).all()


def test_sums_too_long_for_any_bound_have_none():
    with pytest.raises(NoBoundError, match="no useful float32 error bound"):
        gamma(2**23)
    assert gamma(2**22) < 0.34


def test_numbers_below_the_normal_range_are_counted():
    model = graph([("Mul", ["x", "c"], "y", {})], {"c": np.float32(2.0**-30)}, (3,))
    x = np.full((1, 3), np.float32(2.0**-120 * (1 + 2.0**-22)))
    off = norm(run(model, x).astype(np.float64) - exact(model, x))
    error = bound(model)
    assert off > error.slope * norm(x)
    assert off <= error.slope * norm(x) + error.offset
    assert error.offset == pytest.approx(3 * TINY)
