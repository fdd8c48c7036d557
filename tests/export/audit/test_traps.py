"""What a file may hold to get a number that it does not deserve."""

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from export.audit import audit, steps

ROOT = Path(__file__).parents[3]


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model(body, *, x="float[N,4] x", y="float[N,M] y", opset=18, **weights):
    found = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) {{ {body} }}')
    found.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return found


def stated(found, output="y"):
    return audit(found).lipschitz[output]


W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
LOOP = """y = Loop (times, yes, x) <body = b (int64 i, bool c, float[N,4] s) => (bool d, float[N,4] t)
    { d = Identity(c)
 h = MatMul(s, w)
 t = Add(h, x) }>"""


def test_a_loop_that_reads_a_tensor_from_outside_has_no_bound_but_its_layers():
    found = model(LOOP, times=np.array(3), yes=np.array(True), w=W)
    assert stated(found).reason == "Loop at 'y': it holds a graph of its own"
    assert [layer.shape for layer in audit(found).layers] == [(4, 4)]
    assert not audit(found).rows_independent


def test_a_branch_may_hide_an_unbounded_operator_in_another_branch():
    inner = "then_branch = t () => (float[N,4] a) { a = Exp(z) }, else_branch = e () => (float[N,4] a) { a = Relu(z) }"
    outer = (
        "z = Relu(x)\n y = If (yes) <then_branch = u () => (float[N,4] c) {c = If (no) <"
        + inner
        + ">}, else_branch = v () => (float[N,4] c) {c = Exp(z)}>"
    )
    assert stated(model(outer, yes=np.array(True), no=np.array(False))).bound == 1.0
    assert "Exp at" in stated(model(outer, yes=np.array(True), no=np.array(True))).reason
    assert "Exp at" in stated(model(outer, yes=np.array(False), no=np.array(False))).reason


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("s = SequenceConstruct(x, x)\n p = ConcatFromSequence<axis = 1>(s)\n y = Relu(p)", "SequenceConstruct at 's'"),
        ("q = QuantizeLinear(x, scale, zero)\n y = DequantizeLinear(q, scale, zero)", "QuantizeLinear at 'q': it rounds"),
        ("q, s, z = DynamicQuantizeLinear(x)\n y = DequantizeLinear(q, s, z)", "DynamicQuantizeLinear at 'q': it rounds"),
        ("i = Cast<to = 7>(x)\n y = Gather(w, i)", "Cast at 'i': it rounds"),
        ("p = Greater(x, scale)\n y = Where(p, x, w)", "Greater at 'p'"),
        ("y = LpNormalization(x)", "LpNormalization at 'y'"),
        ("y, m = LayerNormalization(x, one)", "it also gives its statistics"),
        ("a = NonZero(x)\n b = Transpose(a)\n y = GatherND(x, b)", "NonZero at 'a'"),
        ("y = Einsum<equation = \"bi,bj->bij\">(x, x)", "Einsum at 'y'"),
        ("h, c = LSTM<hidden_size = 1>(t, lw, lr)\n t = Unsqueeze(x, axis)\n y = Squeeze(h)", "'t' is used before it is defined"),
        ("y = ScatterElements<axis = 1, reduction = \"add\">(x, places, x)", "it adds up entries"),
    ],
)  # fmt: skip
def test_what_jumps_or_is_not_known_is_named(body, cause):
    weights = {
        "scale": np.float32(0.1), "zero": np.uint8(3), "w": W, "one": np.ones(4, np.float32), "axis": np.array([0]),
        "lw": np.ones((1, 4, 4), np.float32), "lr": np.ones((1, 4, 1), np.float32), "places": np.array([[0, 0, 0, 0]]),
    }  # fmt: skip
    found = stated(model(body, **weights))
    assert found.bound is None
    assert cause in found.reason


def test_quantised_weights_count_as_what_they_stand_for():
    codes, scales = np.int8([[3, -7], [100, 2]]), np.float32([0.5, 0.01])
    body = "v = DequantizeLinear<axis = 1>(w, s, z)\n y = MatMul(x, v)"
    found = model(body, x="float[N,2] x", w=codes, s=scales, z=np.int8([0, 1]))
    expected = np.linalg.norm((codes.astype(float) - [0, 1]) * scales.astype(float), 2)
    assert stated(found).bound == pytest.approx(expected, rel=1e-6)
    body = "q = QuantizeLinear(w, s, z)\n v = DequantizeLinear(q, s, z)\n y = MatMul(x, v)"
    twice = model(body, w=W, s=np.float32(0.5), z=np.int8(0))
    assert stated(twice).bound == pytest.approx(np.linalg.norm(np.clip(np.round(W / 0.5), -128, 127) * 0.5, 2), rel=1e-6)


def test_recurrent_weights_are_measured_though_nothing_is_bounded():
    weights = {"lw": np.eye(4, dtype=np.float32)[None] * 3, "lr": np.ones((1, 4, 1), np.float32)}
    report = audit(
        model("a = Unsqueeze(x, axis)\n h, c = LSTM<hidden_size = 1>(a, lw, lr)\n y = Squeeze(h)", axis=np.array([0]), **weights)
    )
    assert [(layer.kind, round(layer.sigma_upper, 6)) for layer in report.layers] == [("input weight", 3.0), ("recurrent weight", 2.0)]
    assert "LSTM at 'h': it is not followed over time" in report.lipschitz["y"].reason


def test_a_string_input_is_held_fixed_and_a_sequence_input_is_no_tensor():
    text = model("y = Relu(x)", x="float[N,4] x, string[N] s")
    assert stated(text).bound == 1.0
    found = model("y = Relu(x)")
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    found.graph.input.append(sequence)
    found.graph.node.append(helper.make_node("SequenceAt", ["s", "i"], ["z"]))
    found.graph.initializer.append(numpy_helper.from_array(np.array(0), "i"))
    found.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert "input 's' is no tensor" in stated(found, "z").reason


BOMBS = {
    "expanded": "c = Expand(w, huge)", "tiled": "c = Tile(w, huge)", "made": "c = ConstantOfShape(huge)",
    "multiplied": "a = ConstantOfShape(long)\n b = Transpose(a)\n c = MatMul(a, b)",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_cannot_ask_for_a_large_constant(bomb):
    found = model(BOMBS[bomb] + "\n r = ReduceSum(c)\n y = Add(x, r)", w=W, huge=np.array([2**20, 2**20]), long=np.array([2**20, 1]))
    assert stated(found).bound in {None, 1.0}  # what is added does not move, whatever it is


def test_many_constants_together_cannot_either(monkeypatch):
    monkeypatch.setattr(steps, "MOST_FOLDED", 100)
    found = model("a = Neg(w)\n b = Neg(a)\n c = Neg(b)\n d = Neg(c)\n e = Neg(d)\n f = Neg(e)\n g = Neg(f)\n y = MatMul(x, g)", w=W)
    assert "Neg at 'g': the constants of the graph would hold more than 100 numbers" in stated(found).reason


def test_a_normalisation_is_folded_into_the_layer_before_it():
    gain = np.float32([1, 0.01, 3, 1])
    rest = {"b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32), "v": np.ones(4, np.float32)}
    found = model("h = Gemm<transB = 1>(x, w)\n y = BatchNormalization<epsilon = 0.0>(h, g, b, m, v)", w=W, g=gain, **rest)
    exact = np.linalg.norm(gain[:, None].astype(float) * W, 2)
    assert exact <= stated(found).bound <= exact * (1 + 1e-8)
    report = audit(found)
    assert [(layer.op, layer.kind) for layer in report.layers] == [("Gemm", "linear"), ("BatchNormalization", "normalisation")]
    assert report.layers[1].sigma_upper == pytest.approx(3.0)


def test_pieces_that_share_nothing_add_up_in_squares_and_pieces_that_do_in_full():
    halves = "l, r = Split<axis = 1, num_outputs = 2>(x)\n"
    assert stated(model(halves + "y = Add(l, r)")).bound == pytest.approx(2**0.5)
    assert stated(model(halves + "y = Sub(l, l)")).bound >= 0
    overlapping = "l = Slice(x, zero, three, one)\n r = Slice(x, one, four, one)\n y = Add(l, r)"
    sizes = {name: np.array([value]) for name, value in {"zero": 0, "one": 1, "three": 3, "four": 4}.items()}
    assert stated(model(overlapping, **sizes)).bound >= 1.8  # exactly 2 cos(pi / 8)


@pytest.mark.parametrize(("size", "alpha", "beta"), [(3, 2.0, 0.75), (5, 1.0, 2.0), (3, 10.0, 0.5)])
def test_no_pair_moves_a_local_response_further_than_its_bound(size, alpha, beta):
    found = model(f"y = LRN<size = {size}, alpha = {alpha}, beta = {beta}, bias = 0.7>(x)", x="float[N,6,1,1] x", y="float[N,6,1,1] y")
    session = ort.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    rng, bound = np.random.default_rng(0), stated(found).bound
    for scale in (0.1, 0.5, 2.0):
        a = (scale * rng.standard_normal((400, 6, 1, 1))).astype(np.float32)
        b = (a + 0.05 * scale * rng.standard_normal(a.shape)).astype(np.float32)
        ya, yb = (session.run(None, {"x": x})[0].astype(np.float64) for x in (a, b))
        moved = np.linalg.norm((ya - yb).reshape(400, -1), axis=1) / np.linalg.norm((a.astype(np.float64) - b).reshape(400, -1), axis=1)
        assert moved.max() <= bound * (1 + 1e-4)


def test_random_convolutions_pools_and_pads_stay_within_their_bound():
    found = list(loaded(ROOT / "bench" / "audit_soundness.py").ratios(40, seed=7))
    assert {op for op, _ in found} >= {"Conv", "ConvTranspose", "AveragePool", "Pad edge", "Pad reflect"}
    assert min(ratio for _, ratio in found) >= 1 - 1e-6


def test_the_page_tells_the_rules_that_the_code_has():
    page = loaded(ROOT / "docs" / "audit.py")
    assert page.written(page.PAGE.read_text()) == page.PAGE.read_text()
