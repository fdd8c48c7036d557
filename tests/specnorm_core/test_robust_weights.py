"""Weights as they come: of any scale and storage, laid out anyhow, broken or empty. Each is right, or an error that names the layer."""

import warnings

import pytest
import torch
from torch import nn

import specnorm_core as sn
from specnorm_core import norms
from specnorm_core.norms import converge

LAYERS = {
    "linear": (lambda **o: sn.SpectralLinear(6, 5, **o), (6,)),
    "conv1d": (lambda **o: sn.SpectralConv1d(2, 3, 3, padding=1, input_size=6, padding_mode="circular", **o), (2, 6)),
    "conv2d": (lambda **o: sn.SpectralConv2d(2, 3, 3, padding=1, input_size=(4, 5), **o), (2, 4, 5)),
    "conv2d matricised": (lambda **o: sn.SpectralConv2d(2, 3, 3, norm="matricised", **o), (2, 4, 5)),
    "conv3d": (lambda **o: sn.SpectralConv3d(2, 2, 2, input_size=3, **o), (2, 3, 3, 3)),
    "convtranspose2d": (lambda **o: sn.SpectralConvTranspose2d(2, 3, 2, stride=2, input_size=(2, 3), **o), (2, 2, 3)),
    "embedding": (lambda **o: sn.SpectralEmbedding(6, 3, **o), None),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind, **options):
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    return build(**options), torch.tensor([0, 3, 3]) if shape is None else torch.randn(3, *shape)


def answer(layer, x):
    """The output, and the gradient of the weight, from the eager layer."""
    y = layer(x)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(y.dtype))
    return y.detach(), layer.weight.grad


def answer_through_func(layer, x):
    """The same through torch.func, where every layer takes the composite path."""
    y, pull = torch.func.vjp(lambda weight: torch.func.functional_call(layer, {"weight": weight}, (x,)), layer.weight.detach())
    torch.manual_seed(1)
    return y.detach(), pull(torch.randn_like(y))[0]


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])  # 8e-31 to 1.3e30; powers of two, so that rounding is none
@pytest.mark.parametrize("answer", [answer, answer_through_func], ids=["eager", "torch.func"])
@every_layer
def test_at_any_scale_the_output_is_the_same_and_the_gradient_scales_inversely(kind, answer, scale):
    layer, x = make(kind)
    y, gradient = answer(layer, x)
    scaled, _ = make(kind)
    with torch.no_grad():
        scaled.weight.mul_(scale)
    scaled.rederive()
    y_scaled, gradient_scaled = answer(scaled, x)
    torch.testing.assert_close(y_scaled, y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient_scaled * scale, gradient, rtol=1e-4, atol=1e-5)
    assert norms.sigma(scaled) <= norms.sigma_upper(scaled) < 4 * norms.sigma(scaled)
    assert norms.sigma(scaled) == pytest.approx(norms.sigma(layer) * scale, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_layer
def test_a_weight_stored_in_half_precision_has_its_sigma_in_float32(kind, dtype):
    layer, x = make(kind)
    low = make(kind)[0].to(dtype)
    low.rederive()
    low.set_pair(*layer.pair)  # a circular convolution's top singular value is repeated, and its pair one of many
    exact, gradient = answer(layer, x)
    y, half_gradient = answer(low, x.to(dtype) if x.is_floating_point() else x)
    assert y.dtype == half_gradient.dtype == dtype
    assert low.sigma().dtype == torch.float32
    assert {part.dtype for part in low.pair} == {torch.float32}
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(half_gradient.float(), gradient, rtol=0.1, atol=0.1 * float(gradient.abs().max()))
    assert norms.sigma(low) <= norms.sigma_upper(low)


@pytest.mark.parametrize("scale", [2.0**-13, 2.0**10])
@every_layer
def test_a_small_or_large_float16_weight_gives_the_same_layer(kind, scale):
    layer, x = make(kind)
    x = x.half() if x.is_floating_point() else x
    expected = layer.half().eval()(x).detach()
    with torch.no_grad():
        layer.weight.mul_(scale)
    torch.testing.assert_close(layer(x).detach(), expected, rtol=0.02, atol=0.02)


@every_layer
def test_a_weight_that_is_not_contiguous_gives_the_same_layer(kind):
    layer, x = make(kind)
    strided, _ = make(kind)
    strided.weight = nn.Parameter(layer.weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    strided.rederive()
    assert not strided.weight.is_contiguous()
    for a, b in zip(answer(strided, x), answer(layer, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert norms.sigma_upper(strided) == pytest.approx(norms.sigma_upper(layer), rel=1e-6)
    if x.ndim == 4:
        torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("value", "word"), [(0.0, "zero"), (float("nan"), "not finite"), (float("inf"), "not finite")])
@every_layer
def test_a_weight_that_is_zero_or_not_finite_is_refused_by_name_where_it_enters(kind, value, word):
    model, whole = nn.Sequential(nn.Identity(), make(kind)[0]), nn.Sequential(nn.Identity(), make(kind)[0])
    with torch.no_grad():
        model[1].weight.view(-1)[-1 if value else slice(None)] = value
    with pytest.raises(ValueError, match=f"layer '1'.*{model[1].kind} layer of shape .*{word}"):
        converge(model)
    with pytest.raises(ValueError, match=f"layer '1'.*{model[1].kind} layer of shape .*{word}"):
        whole.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=f"{model[1].kind} layer of shape .*{word}"):
        model.eval()(make(kind)[1])
    if value:
        with pytest.raises(ValueError, match="not finite"):
            norms.sigma_upper(model[1])
    else:
        assert norms.sigma_upper(model[1]) == 0.0


@pytest.mark.parametrize(
    "build",
    [
        lambda: sn.SpectralLinear(0, 3), lambda: sn.SpectralLinear(3, 0), lambda: sn.SpectralEmbedding(0, 3),
        lambda: sn.SpectralConv1d(2, 0, 3, input_size=4), lambda: sn.SpectralConv2d(0, 2, 3, input_size=4),
        lambda: sn.SpectralConvTranspose2d(2, 0, 3, input_size=4), lambda: sn.SpectralConv3d(2, 2, 0, input_size=4),
    ],
)  # fmt: skip
def test_an_empty_weight_is_refused(build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that there is nothing to initialise
        with pytest.raises(ValueError, match=r"layer of shape .* is empty|must be|positive"):
            build()


@every_layer
def test_an_empty_batch_gives_an_empty_output_and_no_gradient(kind):
    layer, x = make(kind)
    full = layer(x)
    y, gradient = answer(layer, x[:0])
    assert y.shape == (0, *full.shape[1:])
    assert not gradient.any()


def test_a_kernel_whose_every_effect_falls_outside_the_image_is_refused():
    layer = sn.SpectralConv2d(1, 1, 3, padding=1, input_size=1)
    with torch.no_grad():
        layer.weight[0, 0, 1, 1] = 0
    with pytest.raises(ValueError, match=r"conv2d layer of shape .*zero in all that it does"):
        layer.rederive()
    assert norms.sigma_upper(layer) < 1e-300
