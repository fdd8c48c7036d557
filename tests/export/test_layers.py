"""Every convolution through the whole export: the graph computes what the layer does, and its bound holds."""

import copy
import math

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import specnorm_core as sn
from export import verify
from export.fold import FoldError, fold
from export.pipeline import export_bundle, load_bundle
from export.proof import proved
from export.radius import detached
from export.to_onnx import GraphError, to_onnx
from specnorm_core.architecture import Architecture, Conv1d, Conv2d, Conv3d, ConvTranspose2d, Flatten, Linear, Network, Sort, Unflatten

LABELS = ("a", "b", "c")
LAYERS = {
    "conv1d": ((2, 9), Conv1d(channels=6, padding=(1,), stride=(2,))),
    "conv1d groups and dilation": ((4, 9), Conv1d(channels=6, groups=2, dilation=(2,), padding=(3,), bias=False)),
    "conv2d groups and dilation": ((4, 6, 7), Conv2d(channels=4, groups=2, dilation=(2, 1), padding=(1, 2), stride=(1, 2))),
    "conv3d": ((2, 4, 3, 4), Conv3d(channels=4, kernel=(2, 3, 2), padding=(1, 1, 0), stride=(2, 1, 1))),
    "convtranspose2d": ((4, 3, 4), ConvTranspose2d(channels=6, kernel=(3, 3), padding=(1, 0), output_padding=(1, 0))),
    "convtranspose2d groups and dilation": ((4, 3, 3), ConvTranspose2d(channels=6, groups=2, dilation=(2, 1), stride=(1, 2))),
}
BORDERS = {
    "conv1d circular": ((2, 8), Conv1d(channels=4, padding=(1,), padding_mode="circular")),
    "conv1d reflect": ((2, 8), Conv1d(channels=4, padding=(2,), padding_mode="reflect", stride=(2,))),
    "conv2d circular": ((2, 5, 6), Conv2d(channels=4, padding=(1, 2), padding_mode="circular", dilation=(1, 2))),
    "conv2d reflect": ((2, 5, 6), Conv2d(channels=4, padding=(1, 1), padding_mode="reflect", groups=2)),
    "conv2d replicate": ((2, 5, 6), Conv2d(channels=4, padding=(2, 1), padding_mode="replicate")),
    "conv3d circular": ((2, 3, 4, 3), Conv3d(channels=2, padding=(1, 1, 1), padding_mode="circular")),
}


def network(shape, layer):
    """A network whose weights are off the start: two of the layer where its shapes allow it, so that one meets sorted features."""
    twice = layer.channels == shape[0]
    layers = (layer, Sort(), *((layer.model_copy(update={"stride": (1,) * len(layer.stride)}),) if twice else ()))
    spec = Architecture(input_shape=shape, layers=(*layers, Flatten(), Linear(features=3)), shift=0.5, scale=0.5)
    model = sn.build(spec, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, spec


def jacobian_norm(folded, x):
    jacobian = torch.autograd.functional.jacobian(lambda x: folded(x[None])[0], torch.from_numpy(x))
    return float(torch.linalg.matrix_norm(jacobian.flatten(1), 2))


@pytest.mark.parametrize("name", LAYERS | BORDERS)
def test_the_bytes_compute_the_layer_and_their_bound_holds(name):
    shape, layer = (LAYERS | BORDERS)[name]
    model, spec = network(shape, layer)
    x = np.random.default_rng(0).normal(size=(60, *shape)).astype(np.float32) * 3
    manifest, files = export_bundle(model, spec, samples=x, labels=LABELS)
    folded, _ = fold(model)
    served = verify.run(files["model.onnx"], x)
    np.testing.assert_allclose(served["logits"], verify.outputs_of(folded, x), atol=1e-6, rtol=1e-6)
    assert manifest.signature.rows_independent
    assert {found.kind for found in manifest.layers} == {layer.kind, "linear"}
    assert all(0.9 < found.folded_sigma_upper <= 1 for found in manifest.layers)
    assert manifest.lipschitz.bound <= 0.5
    for row in x[:5]:
        norm = jacobian_norm(folded, row)
        assert 0.01 < norm <= manifest.lipschitz.bound
    exact = verify.outputs_of(folded.double(), x.astype(np.float64))
    error = proved(detached(onnx.load_from_string(files["model.onnx"]))[0], "logits").error
    off = np.linalg.norm(served["logits"] - exact, axis=1)
    assert (off <= error.slope * np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1) + error.offset).all()
    again, provenance = load_bundle(files)
    assert provenance.architecture == spec
    np.testing.assert_allclose(verify.outputs_of(again, x), verify.outputs_of(model, x), atol=2e-4)


@pytest.mark.parametrize("name", LAYERS | BORDERS)
def test_the_norm_of_the_folded_layer_is_that_of_its_jacobian(name):
    shape, layer = (LAYERS | BORDERS)[name]
    model, _ = network(shape, layer)
    folded, _ = fold(model)
    conv = folded[0].double()
    jacobian = torch.autograd.functional.jacobian(lambda x: conv(x[None])[0].flatten(), torch.zeros(shape, dtype=torch.float64))
    norm = float(torch.linalg.matrix_norm(jacobian.flatten(1), 2))
    assert 0.5 < norm <= 1
    assert type(conv) is {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}.get(layer.kind, nn.ConvTranspose2d)
    if layer.kind == "convtranspose2d" or getattr(layer, "padding_mode", "zeros") == "zeros":
        assert norm > 0.99


@pytest.mark.parametrize("name", LAYERS)
def test_the_error_of_a_layer_is_that_of_its_absolute_map_and_as_many_terms_as_meet_in_an_output(name):
    shape, layer = LAYERS[name]
    folded, _ = fold(sn.build(Architecture(input_shape=shape, layers=(layer.model_copy(update={"bias": False}),)), seed=0))
    absolute = copy.deepcopy(folded)[0].double()
    with torch.no_grad():
        absolute.weight.abs_()
    jacobian = torch.autograd.functional.jacobian(lambda x: absolute(x[None])[0].flatten(), torch.zeros(shape, dtype=torch.float64))
    norm = float(torch.linalg.matrix_norm(jacobian.flatten(1), 2))
    terms = shape[0] // layer.groups * math.prod(layer.kernel)
    assert int((jacobian.flatten(1) != 0).sum(dim=1).max()) <= terms
    unit = 2.0**-24
    expected = (terms + 2) * unit * norm
    assert expected * (1 - 1e-9) <= proved(to_onnx(folded, classifier=False), "prediction").error.slope <= expected * 1.05


def test_a_matricised_transposed_convolution_is_folded_in_its_own_norm_and_bounded_by_the_true_one():
    spec = Architecture(
        input_shape=(4, 3, 3), layers=(ConvTranspose2d(channels=6, kernel=(3, 3), norm="matricised"), Flatten(), Linear(features=3))
    )
    model = sn.build(spec, seed=0)
    manifest, _ = export_bundle(model, spec, labels=LABELS)
    weight = fold(model)[0][0].weight.double()
    matricised = float(torch.linalg.matrix_norm(weight.transpose(0, 1).flatten(1), 2))
    assert manifest.layers[0].folded_sigma_upper == pytest.approx(matricised, rel=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda x: fold(model)[0][0].double()(x[None]).flatten(), torch.zeros(4, 3, 3).double())
    operator = float(torch.linalg.matrix_norm(jacobian.flatten(1), 2))
    assert operator > 1.1
    assert manifest.lipschitz.bound == pytest.approx(operator, rel=1e-4)  # the other layer has norm 1, or a hair less


def test_only_a_circular_border_needs_the_later_opset():
    def opset(mode):
        model, _ = network((2, 5, 5), Conv2d(channels=4, padding=(1, 1), padding_mode=mode))
        return to_onnx(fold(model)[0], classifier=True).opset_import[0].version

    assert {mode: opset(mode) for mode in ("zeros", "circular", "reflect", "replicate")} == {
        "zeros": 18, "circular": 19, "reflect": 18, "replicate": 18,
    }  # fmt: skip


def test_a_flat_row_becomes_a_signal_or_a_volume():
    for shape, layer in (((2, 6), Conv1d(channels=2)), ((1, 3, 2, 2), Conv3d(channels=2, kernel=(2, 2, 2)))):
        spec = Architecture(input_shape=(12,), layers=(Unflatten(shape=shape), layer, Flatten(), Linear(features=2)))
        assert sn.build(spec, seed=0)(torch.zeros(5, 12)).shape == (5, 2)
        assert Architecture.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("shape", "layer", "why"),
    [
        ((2, 4), Conv1d(channels=2, kernel=(5,)), r"a kernel of \(5,\) does not fit"),
        ((2, 4, 4), Conv1d(channels=2), "conv1d takes a sample of 2 axes"),
        ((2, 3, 3), Conv2d(channels=2, padding=(4, 4), padding_mode="circular"), "mode circular is too wide"),
        ((3, 4), Conv1d(channels=2, groups=2), "divisible by groups"),
        ((2, 1, 1), ConvTranspose2d(channels=2, padding=(1, 1)), "leaves nothing of the output"),
        ((2, 3, 3), ConvTranspose2d(channels=2, output_padding=(2, 2)), "output_padding must be below"),
    ],
)
def test_an_architecture_whose_layers_do_not_fit_names_the_layer(shape, layer, why):
    with pytest.raises(ValueError, match=f"layer 0: .*{why}"):
        sn.build(Architecture(input_shape=shape, layers=(layer,)))


def wrapped(layer, *, shape=(4,), outputs=3):
    return Network([layer], shift=0.0, scale=1.0, input_shape=shape, output_shape=(outputs,))


def test_an_embedding_takes_no_real_input_and_is_refused_by_name():
    with pytest.raises(FoldError, match="layer '0' cannot be folded: it takes whole numbers"):
        fold(wrapped(sn.SpectralEmbedding(4, 3)))
    with pytest.raises(GraphError, match=r"layer '0' \(Embedding\) has no form in the graph"):
        to_onnx(wrapped(nn.Embedding(4, 3)), classifier=True)


BUILT = {
    "linear": (lambda: sn.SpectralLinear(4, 3), (4,)),
    "orthogonal": (lambda: sn.OrthogonalLinear(4, 3), (4,)),
    "conv1d": (lambda: sn.SpectralConv1d(2, 3, 3, padding=1, input_size=5), (2, 5)),
    "conv2d": (lambda: sn.SpectralConv2d(2, 3, 3, padding=1, padding_mode="circular", input_size=4), (2, 4, 4)),
    "conv2d matricised": (lambda: sn.SpectralConv2d(2, 3, 3, norm="matricised"), (2, 4, 4)),
    "conv3d": (lambda: sn.SpectralConv3d(2, 2, 2, input_size=3), (2, 3, 3, 3)),
    "convtranspose2d": (lambda: sn.SpectralConvTranspose2d(2, 3, 2, stride=2, input_size=2), (2, 2, 2)),
}
every_built = pytest.mark.parametrize("kind", BUILT)


def made(kind):
    torch.manual_seed(0)
    build, shape = BUILT[kind]
    return wrapped(build(), shape=shape)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])
@every_built
def test_a_weight_of_any_scale_folds_to_the_same_weight(kind, scale):
    model, scaled = made(kind), made(kind)
    with torch.no_grad():
        scaled[0].weight.mul_(scale)
    torch.testing.assert_close(fold(scaled)[0][0].weight, fold(model)[0][0].weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@every_built
def test_a_weight_of_another_type_folds_to_a_certified_float32_one(kind, dtype):
    model = made(kind).to(dtype)
    folded, _ = fold(model)
    assert folded[0].weight.dtype == folded[0].bias.dtype == torch.float32
    assert model[0].weight.dtype == dtype
    torch.testing.assert_close(folded[0].weight, fold(made(kind))[0][0].weight, rtol=0.05, atol=0.01)
    x = np.random.default_rng(0).normal(size=(3, *model.input_shape)).astype(np.float32)
    np.testing.assert_allclose(verify.outputs_of(model, x), verify.outputs_of(folded, x), rtol=0.05, atol=0.05)


@every_built
def test_a_weight_that_is_not_contiguous_folds_to_the_same_weight_and_shares_nothing(kind):
    model, strided = made(kind), made(kind)
    strided[0].weight = nn.Parameter(model[0].weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    strided[0].rederive()
    folded, _ = fold(strided)
    torch.testing.assert_close(folded[0].weight, fold(model)[0][0].weight, rtol=1e-6, atol=1e-7)
    bias = strided[0].bias.detach().clone()
    with torch.no_grad():
        folded[0].bias.add_(1)
    assert torch.equal(strided[0].bias, bias)


@pytest.mark.parametrize(("value", "why"), [(0.0, "is zero|defined"), (math.nan, "not finite|NaN|finite"), (math.inf, "finite")])
@every_built
def test_a_broken_weight_is_refused_by_name(kind, value, why):
    model = made(kind)
    with torch.no_grad():
        model[0].weight.fill_(value)
    with pytest.raises(FoldError, match=f"layer '0' cannot be folded: .*({why})"):
        fold(model)


def test_a_bias_that_is_not_finite_is_refused_by_name():
    model = made("conv1d")
    with torch.no_grad():
        model[0].bias.fill_(math.nan)
    with pytest.raises(FoldError, match="layer '0' cannot be folded: its bias is not finite"):
        fold(model)


def test_the_graph_of_a_border_holds_a_pad_and_one_convolution():
    model, _ = network((2, 5, 6), Conv2d(channels=4, padding=(1, 2), padding_mode="circular"))
    graph = to_onnx(fold(model)[0], classifier=True).graph
    assert [node.op_type for node in graph.node][2:4] == ["Pad", "Conv"]
    assert onnx.helper.get_node_attr_value(graph.node[2], "mode") == b"wrap"
