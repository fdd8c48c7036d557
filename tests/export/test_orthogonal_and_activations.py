"""What certified networks are made of, through the whole export: orthogonal layers, sorts of any size, slopes, curves."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import specnorm_core as sn
from export import verify
from export.fold import fold
from export.pipeline import export_bundle, load_bundle
from export.proof import proved
from export.radius import detached
from export.to_onnx import to_onnx
from specnorm_core.architecture import ACTIVATIONS, Architecture, Conv2d, Flatten, LeakyRelu, Linear, Orthogonal, Sort, Sorted

LABELS = ("a", "b", "c")
BOUNDED = {
    "sort2": Sort(), "sort3": Sort(size=3), "sort4": Sort(size=4), "sort12": Sort(size=12), "fullsort": Sorted(),
    "leaky": LeakyRelu(), "leaky half": LeakyRelu(slope=0.3), "leaky one": LeakyRelu(slope=1.0), "leaky zero": LeakyRelu(slope=0.0),
}  # fmt: skip
CURVES = {"softplus", "tanh"}


def skewed(spec):
    """A built network with weights away from the orthogonal ones they start with."""
    model = sn.build(spec, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    sn.power_iteration(model, 100)
    return model


def exported(activation, dense=Orthogonal):
    spec = Architecture(input_shape=(7,), layers=(dense(features=12), activation, dense(features=12), activation, dense(features=3)))
    model = skewed(spec)
    x = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32) * 3
    manifest, files = export_bundle(model, spec, samples=x, labels=LABELS)
    return model, x, manifest, files


@pytest.mark.parametrize("activation", BOUNDED.values(), ids=BOUNDED)
def test_the_bound_of_every_exact_activation_is_proved_to_be_at_most_one(activation):
    model, x, manifest, files = exported(activation)
    assert 0.8 < manifest.lipschitz.bound <= 1  # below 1 where the certificate through the chain beats the product
    assert manifest.signature.rows_independent
    served = verify.run(files["model.onnx"], x)
    folded, _ = fold(model)
    np.testing.assert_allclose(served["logits"], verify.outputs_of(folded, x), atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(served["logits"], verify.outputs_of(model, x), atol=1e-4)
    assert (served["certified_radius"] > 0).mean() > 0.9


@pytest.mark.parametrize("activation", BOUNDED.values(), ids=BOUNDED)
def test_the_float32_error_of_every_exact_activation_stays_within_its_proved_bound(activation):
    model, x, _, files = exported(activation, Linear)
    folded, _ = fold(model)
    error = proved(detached(onnx.load_from_string(files["model.onnx"]))[0], "logits").error
    exact = verify.outputs_of(folded.double(), x.astype(np.float64))
    off = np.linalg.norm(verify.run(files["model.onnx"], x)["logits"] - exact, axis=1)
    assert (off <= error.slope * np.linalg.norm(x.astype(np.float64), axis=1) + error.offset).all()


def test_the_product_of_a_slope_counts_as_an_error_of_its_own():
    def slope(layers):
        folded, _ = fold(sn.build(Architecture(input_shape=(4,), layers=layers), seed=0))
        return proved(to_onnx(folded, classifier=True), "logits").error.slope

    plain, leaky = slope((Linear(features=4),)), slope((Linear(features=4), LeakyRelu(slope=0.5)))
    assert leaky - plain >= 0.5 * 2.0**-24


@pytest.mark.parametrize("name", sorted(CURVES))
def test_a_curve_has_a_bound_of_the_function_and_no_certified_radius(name):
    _, x, manifest, files = exported(ACTIVATIONS[name])
    assert 0.8 < manifest.lipschitz.bound <= 1  # below 1 where the certificate through the chain beats the product
    assert [output.name for output in manifest.signature.outputs] == ["logits"]
    assert set(verify.run(files["model.onnx"], x)) == {"logits"}
    found = proved(onnx.load_from_string(files["model.onnx"]), "logits")
    assert found.error is None
    assert found.why == f"{name.capitalize()} at '1': nothing is known of how accurately it is computed"


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_that_an_architecture_offers_has_a_form_for_images_too(name):
    spec = Architecture(input_shape=(2, 5, 5), layers=(Conv2d(channels=6), ACTIVATIONS[name], Flatten(), Orthogonal(features=3)), scale=0.5)
    assert Architecture.model_validate_json(spec.model_dump_json()) == spec
    manifest, _ = export_bundle(skewed(spec), spec, labels=LABELS)
    assert 0.3 < manifest.lipschitz.bound <= 0.5
    assert ("certified_radius" in {output.name for output in manifest.signature.outputs}) == (name not in CURVES)


@pytest.mark.parametrize("target", [1.0, 0.5, 3.0])
def test_the_folded_weight_in_the_bytes_is_orthogonal_and_certified_below_its_target(target):
    spec = Architecture(input_shape=(20,), layers=(Orthogonal(features=8, target=target), Sort(size=4), Orthogonal(features=3)))
    model = skewed(spec)
    manifest, files = export_bundle(model, spec, labels=LABELS)
    weights = {w.name: numpy_helper.to_array(w).astype(np.float64) for w in onnx.load_from_string(files["model.onnx"]).graph.initializer}
    values = np.linalg.svd(weights["0.weight"], compute_uv=False)
    assert manifest.layers[0].constraint == "orthogonal"
    assert manifest.layers[0].target == target
    assert values.max() <= manifest.layers[0].folded_sigma_upper <= target
    assert values.min() >= target * (1 - 1e-5)
    again, _ = load_bundle(files)
    x = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    np.testing.assert_allclose(verify.outputs_of(again, x), verify.outputs_of(model, x), atol=1e-5)


def test_the_gradient_mode_of_an_architecture_reaches_orthogonal_layers():
    spec = Architecture(input_shape=(4,), layers=(Orthogonal(features=3),)).with_gradient_mode("simplified")
    assert sn.build(spec)[0].gradient_mode == "simplified"
