"""Every layer against the matrix of the plain PyTorch layer: sigma, output, gradient through an SVD, and the bound that is shown."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import specnorm_core as sn
from specnorm_core import bounds, norms
from specnorm_core.layers import SpectralConvolution
from specnorm_core.norms import converge, sigma_upper

CONVOLUTIONS = {
    1: (sn.SpectralConv1d, nn.Conv1d),
    2: (sn.SpectralConv2d, nn.Conv2d),
    3: (sn.SpectralConv3d, nn.Conv3d),
}
CASES = {
    "1-d": (1, 2, 3, 3, {"input_size": 9, "padding": 1}),
    "1-d strided, dilated, replicated": (
        1,
        2,
        3,
        3,
        {"input_size": (9,), "stride": 2, "dilation": 2, "padding": 2, "padding_mode": "replicate"},
    ),
    "1-d 1 x n": (1, 1, 1, 4, {"input_size": 4}),
    "1-d onto one channel": (1, 3, 1, 1, {"input_size": 5}),
    "2-d circular": (2, 2, 3, 3, {"input_size": (5, 4), "padding": 1, "padding_mode": "circular"}),
    "2-d reflected, two sides": (2, 2, 2, (3, 2), {"input_size": (5, 4), "padding": (2, 1), "padding_mode": "reflect"}),
    "2-d replicated, wide": (2, 2, 3, 3, {"input_size": (4, 3), "padding": 2, "padding_mode": "replicate"}),
    "2-d groups, stride, no bias": (2, 4, 6, 3, {"input_size": (5, 6), "groups": 2, "stride": (2, 1), "padding": 1, "bias": False}),
    "2-d strided circular": (2, 2, 2, 3, {"input_size": (5, 4), "padding": 1, "stride": 2, "padding_mode": "circular"}),
    "2-d depthwise, dilated": (2, 3, 3, 2, {"input_size": (5, 5), "groups": 3, "dilation": (2, 1)}),
    "3-d": (3, 2, 2, 2, {"input_size": (3, 4, 3), "padding": 1}),
    "3-d circular, strided": (3, 1, 2, 3, {"input_size": (3, 4, 3), "padding": 1, "stride": (1, 2, 1), "padding_mode": "circular"}),
    "3-d reflected": (3, 1, 2, 2, {"input_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "transposed": (0, 2, 3, 3, {"input_size": (4, 3), "padding": 1}),
    "transposed, strided, groups": (0, 4, 2, 3, {"input_size": (3, 3), "stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    "transposed, dilated, no bias": (0, 2, 2, (2, 3), {"input_size": (3, 2), "dilation": (1, 2), "stride": (3, 1), "bias": False}),
    "transposed, far output padding": (0, 2, 2, 2, {"input_size": (3, 3), "dilation": 3, "output_padding": 2}),
}


def build(axes, inner, out, kernel, options, **more):
    """A spectral layer in float64, and the plain layer of the same options."""
    torch.manual_seed(0)
    spectral, plain = CONVOLUTIONS[axes] if axes else (sn.SpectralConvTranspose2d, nn.ConvTranspose2d)
    layer = spectral(inner, out, kernel, **options, **more).double()
    return layer, plain(inner, out, kernel, **{key: value for key, value in options.items() if key != "input_size"}).double()


def matrix(layer, plain, weight):
    """The dense matrix of the plain layer with ``weight``: its columns are the outputs of the unit images."""
    size = (layer.in_channels, *layer.input_size)
    n = torch.Size(size).numel()
    images = torch.eye(n, dtype=torch.float64).reshape(n, *size)
    bias = {} if plain.bias is None else {"bias": torch.zeros_like(plain.bias)}
    return functional_call(plain, {"weight": weight, **bias}, images).reshape(n, -1).T


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sigma_is_the_norm_of_the_dense_matrix_and_the_bound_is_not_below_it(case):
    layer, plain = build(*case)
    converge(layer, tolerance=1e-12)
    exact = float(torch.linalg.svdvals(matrix(layer, plain, layer.weight.detach()))[0])
    assert float(layer.sigma()) == pytest.approx(exact, rel=1e-6)
    assert norms.sigma(layer) <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-13) <= sigma_upper(layer) <= 3 * exact


@pytest.mark.parametrize("constraint", ["unit", "cap"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradient_are_those_through_an_svd_of_the_dense_matrix(case, constraint):
    layer, plain = build(*case, constraint=constraint, target=0.5)
    left, _, right = torch.linalg.svd(matrix(layer, plain, layer.weight.detach()))
    u, v = layer.pair
    layer.set_pair(left[:, 0].reshape(u.shape), right[0].reshape(v.shape))
    x = torch.randn(2, layer.in_channels, *layer.input_size, dtype=torch.float64)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    weight = layer.weight.detach().clone().requires_grad_()
    sigma = torch.linalg.svdvals(matrix(layer, plain, weight))[0]
    bias = {} if layer.bias is None else {"bias": torch.zeros_like(layer.bias)}
    scale = 0.5 / sigma if constraint == "unit" else torch.clamp(0.5 / sigma, max=1)
    expected = functional_call(plain, {"weight": weight, **bias}, x) * scale
    expected.backward(g)
    offset = 0 if layer.bias is None else layer.bias.detach().view(-1, *[1] * layer.axes)
    torch.testing.assert_close(y, expected + offset, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_matricised_norm_is_that_of_pytorch_s_spectral_norm(case):
    axes, inner, out, kernel, options = case
    layer, plain = build(axes, inner, out, kernel, options, norm="matricised")
    converge(layer, tolerance=1e-14)
    parametrized = nn.utils.parametrizations.spectral_norm(plain, n_power_iterations=200)
    parametrized.weight = layer.weight.detach()
    parametrized.train()
    torch.testing.assert_close(parametrized.weight * layer.sigma(), layer.weight.detach(), rtol=1e-6, atol=1e-9)
    assert sigma_upper(layer) >= float(layer.sigma()) * (1 - 1e-12)
    x = torch.randn(1, inner, *[6] * (axes or 2), dtype=torch.float64)
    assert layer(x).isfinite().all()  # any size will do: this norm knows none


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_bound_of_a_drawn_convolution_holds(data):
    axes = data.draw(st.sampled_from([0, 1, 2]))
    each = st.integers(1, 3)
    size = tuple(data.draw(st.integers(2, 6)) for _ in range(axes or 2))
    options = {"stride": data.draw(each), "dilation": data.draw(st.integers(1, 2)), "padding": data.draw(st.integers(0, 3))}
    options |= {"input_size": size, "groups": data.draw(st.sampled_from([1, 2]))}
    if axes:
        options["padding_mode"] = data.draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    try:
        layer, plain = build(axes, 2, 2, data.draw(each), options)
    except ValueError as error:
        assert any(word in str(error) for word in ("fit", "wide", "leaves nothing", "zero in all"))  # noqa: PT017  # other errors fail
        assume(False)
    exact = float(torch.linalg.svdvals(matrix(layer, plain, layer.weight.detach()))[0])
    assert norms.sigma(layer) <= exact * (1 + 1e-12)
    assert sigma_upper(layer) >= exact * (1 - 1e-13)
    unsized = norms.operator_sigma_upper
    layer.input_size, known = None, layer.input_size
    assert unsized(layer, layer.weight, known) >= exact * (1 - 1e-13)
    try:
        assert unsized(layer, layer.weight) >= exact * (1 - 1e-13)
    except ValueError as error:
        assert "no bound for every size" in str(error)  # noqa: PT017  # other errors fail


def test_taps_that_meet_one_pixel_around_a_circle_count_together():
    """On a circle of two pixels, taps 0 and 2 read the same one, though a stride of 3 puts them in different places of a block."""
    kernel = np.ones((1, 1, 2))
    options = {"stride": 3, "dilation": 2, "padding": 1, "padding_mode": "circular"}
    assert bounds.conv_sigma_upper(kernel, **options) >= 2.0
    assert bounds.conv_sigma_upper(kernel, input_size=(2,), **options) >= 2.0
    wide = np.ones((600, 600, 2))  # too wide to be proved as a matrix
    assert bounds.conv_sigma_upper(wide, input_size=(2,), **options) >= 1200.0


def test_circular_padding_wider_than_the_window_shows_no_bound_without_a_size():
    layer = sn.SpectralConv1d(1, 1, 3, padding=4, padding_mode="circular", norm="matricised")
    with pytest.raises(ValueError, match="has no bound for every size"):
        norms.operator_sigma_upper(layer, layer.weight)


@pytest.mark.parametrize("layer", [sn.SpectralConv1d, sn.SpectralConv2d, sn.SpectralConv3d, sn.SpectralConvTranspose2d])
def test_an_input_of_another_size_and_options_that_fit_no_image_are_refused(layer):
    made = layer(2, 2, 3, padding=1, input_size=6)
    with pytest.raises(ValueError, match="set input_size to the size in use"):
        made(torch.randn(1, 2, *[5] * made.axes))
    with pytest.raises(ValueError, match=f"needs input_size, {made.axes} of them"):
        layer(2, 2, 3)
    with pytest.raises(ValueError, match="padding must be a whole number"):
        layer(2, 2, 3, padding="same", input_size=6)
    with pytest.raises(ValueError, match="stride must be a whole number"):
        layer(2, 2, 3, stride=0, input_size=6)
    with pytest.raises(ValueError, match="padding_mode must be"):
        layer(2, 2, 3, padding_mode="mirror", input_size=6)
    with pytest.raises(ValueError, match=r"does not fit|leaves nothing"):
        layer(2, 2, 3, input_size=1, padding=4 if issubclass(layer, sn.SpectralConvTranspose2d) else 0)


def test_a_border_wider_than_the_image_and_a_transposed_border_are_refused():
    with pytest.raises(ValueError, match="too wide"):
        sn.SpectralConv2d(1, 1, 3, padding=3, padding_mode="reflect", input_size=3)
    with pytest.raises(ValueError, match="too wide"):
        sn.SpectralConv2d(1, 1, 3, padding=4, padding_mode="circular", input_size=3)
    with pytest.raises(ValueError, match="must be zeros; got 'circular'"):
        sn.SpectralConvTranspose2d(1, 1, 3, padding_mode="circular", input_size=3)
    with pytest.raises(ValueError, match="output_padding must be below"):
        sn.SpectralConvTranspose2d(1, 1, 3, output_padding=1, input_size=3)


def test_a_kernel_of_rank_one_has_the_norm_of_its_matrix():
    layer = sn.SpectralConv2d(3, 4, 3, padding=1, input_size=(4, 5)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("o,i,a,b->oiab", *(torch.randn(n, dtype=torch.float64) for n in (4, 3, 3, 3))))
    converge(layer, tolerance=1e-15)
    exact = float(torch.linalg.svdvals(matrix(layer, nn.Conv2d(3, 4, 3, padding=1).double(), layer.weight.detach()))[0])
    assert float(layer.sigma()) == pytest.approx(exact, rel=1e-6)
    assert sigma_upper(layer) >= exact * (1 - 1e-13)


def test_an_embedding_looks_up_rows_divided_by_the_norm_of_the_table():
    layer = sn.SpectralEmbedding(7, 4, padding_idx=2, target=3.0).double()
    converge(layer, tolerance=1e-15)
    layer.refresh(3000)
    indices = torch.tensor([[0, 2, 6], [6, 1, 0]])
    g = torch.randn(2, 3, 4, dtype=torch.float64)
    y = layer(indices)
    y.backward(g)
    weight = layer.weight.detach().clone().requires_grad_()
    expected = nn.functional.embedding(indices, weight, 2) * 3 / torch.linalg.svdvals(weight)[0]
    expected.backward(g)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-5, atol=1e-8)
    assert torch.equal(layer.weight.grad[2], torch.zeros(4, dtype=torch.float64))
    assert sigma_upper(layer) >= float(torch.linalg.svdvals(weight.detach())[0]) * (1 - 1e-13)


def test_every_spectral_class_is_found_at_the_top_and_only_the_general_convolution_is_not():
    names = {name for name in sn.__all__ if name.startswith("SpectralConv")}
    assert names == {cls.__name__ for cls in SpectralConvolution.__subclasses__()}
