"""Files that real exporters wrote (fixtures/make.py says which): a bound where every operator has a rule, or the operator that has none."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.audit import audit

FILES = Path(__file__).parent / "fixtures"
SMOOTH = 1.129 * 1.1292 * 1.09985 * 1.0886 * 1.5001 * 0.2  # GELU, its tanh form, SiLU, Mish, HardSwish, and HardSigmoid's 1/6 rounded up
BOUNDED = {
    "legacy_activations": SMOOTH, "legacy_cnn": None, "legacy_sorts": 1.0, "legacy_branches": None, "legacy_layernorm": 0.1**-0.5,
    "dynamo_cnn": None, "dynamo_sorts": 1.0, "dynamo_branches": None, "dynamo_layernorm": 0.1**-0.5,
    "tensorflow_activations": None, "tensorflow_cnn": None, "jax_activations": None, "jax_cnn": None, "jax_groupsort": 1.0,
    "sklearn_logistic": 0.5, "sklearn_ridge": 1.0, "sklearn_mlp_classifier": 0.5, "sklearn_mlp_regressor": 1.0,
}  # fmt: skip
"""What the activations of a file may add to the product of its layers, at most; None: it is no plain chain."""
UNBOUNDED = {
    "legacy_attention": "MatMul at '/MatMul': it multiplies two tensors that both depend on the input",
    "dynamo_attention": "MatMul at 'node_matmul': it multiplies two tensors that both depend on the input",
    "legacy_excite": "Mul at '/1/Mul': it combines two tensors that both depend on the input",
    "dynamo_excite": "Mul at 'node_mul_6': it combines two tensors that both depend on the input",
    "tensorflow_layernorm": "SquaredDifference",
    "sklearn_svc": "ai.onnx.ml.SVMClassifier at 'SVMc': no bound is known of this operator",
    "sklearn_tree": "ai.onnx.ml.TreeEnsembleClassifier at 'TreeEnsembleClassifier': no bound is known of this operator",
}


def content(name):
    return (FILES / f"{name}.onnx").read_bytes()


def last(report):
    return list(report.lipschitz)[-1]


@pytest.mark.parametrize("name", BOUNDED)
def test_no_pair_of_inputs_moves_an_exported_network_further_than_its_bound(name):
    report = audit(content(name))
    stated = report.lipschitz[last(report)]
    assert stated.rigorous
    product = float(np.prod([layer.sigma_upper for layer in report.layers]))
    assert stated.bound <= product * (BOUNDED[name] or np.inf) * (1 + 1e-6)
    session = ort.InferenceSession(content(name), providers=["CPUExecutionProvider"])
    shape = [d if d > 0 else 1 for d in report.inputs[0].shape]
    rng = np.random.default_rng(0)
    best = 0.0
    for scale in (0.3, 1.0, 3.0, 30.0):
        for _ in range(12):
            a = (scale * rng.standard_normal(shape)).astype(np.float32)
            b = (a + 0.03 * scale * rng.standard_normal(shape)).astype(np.float32)
            ya, yb = (session.run([last(report)], {report.inputs[0].name: x})[0].astype(np.float64) for x in (a, b))
            best = max(best, float(np.linalg.norm(ya - yb) / np.linalg.norm(a.astype(np.float64) - b)))
    assert 0 < best <= stated.bound * (1 + 1e-3)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_has_no_bound_says_where_and_keeps_its_layers(name):
    report = audit(content(name))
    stated = report.lipschitz[last(report)]
    assert stated.bound is None
    assert UNBOUNDED[name] in stated.reason
    matrices = {"Gemm", "MatMul", "Conv"}
    weighty = [node for node in onnx.load_from_string(content(name)).graph.node if node.op_type in matrices]
    assert len([layer for layer in report.layers if layer.op in matrices]) >= len(weighty) - 2  # attention multiplies activations twice


def test_a_step_too_small_for_float32_gives_a_bound_that_is_not_called_rigorous():
    stated = audit(content("dynamo_activations")).lipschitz["y"]
    assert stated.bound == pytest.approx(audit(content("legacy_activations")).lipschitz["y"].bound, rel=1e-3)
    assert not stated.rigorous
    assert "Where at 'n10': a step of 2.1e-09 at 20 is taken for rounding" in stated.reason


def test_every_fixture_is_audited_and_small():
    found = {path.stem for path in FILES.glob("*.onnx")}
    assert found == {*BOUNDED, *UNBOUNDED, "dynamo_activations"}
    assert all(len(content(name)) < 30_000 for name in found)


def test_a_public_network_of_the_onnx_package_has_a_bound_and_every_layer_a_norm():
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"
    report = audit(light.read_bytes(), {"data_0": (1, 3, 32, 32)})
    assert all(stated.rigorous for stated in report.lipschitz.values())
    assert len(report.layers) == 26
    assert all(0 < layer.sigma_estimate <= layer.sigma_upper for layer in report.layers)


def test_an_integer_input_is_held_fixed_and_its_embedding_measured():
    table = np.eye(5, 3, dtype=np.float32) * 2
    graph = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g (int64[N,2] x) => (float[N,2,3] y) { y = Gather(w, x) }')
    graph.graph.initializer.append(onnx.numpy_helper.from_array(table, "w"))
    report = audit(graph)
    assert report.lipschitz["y"].reason == "the model has no floating-point input"
    assert [(layer.kind, layer.shape) for layer in report.layers] == [("embedding", (5, 3))]
    assert report.layers[0].sigma_upper == pytest.approx(2.0)
