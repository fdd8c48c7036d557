"""Gains, biases, limits and constants that are none: what moves counts wherever a node takes it, and what runtimes differ on is told."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from export.audit import AuditError, audit
from export.audit.report import Report
from export.audit.rounding import Affine, Roundings
from export.audit.search import searched
from export.audit.values import NoBoundError
from export.audit.walk import certified
from export.claims import radius_fault
from export.radius import RADIUS, Certificate, attached, pairs_of
from tests.export.audit.test_rules import CASES, Case, K, W, node


def model(body, *, x="float[1,4] x", opset=18, more="", **weights):
    found = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g ({x}) => (float[A,B] y) {{ {body} }} {more}')
    found.graph.output[0].type.tensor_type.ClearField("shape")
    found.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return found


BIASED = [
    Case("LayerNormalization", [node("LayerNormalization", "x g c", "y", epsilon=1.0)], np.zeros(4), np.ones(4),
         {"g": np.ones(4, np.float32), "c": np.ones(4, np.float32)}),
    Case("Gemm", [node("Gemm", "x w c", "y", beta=-5.0)], np.zeros(3), np.ones(3), {"w": W, "c": np.ones(4, np.float32)}),
    Case("Conv", [node("Conv", "x k c", "y")], np.zeros((3, 3, 3)), np.ones((3, 3, 3)), {"k": K, "c": np.ones(2, np.float32)}),
    Case("ConvTranspose", [node("ConvTranspose", "x k c", "y")], np.zeros((2, 3, 3)), np.ones((2, 3, 3)),
         {"k": K, "c": np.ones(3, np.float32)}),
]  # fmt: skip
PLAIN = [case for case in [*CASES, *BIASED] if "." not in case.op and case.op not in {"Resize", "Upsample"}]
MOVED = [(case, name) for case in PLAIN for name, weight in (case.weights or {}).items() if np.asarray(weight).dtype.kind == "f"]


def moving(case, name):
    """The graph of a case in which a weight is no constant: the sum of the input is added to it."""
    found = replace(case, rows=False).model()
    for one in found.graph.node:
        one.input[:] = [f"{name}.moving" if given == name else given for given in one.input]
    before = [node("ReduceSum", "x", "sum", keepdims=0), node("Add", f"{name} sum", f"{name}.moving")]
    nodes = before + [onnx.NodeProto.FromString(one.SerializeToString()) for one in found.graph.node]
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    found.ir_version = 10 if case.opset > 20 else 9
    return found


def session(found, level="ORT_ENABLE_ALL"):
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return ort.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])


def largest_quotient(run, shape, box=None):
    """Over pairs of inputs that differ in all entries alike, in one, or at random."""
    rng, found = np.random.default_rng(0), 0.0
    for i in range(24):
        step = [np.ones(shape), np.eye(int(np.prod(shape)))[i % np.prod(shape)].reshape(shape), rng.standard_normal(shape)][i % 3]
        a, b = (np.float32(side) for side in (rng.uniform(-1, 1, shape), 0.3 * step))
        b = np.clip(a + b, -1, 1) if box else a + b
        apart = np.linalg.norm(a.astype(float) - b)
        ya, yb = (run.run(None, {"x": side[None]})[0].astype(float) for side in (a, b))
        quotient = np.linalg.norm(ya - yb) / apart if apart > 1e-3 else 0.0
        found = max(found, quotient if np.isfinite(quotient) else 0.0)
    return found


@pytest.mark.parametrize(("case", "name"), MOVED, ids=lambda value: getattr(value, "op", value))
def test_a_gain_a_bias_or_a_limit_that_depends_on_the_input_is_not_taken_for_a_constant(case, name):
    found = moving(case, name)
    for box in (None, {"x": ((-1.0, 1.0),)}):
        report = audit(found, box=box)
        bound = (report.on_box or report.lipschitz)["y"].bound
        if bound is not None:
            assert largest_quotient(session(found), np.shape(case.at), box) <= bound * (1 + 1e-4)


def test_a_bias_of_a_normalisation_and_the_number_of_a_pad_are_named():
    body = "s = ReduceSum<keepdims = 0>(x)\n m = Add(c, s)\n "
    ones = {"g": np.ones(4, np.float32), "c": np.ones(4, np.float32)}
    for last, op in (("BatchNormalization(x, g, m, c, g)", "BatchNormalization"), ("LayerNormalization(x, g, m)", "LayerNormalization")):
        reason = audit(model(body + f"y = {last}", **ones)).lipschitz["y"].reason
        assert reason == f"{op} at 'y': its input 'm' depends on the input"
    padded = model("s = ReduceMax<keepdims = 0>(x)\n y = Pad(x, p, s)", p=np.array([0, 4, 0, 4]))
    assert audit(padded).lipschitz["y"].reason == "Pad at 'y': its input 's' depends on the input"


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp"])
def test_an_axis_that_is_named_twice_counts_once(op):
    once, twice = (audit(model(f"y = {op}(x, a)", a=np.array(axes))).lipschitz["y"].bound for axes in ([1], [1, -1]))
    assert twice == once


LOOSE = {
    "a sum": "w = ReduceSum<keepdims = 0>(c, axis)",
    "a product": "w = MatMul(v, v)",
    "a function": "w = Exp(v)",
    "a power": "w = Pow(v, v)",
    "a later step": "u = Tanh(v)\n t = Neg(u)\n w = Transpose<perm = [1, 0]>(t)",
    "a whole number of it": "u = Exp(v)\n t = Cast<to = 6>(u)\n w = Cast<to = 1>(t)",
}


def weights():
    v = np.abs(np.random.default_rng(0).standard_normal((4, 4))).astype(np.float32)
    return {"v": v, "c": np.repeat(v[..., None], 3, axis=2), "axis": np.array([2]), "scale": np.float32(0.1), "zero": np.int8(3)}


@pytest.mark.parametrize("body", LOOSE.values(), ids=LOOSE)
def test_a_constant_on_whose_digits_runtimes_differ_has_a_bound_that_is_not_called_rigorous_and_no_radius(body):
    found = model(body + "\n y = Gemm(x, w)", **weights())
    roundings = Roundings(["x"])
    stated = certified(found, watch=roundings.follow)[0].lipschitz["y"]
    assert stated.bound is not None
    assert not stated.rigorous
    assert "it makes a constant whose last digits differ between runtimes" in stated.reason
    with pytest.raises(NoBoundError, match="runtimes differ on the constant that it makes"):
        roundings.error("y")


def test_a_constant_that_is_cut_to_whole_numbers_has_no_radius_because_runtimes_differ_beyond_their_range():
    roundings = Roundings(["x"])
    certified(model("u = Cast<to = 3>(v)\n w = Cast<to = 1>(u)\n y = Gemm(x, w)", x="float[N,4] x", **weights()), watch=roundings.follow)
    with pytest.raises(NoBoundError, match="Cast at 'u': runtimes differ"):
        roundings.error("y")


def test_a_constant_that_is_only_moved_or_taken_as_it_is_stays_rigorous_and_has_a_rounding():
    body = "t = Transpose<perm = [1, 0]>(v)\n h = Cast<to = 10>(t)\n u = Cast<to = 1>(h)\n w = Neg(u)\n y = Gemm(x, w)"
    roundings = Roundings(["x"])
    stated = certified(model(body, x="float[N,4] x", **weights()), watch=roundings.follow)[0].lipschitz["y"]
    assert stated.rigorous
    assert stated.reason is None
    assert roundings.error("y").slope > 0


@pytest.mark.parametrize(
    "body", ["w = DequantizeLinear(q, scale, zero)", "p = QuantizeLinear(v, scale, zero)\n w = DequantizeLinear(p, scale, zero)"]
)
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_quantised_weights_have_a_bound_that_tells_of_runtimes_that_round_what_meets_them_and_no_radius(body, op):
    """ONNX Runtime rounds the activations that meet quantised weights to 8 bits unless it is told not to: then answers jump."""
    given = weights() | {"q": np.int8(np.random.default_rng(0).integers(-100, 100, (4, 4)))}
    found = model(f"{body}\n y = {op}(x, w)", x="float[N,4] x", **given)
    roundings = Roundings(["x"])
    report: Report = certified(found, watch=roundings.follow)[0]
    stated = report.lipschitz["y"]
    assert not stated.rigorous
    assert "DequantizeLinear at 'w': runtimes may round what meets quantised weights" in stated.reason
    plain = session(found, "ORT_DISABLE_ALL")
    assert largest_quotient(plain, (4,)) <= stated.bound * (1 + 1e-4)
    assert searched(found.SerializeToString(), report, rounds=1)["y"] <= stated.bound * (1 + 1e-6)
    with pytest.raises(NoBoundError):
        roundings.error("y")


def test_a_radius_that_a_file_gives_over_quantised_weights_is_refused():
    given = {"q": np.int8(np.random.default_rng(0).integers(-9, 9, (4, 3))), "scale": np.float32(0.1), "zero": np.int8(3)}
    body = model("w = DequantizeLinear(q, scale, zero)\n y = Gemm(x, w)", x="float[N,4] x", **given)
    body.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]))
    whole = attached(body, Certificate(pairs_of(10.0, 3), Affine(1e-3, 1e-3)))
    assert [output.name for output in whole.graph.output] == ["y", RADIUS]
    assert "the bytes prove none: DequantizeLinear at 'w'" in str(radius_fault(whole))


def test_a_function_of_itself_is_told_in_a_sentence():
    text = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]> g (float[N,4] x) => (float[N,4] y) { y = own.R(x) }
        <domain: "own", opset_import: ["" : 18, "own" : 1]> R (a) => (b) { h = own.R(a)  b = Relu(h) }"""
    with pytest.raises(AuditError, match="its local functions cannot be put in their place"):
        audit(parser.parse_model(text))
