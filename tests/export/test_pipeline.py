"""The whole export on real digits: what is promised of the bytes is measured on the bytes, by other means."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

import specnorm_core as sn
from export import bundle, checkpoint, claims, verify
from export.bundle import InputDomain
from export.fold import FoldError, fold
from export.pipeline import export_bundle, load_bundle
from export.proof import proved
from export.radius import detached
from specnorm_core.data import load

LABELS = tuple(map(str, range(10)))
CASES = {
    "mlp": {"arch": "mlp", "activation": "groupsort"},
    "relu": {"arch": "mlp-small", "activation": "relu"},
    "cnn": {"arch": "cnn", "activation": "groupsort"},
}


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def trained(digits, arch, activation, epochs=3, **changes):
    spec = sn.preset(arch, (64,), 10, activation=activation, shift=8.0, scale=0.125)
    if changes:
        layers = tuple(layer.model_copy(update=changes) if hasattr(layer, "norm") else layer for layer in spec.layers)
        spec = spec.model_copy(update={"layers": layers})
    model = sn.build(spec, seed=0)
    list(sn.fit(model, digits, epochs=epochs))
    return model, spec


@pytest.fixture(scope="module", params=sorted(CASES))
def exported(request, digits):
    model, spec = trained(digits, **CASES[request.param])
    manifest, files = export_bundle(
        model, spec, samples=digits.x, labels=LABELS, validation=digits, domain=InputDomain(minimum=0, maximum=16)
    )
    return model, manifest, files


def test_plain_onnx_runtime_gives_the_numbers_of_the_folded_copy(exported, digits):
    model, _, files = exported
    folded, _ = fold(model)
    x = digits.x[:1000]
    session = ort.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])
    logits, radius = session.run(["logits", "certified_radius"], {"input": x})
    np.testing.assert_allclose(logits, verify.outputs_of(folded, x), atol=1e-5, rtol=1e-5)
    assert logits.shape == (1000, 10)
    assert radius.shape == (1000,)
    assert (radius >= 0).all()


def test_every_folded_weight_in_the_bytes_has_norm_at_most_its_target(exported):
    model, manifest, files = exported
    weights = {w.name: numpy_helper.to_array(w).astype(np.float64) for w in onnx.load_from_string(files["model.onnx"]).graph.initializer}
    for layer in manifest.layers:
        weight = weights[f"{layer.name}.weight"]
        if layer.kind == "linear":
            norm = np.linalg.svd(weight, compute_uv=False)[0]
        else:
            module = getattr(model, layer.name)
            n = weight.shape[1] * module.groups * np.prod(module.input_size)
            eye = torch.eye(n, dtype=torch.float64).reshape(n, -1, *module.input_size)
            norm = np.linalg.svd(module.convolve(eye, torch.from_numpy(weight)).reshape(n, -1).numpy(), compute_uv=False)[0]
        assert norm <= layer.folded_sigma_upper * (1 + 1e-14)
        assert layer.folded_sigma_upper <= layer.target
        assert layer.folded_sigma_upper > 0.98 * layer.target
        assert layer.sigma_estimate <= layer.sigma_upper


def test_the_bound_is_no_less_than_any_difference_quotient(exported, digits):
    _, manifest, files = exported
    generator = np.random.default_rng(0)
    x = digits.x[:200]
    step = generator.normal(size=x.shape).astype(np.float32) * 1e-2
    a, b = (verify.run(files["model.onnx"], value)["logits"].astype(np.float64) for value in (x, x + step))
    quotient = np.linalg.norm(a - b, axis=1) / np.linalg.norm((x + step).astype(np.float64) - x, axis=1)
    assert manifest.lipschitz.rigorous
    assert quotient.max() <= manifest.lipschitz.bound <= 0.1251


def test_no_attack_inside_the_certified_radius_changes_a_class(exported, digits):
    """Projected gradient ascent on the margin of the folded model, judged by the served graph."""
    model, _, files = exported
    folded, _ = fold(model)
    x = digits.x[::9]
    served = verify.run(files["model.onnx"], x)
    label, radius = served["logits"].argmax(axis=1), served["certified_radius"].astype(np.float64)
    centre, allowed = torch.from_numpy(x), torch.from_numpy(radius * (1 - 1e-6)).float()[:, None]
    delta = torch.randn_like(centre) * 0.1
    for _ in range(40):
        delta = (delta * (allowed / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)).detach().requires_grad_()
        out = folded(centre + delta)
        true = out.gather(1, torch.from_numpy(label)[:, None])
        rival = out.scatter(1, torch.from_numpy(label)[:, None], -torch.inf).amax(dim=1, keepdim=True)
        (rival - true).sum().backward()
        delta = delta + delta.grad / delta.grad.norm(dim=1, keepdim=True).clamp_min(1e-12) * allowed / 8
    delta = (delta * (allowed / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)).detach().numpy()
    assert np.isfinite(delta).all()
    assert (np.linalg.norm(delta.astype(np.float64), axis=1) <= radius).all()
    attacked = verify.run(files["model.onnx"], x + delta)["logits"].argmax(axis=1)
    assert (attacked == label).all()
    assert (radius > 0).mean() > 0.9


def test_on_a_linear_model_the_radius_is_tight(digits):
    """Two logits of opposite rows: the nearest change of class is at the radius, so one a hundredth larger would be caught."""
    from specnorm_core.architecture import Architecture, Linear

    spec = Architecture(input_shape=(8,), layers=(Linear(features=2, bias=False),))
    model = sn.build(spec, seed=0)
    row = torch.randn(8)
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([row, -row]))
    sn.power_iteration(model, 50)
    x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    _, files = export_bundle(model, spec, samples=x, labels=("a", "b"))
    served = verify.run(files["model.onnx"], x)
    unit = (row / row.norm()).numpy()
    sign = np.where(served["logits"].argmax(axis=1) == 0, -1, 1)[:, None]

    def moved(factor):
        return verify.run(files["model.onnx"], (x + sign * unit * served["certified_radius"][:, None] * factor).astype(np.float32))[
            "logits"
        ].argmax(axis=1)

    label = served["logits"].argmax(axis=1)
    assert (moved(0.9999) == label).all()
    assert (moved(1.01) != label).mean() > 0.99


def test_the_float32_error_stays_within_its_proved_bound_and_the_bound_is_not_vacuous(exported, digits):
    model, _, files = exported
    folded, _ = fold(model)
    error = proved(detached(onnx.load_from_string(files["model.onnx"]))[0], "logits").error
    exact = verify.outputs_of(folded.double(), digits.x.astype(np.float64))
    off = np.linalg.norm(verify.run(files["model.onnx"], digits.x)["logits"] - exact, axis=1)
    bound = error.slope * np.linalg.norm(digits.x.astype(np.float64), axis=1) + error.offset
    assert (off <= bound).all()
    assert bound.max() < 0.01


def test_a_graph_that_computes_something_else_is_refused(exported, digits):
    model, _, files = exported
    folded, _ = fold(model)
    graph = onnx.load_from_string(files["model.onnx"])
    last = next(w for w in graph.graph.initializer if w.name.endswith(".bias") and w.dims[0] == 10)
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) + np.float32(1e-3), last.name))
    with pytest.raises(verify.VerificationError, match="differ on input"):
        verify.parity(graph.SerializeToString(), folded, digits.x[:100], "logits")


def test_a_manifest_that_promises_more_than_the_bytes_prove_is_refused(exported):
    _, manifest, files = exported
    lower = manifest.model_copy(update={"lipschitz": manifest.lipschitz.model_copy(update={"bound": manifest.lipschitz.bound * 0.98})})
    with pytest.raises(verify.VerificationError, match="Lipschitz bound"):
        claims.check(lower, files)
    graph = onnx.load_from_string(files["model.onnx"])
    weight = next(w for w in graph.graph.initializer if w.name == f"{manifest.layers[0].name}.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.02), weight.name))
    changed = files | {"model.onnx": graph.SerializeToString()}
    with pytest.raises(verify.VerificationError, match="sha256 differs"):
        claims.check(manifest, changed)
    resigned = manifest.model_copy(update={"files": {name: bundle.digest(content) for name, content in changed.items()}})
    with pytest.raises(verify.VerificationError, match="bytes"):
        claims.check(resigned, changed)


def test_the_matricised_norm_never_feeds_the_certificate(digits):
    model, spec = trained(digits, "cnn", "groupsort", epochs=1, norm="matricised")
    manifest, _ = export_bundle(model, spec, samples=digits.x, labels=LABELS)
    conv = manifest.layers[0]
    assert conv.operator_sigma_upper > 1.1 * conv.sigma_upper
    assert conv.folded_sigma_upper <= 1.0
    assert manifest.lipschitz.bound > 0.13  # 1 / 8 of the normalisation times operator norms above one


def test_cap_leaves_a_small_layer_as_it_is(digits):
    model, spec = trained(digits, "mlp-small", "relu", epochs=1, constraint="cap", target=50.0)
    folded, _ = fold(model)
    assert torch.equal(folded.get_parameter("0.weight"), model.get_parameter("0.weight"))
    manifest, _ = export_bundle(model, spec, samples=digits.x, labels=LABELS)
    assert manifest.layers[0].folded_sigma_upper < 50


def test_a_zero_weight_is_refused_with_the_layer_s_name(digits):
    model, _ = trained(digits, "mlp-small", "relu", epochs=1)
    with torch.no_grad():
        model[2].weight.zero_()
    with pytest.raises(FoldError, match=r"layer '2' cannot be folded: .*weight.* is zero"):
        fold(model)


def test_a_bundle_s_checkpoint_gives_the_trained_model_again(exported, digits):
    model, _, files = exported
    again, provenance = load_bundle(files)
    assert provenance.labels == LABELS
    np.testing.assert_allclose(verify.outputs_of(again, digits.x), verify.outputs_of(model, digits.x), atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x80\x04pickle"])
def test_what_is_no_checkpoint_is_refused_with_a_sentence(content):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of specnorm"):
        checkpoint.load(content)


def test_a_regressor_has_a_bound_and_no_radius(digits):
    values = type(digits)(digits.x, digits.y.astype(np.float32) / 3, digits.digest)
    spec = sn.preset("mlp-small", (64,), 1, shift=8.0, scale=0.125)
    model = sn.build(spec, seed=0)
    list(sn.fit(model, values, hyperparameters=sn.Hyperparameters(loss="mse", n_epochs=1)))
    manifest, files = export_bundle(model, spec, samples=digits.x)
    assert [output.name for output in manifest.signature.outputs] == ["prediction"]
    assert 0.03 < manifest.lipschitz.bound <= 0.125
    assert manifest.lipschitz.sensitivity == pytest.approx((manifest.lipschitz.bound,)), "of one output alone it is the bound"
    told = {entry.key: entry.value for entry in onnx.load_from_string(files["model.onnx"]).metadata_props}
    assert float(told["lipschitz_bound"]) == manifest.lipschitz.bound
    assert tuple(json.loads(told["sensitivity"])) == manifest.lipschitz.sensitivity
    assert told["lipschitz_method"] == manifest.lipschitz.method == "chain"
    assert set(verify.run(files["model.onnx"], digits.x[:3])) == {"prediction"}


def test_the_export_script_writes_the_bundle_and_reports(digits, tmp_path):
    model, spec = trained(digits, **CASES["mlp"], epochs=1)
    provenance = checkpoint.Provenance(architecture=spec, labels=LABELS, source="digits")
    (tmp_path / "checkpoint.safetensors").write_bytes(checkpoint.save(model, provenance))
    command = [sys.executable, "-m", "export", str(tmp_path / "checkpoint.safetensors"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in ("sigma lag", "largest shift of an output", "accuracy: trained", "on 1000 real inputs"):
        assert words in done.stderr
    written, content = bundle.read(tmp_path / "out")
    assert 0.03 < written.lipschitz.bound <= 0.125, "at most the scale inside the graph times layers of norm 1"
    assert json.loads(content["architecture.json"])["input_shape"] == [64]
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in again.stderr


def test_the_export_script_refuses_what_is_no_checkpoint(tmp_path):
    (tmp_path / "c").write_bytes(b"junk")
    done = subprocess.run(
        [sys.executable, "-m", "export", str(tmp_path / "c"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "error: this is no checkpoint of specnorm" in done.stderr
    assert not (tmp_path / "out").exists()
