"""The graph carries its certificate: any runtime gives the radius, and a regressor's file says what it promises."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import specnorm_core as sn
from export.fold import fold
from export.pipeline import export_bundle
from specnorm_core.architecture import Architecture, Conv2d, Flatten, LeakyRelu, Linear, Relu, Sort, Tanh

DENSE = (Linear(features=12), Sort(), Linear(features=8), LeakyRelu(slope=0.2), Linear(features=3))
NETWORKS = {
    "dense": ((6,), DENSE),
    "sorts of three": ((6,), (Linear(features=12), Sort(size=3), Linear(features=3))),
    "images": ((1, 5, 5), (Conv2d(channels=4, padding=(1, 1)), Sort(), Conv2d(channels=4), Relu(), Flatten(), Linear(features=3))),
    "borders": ((1, 5, 5), (Conv2d(channels=4, padding=(1, 1), padding_mode="circular"), Relu(), Flatten(), Linear(features=3))),
    "many classes": ((6,), (Linear(features=130),)),
}  # fmt: skip


def network(shape, layers, seed=0):
    spec = Architecture(input_shape=shape, layers=layers, shift=0.5, scale=2.0)
    model = sn.build(spec, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    sn.power_iteration(model, 100)
    return model, spec


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_onnx_runtime_and_the_reference_of_onnx_give_the_same_radius(name):
    shape, layers = NETWORKS[name]
    model, spec = network(shape, layers)
    classes = int(layers[-1].features)
    manifest, files = export_bundle(model, spec, labels=tuple(map(str, range(classes))))
    x = np.random.default_rng(0).normal(size=(50, *shape)).astype(np.float32)
    session = ort.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])
    logits, radius = session.run(["logits", "certified_radius"], {"input": x})
    others, other = ReferenceEvaluator(onnx.load_from_string(files["model.onnx"])).run(["logits", "certified_radius"], {"input": x})
    np.testing.assert_allclose(others, logits, atol=1e-5)
    np.testing.assert_allclose(other, radius, atol=1e-4)
    assert other.shape == radius.shape == (50,)
    best = np.sort(logits, axis=1)
    simple = (best[:, -1] - best[:, -2]) / (np.sqrt(2) * manifest.lipschitz.bound)
    assert (radius >= simple * 0.98 - 1e-3).all(), "at least what the bound of all logits gives, but for rounding"
    assert (radius > 0).mean() > 0.9


@pytest.mark.parametrize("layers", [(*DENSE[:-1], Linear(features=2)), (Linear(features=5), Tanh(), Linear(features=3))])
def test_a_regressor_s_sensitivities_hold_for_each_output_and_are_the_same_in_file_and_manifest(layers):
    model, spec = network((6,), layers)
    manifest, files = export_bundle(model, spec)
    told = {entry.key: entry.value for entry in onnx.load_from_string(files["model.onnx"]).metadata_props}
    assert tuple(json.loads(told["sensitivity"])) == manifest.lipschitz.sensitivity
    assert json.loads(told["lipschitz_bound"]) == manifest.lipschitz.bound
    assert (told["lipschitz_norm"], told["lipschitz_method"]) == ("l2", manifest.lipschitz.method)
    assert manifest.lipschitz.rigorous
    assert [output.name for output in manifest.signature.outputs] == ["prediction"]
    folded = fold(model)[0].double()
    limits = np.array(manifest.lipschitz.sensitivity)
    assert (limits <= manifest.lipschitz.bound).all()
    x = torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    steepest = np.zeros(len(limits))
    for _ in range(30):  # towards steeper places
        x = x.detach().requires_grad_()
        slopes = [torch.autograd.grad(folded(x)[:, i].sum(), x, create_graph=True)[0].norm(dim=1) for i in range(len(limits))]
        steepest = np.maximum(steepest, [float(slope.detach().max()) for slope in slopes])
        total = sum(slope.sum() for slope in slopes)
        x = x + torch.autograd.grad(total, x)[0] * 0.3 if total.requires_grad else x
        x = x + torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.1
    assert (steepest <= limits).all()
    assert (steepest > 0.4 * limits).all(), "and they are no idle numbers"


def test_on_a_linear_regressor_the_sensitivity_is_the_norm_of_the_row():
    model, spec = network((6,), (Linear(features=4),))
    manifest, _ = export_bundle(model, spec)
    weight = fold(model)[0][0].weight.detach().double().numpy()
    np.testing.assert_allclose(manifest.lipschitz.sensitivity, 2.0 * np.linalg.norm(weight, axis=1), rtol=1e-6)


def test_the_bound_is_no_less_than_the_steepest_place_that_a_search_finds():
    for seed in range(3):
        model, spec = network((6,), DENSE, seed)
        manifest, _ = export_bundle(model, spec, labels=("a", "b", "c"))
        folded, largest = fold(model)[0].double(), 0.0
        x = torch.randn(64, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
        v = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for _ in range(60):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(folded(x), x, v / v.norm(dim=1, keepdim=True))
            largest = max(largest, float(slope.norm(dim=1).max()))
            v = torch.autograd.functional.jvp(folded, x.detach(), slope)[1]
            x = x.detach() + torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.05
        assert 0.5 * manifest.lipschitz.bound < largest <= manifest.lipschitz.bound
