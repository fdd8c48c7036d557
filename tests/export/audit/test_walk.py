import itertools
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from export.audit import AuditError, audit


def model(body, *, x="float[N,4] x", y="float[N,M] y", weights="", opset=18, functions=""):
    """A graph in ONNX's own text form, every node on its own line."""
    domains = f'"" : {opset}' + (', "local" : 1' if functions else "")
    return parser.parse_model(f"<ir_version: 8, opset_import: [{domains}]> g ({x}) => ({y}) <{weights}> {{ {body} }} {functions}")


def with_weights(found, **weights):
    found.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return found


def bound(found, output="y", **shapes):
    return audit(found, shapes or None).lipschitz[output].bound


def reason(found, output="y"):
    stated = audit(found).lipschitz[output]
    assert stated.bound is None
    assert stated.method is None
    assert not stated.rigorous
    return stated.reason


def rows(found):
    return audit(found).rows_independent


RNG = np.random.default_rng(0)
W0, W1 = RNG.standard_normal((6, 4)).astype(np.float32), RNG.standard_normal((3, 6)).astype(np.float32)
SORTS = {
    "reduce and concat": """p = Reshape(h, pairs)
        a = ReduceMax(p, last)
        b = ReduceMin(p, last)
        c = Concat<axis = 2>(a, b)
        s = Reshape(c, flat)""",
    "reduce without keeping, stacked": """p = Reshape(h, pairs)
        a = ReduceMax<keepdims = 0>(p, last)
        b = ReduceMin<keepdims = 0>(p, last)
        s = Concat<axis = 1>(a, b)""",
    "split, max, min": """l, r = Split<axis = 1, num_outputs = 2>(h)
        a = Max(l, r)
        b = Min(l, r)
        s = Concat<axis = 1>(a, b)""",
    "every second, unsqueezed and interleaved": """l = Slice(h, zero, six, one, two)
        r = Slice(h, one, six, one, two)
        a = Max(l, r)
        b = Min(r, l)
        u = Unsqueeze(a, two)
        v = Unsqueeze(b, two)
        c = Concat<axis = 2>(u, v)
        s = Reshape(c, flat)""",
    "gathered pieces": """l = Gather<axis = 1>(h, left)
        r = Gather<axis = 1>(h, right)
        a = Max(l, r)
        b = Min(l, r)
        s = Concat<axis = 1>(a, b)""",
    "of pieces that went through one activation": """t = Tanh(h)
        l, r = Split<axis = 1, num_outputs = 2>(t)
        a = Max(l, r)
        b = Min(l, r)
        s = Concat<axis = 1>(a, b)""",
    "whole sort": """s, order = TopK(h, six)""",
}  # fmt: skip
SIZES = {
    "pairs": [0, 3, 2],
    "last": [2],
    "flat": [0, 6],
    "zero": [0],
    "one": [1],
    "two": [2],
    "six": [6],
    "left": [0, 2, 4],
    "right": [1, 3, -1],
}


def sorting(form):
    body = f"h = Gemm<transB = 1>(x, w0)\n{SORTS[form]}\n y = Gemm<transB = 1>(s, w1)"
    return with_weights(model(body), w0=W0, w1=W1, **{name: np.array(value) for name, value in SIZES.items()})


@pytest.mark.parametrize("form", SORTS)
def test_every_exported_form_of_a_sort_has_factor_one_and_is_a_product(form):
    found = audit(sorting(form))
    expected = np.linalg.norm(W0.astype(float), 2) * np.linalg.norm(W1.astype(float), 2)
    assert expected * (1 - 1e-12) <= found.lipschitz["y"].bound <= expected * (1 + 1e-8)
    assert found.lipschitz["y"].method == "product"
    assert found.rows_independent
    assert [layer.shape for layer in found.layers] == [(6, 4), (3, 6)]


@pytest.mark.parametrize(
    ("body", "least"),
    [
        ("l, r = Split<axis = 1, num_outputs = 2>(x)\n a = Max(l, r)\n b = Min(l, l)\n y = Concat<axis = 1>(a, b)", 2**0.5),
        (
            "l = Slice(x, zero, three, one)\n r = Slice(x, one, four, one)\n a = Max(l, r)\n b = Min(l, r)\n y = Concat<axis = 1>(a, b)",
            2**0.5,
        ),
        ("l, r = Split<axis = 1, num_outputs = 2>(x)\n t = Tanh(l)\n a = Max(l, r)\n b = Min(t, r)\n y = Concat<axis = 1>(a, b)", 2**0.5),
        ("l, r = Split<axis = 1, num_outputs = 2>(x)\n a = Max(l, r)\n y = Concat<axis = 1>(a, a)", 2**0.5),
        ("l, r = Split<axis = 1, num_outputs = 2>(x)\n t = Tanh(l)\n a = Max(r, l)\n b = Min(r, t)\n y = Concat<axis = 1>(a, b)", 2**0.5),
        ("l = Slice(x, zero, three, one)\n r = Slice(x, one, four, one)\n y = Max(l, r)", 2**0.5),
        ("g = Gather<axis = 1>(x, twice)\n p = Reshape(g, pairs)\n y = ReduceMax(p, two)", 2**0.5),
        ("p = Reshape(x, ones)\n a = ReduceMax(p, two)\n b = ReduceMin(p, two)\n y = Concat<axis = 2>(a, b)", 2**0.5),
        ("y = Gather<axis = 1>(x, alias)", 2**0.5),
        ("t = Tanh(x)\n y = Concat<axis = 1>(x, t)", 2**0.5),
    ],
    ids=[
        "min of one",
        "overlapping pieces",
        "another activation",
        "max twice",
        "another activation, second",
        "max of overlapping pieces",
        "groups that share",
        "groups of one",
        "negative alias",
        "copy",
    ],
)
def test_what_only_looks_like_a_permutation_does_not_count_as_one(body, least):
    sizes = {"zero": [0], "one": [1], "two": [2], "three": [3], "four": [4], "ones": [0, 4, 1], "pairs": [0, 2, 2]} | {
        "alias": [3, -1],
        "twice": [0, 1, 0, 2],
    }
    assert bound(with_weights(model(body), **{name: np.array(value) for name, value in sizes.items()})) >= least * (1 - 1e-12)


def test_a_split_whose_parts_go_separate_ways_and_meet_again_counts_once():
    found = model("l, r = Split<axis = 1, num_outputs = 2>(x)\n a = Relu(l)\n b = Sigmoid(r)\n y = Concat<axis = 1>(b, a)")
    assert bound(found) == 1.0


def test_normalisation_in_the_graph_counts():
    found = with_weights(
        model("c = Sub(x, mean)\n n = Div(c, std)\n y = Gemm<transB = 1>(n, w)"), mean=np.float32(8), std=np.float32(4), w=W0
    )
    assert bound(found) == pytest.approx(np.linalg.norm(W0.astype(float), 2) / 4, rel=1e-8)
    assert bound(found) >= np.linalg.norm(W0.astype(float), 2) / 4


def test_a_residual_adds_and_is_no_product():
    found = with_weights(model("h = MatMul(x, w)\n r = Relu(h)\n y = Add(x, r)"), w=np.eye(4, dtype=np.float32) / 2)
    stated = audit(found).lipschitz["y"]
    assert stated.bound == pytest.approx(1.5)
    assert stated.bound >= 1.5
    assert stated.method == "graph"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("y = Exp(x)", "Exp at 'y'"),
        ("e = Exp(x)\n y = Relu(e)", "Exp at 'e'"),
        ("y = Mul(x, x)", "Mul at 'y'"),
        ("y = Einsum<equation = \"ii->i\">(x)", "Einsum at 'y'"),
        ("y = Round(x)", "Round at 'y'"),
        ("y = Cast<to = 7>(x)", "Cast at 'y'"),
        ("i = ArgMax<axis = 1>(x)\n y = Cast<to = 1>(i)", "ArgMax at 'i'"),
        ("y = ThresholdedRelu(x)", "ThresholdedRelu at 'y'"),
        ("r = RandomNormalLike(x)\n y = Add(x, r)", "RandomNormalLike at 'r'"),
        ("r = RandomNormal<shape = [4]>()\n y = Add(x, r)", "RandomNormal at 'r'"),
        ("y = LayerNormalization<epsilon = 0.0>(x, four)", "LayerNormalization at 'y'"),
        ("v, i = TopK(x, k)\n y = Cast<to = 1>(i)", "TopK at 'v'"),
        ("y = Div(x, none)", "Div at 'y'"),
        ("y = Gemm(x, hole)", "hole"),
        ("y = Add(x, hole4)", "hole4"),
        ("y = Clip(x, nan)", "'nan' holds a number"),
        ("y = Add(x, undefined)", "undefined"),
        ("y = Clip(x, low, m)\n m = ReduceMax(x)", "'m'"),
    ],
)  # fmt: skip
def test_an_operator_without_a_bound_ends_the_certificate_by_name(body, names):
    weights = {
        "four": np.ones(4, np.float32), "k": np.array([1]), "none": np.zeros(4, np.float32), "nan": np.float32(np.nan),
        "low": np.float32(0), "hole": np.full((4, 4), np.nan, np.float32), "hole4": np.full(4, np.inf, np.float32),
    }  # fmt: skip
    assert names in reason(with_weights(model(body), **weights))


def test_only_the_root_cause_is_named_and_the_norms_behind_it_are_still_measured():
    found = with_weights(model("e = Exp(x)\n h = Gemm<transB = 1>(e, w)\n p = Pow(h, h)\n y = Relu(p)"), w=W0)
    assert reason(found) == "Exp at 'e': its slope is not bounded"
    assert len(audit(found).layers) == 1


def test_one_output_without_a_bound_leaves_the_others_theirs():
    found = model("z = Relu(x)\n y = Exp(x)", y="float[N,M] y, float[N,M] z")
    assert bound(found, "z") == 1.0
    assert "Exp" in reason(found)


def test_a_custom_domain_and_a_graph_inside_a_node_have_no_bound():
    foreign = helper.make_node("Relu", ["x"], ["y"], domain="elsewhere", name="mine")
    found = model("y = Relu(x)")
    del found.graph.node[:]
    found.graph.node.append(foreign)
    assert "Relu at 'mine': domain 'elsewhere'" in reason(found)
    captured = with_weights(model(BRANCHES, x="float[N,4] x, bool yes"), w=W0)  # its only *input* holds no float, yet it reads x
    assert reason(captured) == "If at 'y': it holds a graph of its own"
    assert not rows(captured)
    assert [layer.shape for layer in audit(captured).layers] == [(6, 4)]


BRANCHES = """z = Relu(x)
    y = If (yes) <
        then_branch = t () => (float[N,4] a) { b = Gemm<transB = 1>(x, w)
 a = Mul(b, b) },
        else_branch = e () => (float[N,4] a) { b = Add(z, z)
 a = Identity(b) }
    >"""


def test_an_if_with_a_constant_condition_is_followed_into_that_branch_alone():
    chosen = {yes: with_weights(model(BRANCHES), yes=np.array(yes), w=W0) for yes in (True, False)}
    assert bound(chosen[False]) == pytest.approx(2.0)
    assert rows(chosen[False])
    assert "Mul at 'y/a'" in reason(chosen[True])
    twice = BRANCHES.replace("y = If", "h = If") + BRANCHES[BRANCHES.index("y = If") :].replace("Add(z, z)", "Add(h, h)")
    assert bound(with_weights(model(twice), yes=np.array(False), w=W0)) == pytest.approx(
        4.0
    )  # the branches may use one name for two tensors


def test_an_attribute_that_is_not_finite_has_no_bound():
    found = model("y = LeakyRelu<alpha = 0.5>(x)")
    found.graph.node[0].attribute[0].f = float("nan")
    assert "LeakyRelu at 'y': it has an attribute" in reason(found)


def test_a_fixed_batch_may_be_spelled_out_in_a_reshape():
    found = with_weights(model("r = Reshape(x, s)\n y = Gemm<transB = 1>(r, w)", x="float[3,2,2] x"), s=np.array([3, 4]), w=W0)
    assert rows(found)
    assert bound(found) == pytest.approx(np.linalg.norm(W0.astype(float), 2), rel=1e-8)


def test_weights_per_entry_are_rounded_up():
    body = "l, r = Split<axis = 1, num_outputs = 2>(x)\n a = Mul(l, p)\n b = Mul(l, q)\n y = Concat<axis = 1>(a, b)"
    found = with_weights(model(body), p=np.float32(0.6), q=np.float32(0.8))
    assert bound(found) >= (float(np.float32(0.6)) ** 2 + float(np.float32(0.8)) ** 2) ** 0.5


def test_local_functions_are_looked_into():
    twice = '<domain: "local", opset_import: ["" : 18]> twice (a) => (b) { b = Add(a, a) }'
    assert bound(model("y = local.twice(x)", functions=twice)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "found",
    [
        with_weights(model("y = Add(x, c)"), c=np.ones((5, 4), np.float32)),  # a single row of x would be copied five times
        model("y = Add(x, z)", x="float[N,4] x, float[M,4] z"),
        model("y = Add(x, z)", x="float[N,K] x, float[N,1] z"),
        with_weights(model("y = ReduceSum(x, zero)"), zero=np.array([0])),
        with_weights(model("y = Expand(x, s)"), s=np.array([7, 4])),
    ],
    ids=["rows of a constant", "two batches", "unknown columns", "sum over the batch", "expand"],
)
def test_a_copy_that_may_hide_in_an_unknown_size_has_no_bound(found):
    assert reason(found)
    assert not rows(found)


def test_a_known_broadcast_counts_by_its_copies():
    assert bound(model("y = Add(x, z)", x="float[N,4] x, float[N,1] z")) == pytest.approx(3.0)
    assert bound(with_weights(model("y = Mul(x, c)", x="float[N,1] x"), c=np.full(9, 2, np.float32))) == pytest.approx(6.0)


def test_integers_are_held_fixed_and_a_model_without_floats_has_no_bound():
    both = with_weights(model("f = Cast<to = 1>(i)\n y = Add(x, f)", x="float[N,4] x, int64[N,4] i"))
    assert bound(both) == 1.0
    assert reason(model("y = Cast<to = 1>(i)", x="int64[N,4] i")) == "the model has no floating-point input"


def test_a_constant_that_would_be_huge_is_not_made():
    found = with_weights(model("c = ConstantOfShape(s)\n r = ReduceSum(c)\n y = Add(x, r)"), s=np.array([2**20, 2**20]))
    assert "ConstantOfShape at 'c'" in reason(found)


def test_weights_computed_from_constants_are_folded():
    found = with_weights(model("v = Div(w, s)\n t = Transpose(v)\n y = MatMul(x, t)"), w=W0, s=np.float32(2))
    assert bound(found) == pytest.approx(np.linalg.norm(W0.astype(float), 2) / 2, rel=1e-6)
    assert audit(found).layers[0].shape == (6, 4)


def test_a_flattening_through_shape_arithmetic_is_followed():
    body = """s = Shape(x)
        n = Gather(s, zero)
        u = Unsqueeze(n, axes)
        t = Concat<axis = 0>(u, rest)
        f = Reshape(x, t)
        y = Gemm<transB = 1>(f, w)"""
    found = with_weights(model(body, x="float[N,2,2] x"), zero=np.array(0), axes=np.array([0]), rest=np.array([4]), w=W0)
    assert bound(found) == pytest.approx(np.linalg.norm(W0.astype(float), 2), rel=1e-8)
    assert rows(found)


@pytest.mark.parametrize(
    ("body", "x"),
    [
        ("y = Reshape(x, two)", "float[N,2,2] x"),
        ("y = Reshape(x, three)", "float[N,6] x"),
        ("y = Transpose<perm = [1, 0]>(x)", "float[N,4] x"),
        ("y = Transpose(x)", "float[N,4] x"),
        ("y = Flatten<axis = 2>(x)", "float[N,2,2] x"),
        ("y = Flatten<axis = 0>(x)", "float[N,2,2] x"),
        ("y = Flatten<axis = 0>(x)", "float[N] x"),
        ("y = Squeeze(x)", "float[N,4,1] x"),
        ("y = Unsqueeze(x, axes0)", "float[N,4] x"),
        ("y = Softmax<axis = 0>(x)", "float[N,4] x"),
        ("y = Concat<axis = 0>(x, x)", "float[N,4] x"),
        ("y = Gather(x, flip)", "float[N,4] x"),
        ("y = Slice(x, axes0, axes1)", "float[N,4] x"),
        ("y = ReduceMax(x)", "float[N,4] x"),
        ("y = MatMul(w, x)", "float[4,4] x"),
        ("y = MatMul(x, w)", "float[4] x"),
        ("y = Add(x, position)", "float[3,4] x"),
        ("y = Split<axis = 0, num_outputs = 1>(x)", "float[N,4] x"),
        ("y, i = TopK<axis = 0>(x, axes1)", "float[N,4] x"),
        ("c = ReduceMean(x, axes0)\n y = Sub(x, c)", "float[N,4] x"),
        ("y, m, v = BatchNormalization<training_mode = 1>(x, g, g, g, g)", "float[N,4] x"),
        ("y = Gemm<transA = 1>(x, w)", "float[4,4] x"),
        ("y = CumSum(x, zero)", "float[N,4] x"),
        ("y = Relu(w)", "float[N,4] x"),
        ("y = Pad(x, pads)", "float[N,4] x"),
    ],
)
def test_independent_rows_are_not_claimed_where_rows_mix_move_or_know_their_place(body, x):
    weights = {
        "two": np.array([-1, 2]), "three": np.array([-1, 2]), "axes0": np.array([0]), "axes1": np.array([1]), "flip": np.array([1, 0]),
        "w": np.eye(4, dtype=np.float32), "g": np.ones(4, np.float32), "position": np.arange(12, dtype=np.float32).reshape(3, 4),
        "zero": np.array(0), "pads": np.array([1, 0, 0, 0]),
    }  # fmt: skip
    assert not rows(with_weights(model(body, x=x), **weights))


def test_rows_are_followed_past_the_point_where_the_bound_ends():
    found = model("e = Exp(x)\n y = Softmax<axis = 1>(e)\n i = ArgMax<axis = 1, keepdims = 0>(x)", y="float[N,4] y, int64[N] i")
    assert rows(found)
    assert audit(found).lipschitz["y"].bound is None


def test_a_name_given_twice_a_broken_file_and_an_unknown_input_are_errors():
    with pytest.raises(AuditError, match="two tensors have the name 'x'"):
        audit(model("x = Relu(x)\n y = Relu(x)"))
    with pytest.raises(AuditError, match="no ONNX model"):
        audit(b"\xff\xff not a model")
    with pytest.raises(AuditError, match="no ONNX model"):
        audit(b"")
    with pytest.raises(AuditError, match=r"no input 'z'; its inputs are \['x'\]"):
        audit(model("y = Relu(x)"), {"z": (1, 4)})
    outside = with_weights(model("y = MatMul(x, w)"), w=np.eye(4, dtype=np.float32))
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(AuditError, match="'w' in another file"):
        audit(outside)


def test_a_given_image_size_tightens_a_convolution_and_its_absence_is_sound():
    kernel = np.ones((1, 1, 3, 3), np.float32)
    found = with_weights(model("y = Conv<pads = [1, 1, 1, 1]>(x, k)", x="float[N,1,H,W] x"), k=kernel)
    assert 9.0 <= bound(found) <= 9.1
    assert 4.0 <= bound(found, x=(-1, 1, 2, 2)) <= 4.0 * (1 + 1e-9)  # four windows sum the same four pixels


NETS = list(itertools.product(range(8), ["Relu", "LeakyRelu", "Tanh", "Sigmoid", "Elu", "Softplus"]))


@pytest.mark.parametrize(("seed", "activation"), NETS[::3])
def test_no_pair_of_inputs_moves_a_random_network_further_than_its_bound(seed, activation):
    rng = np.random.default_rng(seed)
    body = f"""c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, k, b)
        n = BatchNormalization(c, g, b, m, v)
        a = {activation}(n)
        q = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(a)
        t = ConvTranspose<strides = [2, 2]>(q, k)
        f = Flatten(t)
        h = Gemm(f, w)
        d = {activation}(h)
        s = Add(h, d)
        y = Softmax(s)"""
    weights = {
        "k": rng.standard_normal((3, 2, 3, 3)), "b": rng.standard_normal(3), "g": rng.standard_normal(3), "m": rng.standard_normal(3),
        "v": rng.random(3) + 0.1, "w": rng.standard_normal((98, 5)) / 10,
    }  # fmt: skip
    found = with_weights(model(body, x="float[N,2,7,7] x"), **{name: w.astype(np.float32) for name, w in weights.items()})
    report = audit(found)
    limit, session = report.lipschitz["y"].bound, ort.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    assert report.rows_independent
    for scale in (0.01, 1.0, 10.0):
        a = rng.standard_normal((16, 2, 7, 7)).astype(np.float32)
        b = (a + scale * rng.standard_normal(a.shape)).astype(np.float32)
        ya, yb = session.run(None, {"x": a})[0], session.run(None, {"x": b})[0]
        moved = np.linalg.norm(ya.astype(float) - yb, axis=1) / np.linalg.norm((a.astype(float) - b).reshape(16, -1), axis=1)
        assert moved.max() <= limit * (1 + 1e-4)


def test_the_command_prints_a_table_or_json_and_fails_in_one_sentence(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(sorting("split, max, min"), path)
    command = [sys.executable, "-m", "export.audit", str(path)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "6 x 4" in table
    assert "rows independent: proved" in table
    report = json.loads(subprocess.run([*command, "--json", "--input-shape", "x:2,4"], capture_output=True, text=True, check=True).stdout)
    assert report["inputs"][0]["shape"] == [2, 4]
    path.write_bytes(b"no")
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert subprocess.run([*command, "--input-shape", "x"], capture_output=True, check=False).returncode == 2
