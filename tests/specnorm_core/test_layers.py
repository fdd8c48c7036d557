import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.gradcheck import GradcheckError

import specnorm_core as sn
from specnorm_core import functional, gradients
from specnorm_core.norms import converge


def conv(mode="full", norm="operator", constraint="unit", target=1.0, **options):
    torch.manual_seed(0)
    size = (6, 5) if norm == "operator" else None
    layer = sn.SpectralConv2d(
        2, 4, 3, padding=1, input_size=size, gradient_mode=mode, norm=norm, constraint=constraint, target=target, **options
    )
    layer = layer.double()
    converge(layer, tolerance=1e-15)
    return layer


def dense(layer, size):
    """The matrix of a convolution: its columns are the images of the unit images."""
    n = layer.weight.shape[1] * layer.groups * size[0] * size[1]
    eye = torch.eye(n, dtype=torch.float64).reshape(n, -1, *size)
    return layer.convolve(eye, layer.weight.detach()).reshape(n, -1).T


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.sampled_from(["unit", "cap"]), st.sampled_from([0.3, 3.0]))
def test_the_fused_linear_layer_passes_gradcheck_twice_at_any_pair(m, n, batch, constraint, target):
    layer = sn.SpectralLinear(n, m, constraint=constraint, target=target).double()
    layer.rederive(2)  # far from converged: the formula is that of the function computed
    x = torch.randn(batch, n, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return functional.linear(x, weight, bias, *layer.pair, mode="full", constraint=constraint, target=target)

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(run, (x, layer.weight, layer.bias))


def test_simplified_is_not_the_gradient_and_fails_gradcheck():
    layer = sn.SpectralLinear(5, 4, gradient_mode="simplified").double()
    x = torch.randn(3, 5, dtype=torch.float64)

    def run(weight):
        return functional.linear(x, weight, None, *layer.pair, mode="simplified")

    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(run, (layer.weight,))


@pytest.mark.parametrize("mode", ["full", "simplified"])
@pytest.mark.parametrize("constraint", ["unit", "cap"])
def test_the_fused_and_the_composite_path_agree(mode, constraint):
    layer = sn.SpectralLinear(7, 5, gradient_mode=mode, constraint=constraint, target=0.4).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    options = {"mode": mode, "constraint": constraint, "target": 0.4}

    def fused(weight, bias):
        return functional.linear(x, weight, bias, *layer.pair, **options).square().sum()

    def composite(weight, bias):
        return functional.composite(x @ weight.T, gradients.sigma(weight, *layer.pair), bias, **options).square().sum()

    first = torch.autograd.grad(fused(layer.weight, layer.bias), (layer.weight, layer.bias))
    second = torch.autograd.grad(composite(layer.weight, layer.bias), (layer.weight, layer.bias))
    transformed = torch.func.grad(fused, argnums=(0, 1))(layer.weight.detach(), layer.bias.detach())
    for a, b, c in zip(first, second, transformed, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize("mode", ["full", "simplified"])
@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_a_linear_layer_s_gradient_is_the_closed_form_in_small_and_large_batches(mode, batch):
    layer = sn.SpectralLinear(16, 4, gradient_mode=mode).double()
    converge(layer, tolerance=1e-15)
    x, g = torch.randn(batch, 16, dtype=torch.float64), torch.randn(batch, 4, dtype=torch.float64)
    layer(x).backward(g)
    torch.testing.assert_close(layer.weight.grad, getattr(gradients, mode)(layer.weight.detach(), x, g, *layer.pair))
    torch.testing.assert_close(layer.bias.grad, g.sum(dim=0))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}], ids=str)
def test_an_operator_convolution_is_divided_by_the_norm_of_its_matrix(options):
    layer = conv(**options)
    exact = torch.linalg.svdvals(dense(layer, (6, 5)))[0]
    assert abs(float(layer.sigma() / exact) - 1) < 1e-6
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    expected = layer.convolve(x, layer.weight / exact) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_an_operator_convolution_s_full_gradient_is_that_through_an_svd():
    layer = conv()
    layer.refresh(4000)
    x, g = torch.randn(2, 2, 6, 5, dtype=torch.float64), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    layer(x).backward(g)
    weight = layer.weight.detach().clone().requires_grad_()
    eye = torch.eye(60, dtype=torch.float64).reshape(60, 2, 6, 5)
    sigma = torch.linalg.svdvals(layer.convolve(eye, weight).reshape(60, -1))[0]
    (layer.convolve(x, weight) / sigma).backward(g)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", ["operator", "matricised"])
def test_a_convolution_passes_gradcheck_in_both_norms(norm):
    layer = conv(norm=norm)
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.weight, layer.bias))


def test_the_matricised_norm_is_not_the_norm_of_the_convolution():
    layer = conv(norm="matricised")
    assert float(layer.sigma()) == pytest.approx(float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]), rel=1e-6)
    assert torch.linalg.svdvals(dense(layer, (6, 5)))[0] > 1.1 * layer.sigma()


@pytest.mark.parametrize("make", [lambda: sn.SpectralLinear(6, 4), conv], ids=["linear", "conv2d"])
def test_the_forward_pass_is_pure_and_the_state_is_that_of_the_plain_layer(make):
    layer = make().float().train()
    x = torch.randn(2, 6) if isinstance(layer, sn.SpectralLinear) else torch.randn(2, 2, 6, 5)
    before = [part.clone() for part in layer.pair]
    assert torch.equal(layer(x), layer(x))
    assert all(torch.equal(a, b) for a, b in zip(before, layer.pair, strict=True))
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    assert not list(layer.buffers())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"])
def test_a_copy_gives_the_same_answers(copier):
    layer, x = conv(), torch.randn(2, 2, 6, 5, dtype=torch.float64)
    assert torch.equal(copier(layer)(x), layer(x))


def test_u_and_v_are_derived_again_when_a_state_is_loaded():
    trained, fresh = sn.SpectralLinear(16, 8), sn.SpectralLinear(16, 8)
    fresh.load_state_dict(trained.state_dict())
    fresh.refresh(200)
    exact = torch.linalg.svdvals(trained.weight.detach())[0]
    assert abs(float(fresh.sigma() / exact) - 1) < 1e-5


def test_training_without_power_iteration_warns_once_with_the_line_that_mends_it():
    layer = sn.SpectralLinear(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="specnorm_core.attach"):
        layer(torch.randn(2, 4))
    attached = sn.attach(layer, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            layer(torch.randn(2, 4)).sum().backward()
            optimizer.step()
    attached.remove()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_any_scale_of_weight_gives_the_same_layer(scale):
    torch.manual_seed(1)
    layer, x = sn.SpectralLinear(12, 7, bias=False), torch.randn(3, 12)
    expected = layer(x)
    with torch.no_grad():
        layer.weight.mul_(scale)
    layer.rederive()
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("value", "word"), [(0.0, "zero"), (float("nan"), "not finite"), (float("inf"), "not finite")])
def test_a_weight_without_a_norm_is_refused_with_the_layer_s_name(value, word):
    model = nn.Sequential(sn.SpectralLinear(4, 4), sn.SpectralLinear(4, 3))
    with torch.no_grad():
        model[1].weight.fill_(value)
    with pytest.raises(ValueError, match=f"layer '1'.*{word}"):
        converge(model)


@pytest.mark.parametrize(("m", "n"), [(1, 9), (9, 1), (1, 1)])
def test_edge_shapes_have_norm_one(m, n):
    layer = sn.SpectralLinear(n, m, bias=False).double()
    converge(layer)
    effective = layer.eval()(torch.eye(n, dtype=torch.float64)).detach()
    assert float(torch.linalg.svdvals(effective)[0]) == pytest.approx(1.0, rel=1e-9)


def test_sigma_is_that_of_a_layer_a_tensor_or_an_array_and_of_nothing_else():
    layer = sn.SpectralLinear(5, 4)
    weight = layer.weight.detach()
    for of in (layer, weight, weight.numpy()):
        assert sn.sigma(of) <= float(torch.linalg.svdvals(weight.double())[0]) <= sn.sigma_upper(of) <= sn.sigma(of) * (1 + 1e-5)
    for function in (sn.sigma, sn.sigma_upper):
        with pytest.raises(TypeError, match="not of Linear"):
            function(nn.Linear(5, 4))


def test_bad_options_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="full, simplified; got 'half'"):
        sn.SpectralLinear(3, 3, gradient_mode="half")
    with pytest.raises(ValueError, match="needs input_size"):
        sn.SpectralConv2d(1, 1, 3)
    with pytest.raises(ValueError, match=r"sigma is that of inputs of size \(6, 5\), got \(5, 6\)"):
        conv()(torch.randn(1, 2, 5, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="target"):
        sn.SpectralLinear(3, 3, target=0.0)


def test_compile_and_vmap_and_autocast_run_the_layer():
    layer, x = sn.SpectralLinear(8, 6), torch.randn(5, 8)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)
