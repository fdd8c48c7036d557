"""The closed forms against two definitions of a derivative: autograd through an SVD, and central differences, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specnorm_core import gradients

shapes = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**31))


def case(m, n, batch, seed):
    """A matrix with a leading singular value well apart from the second, its pair, inputs and output gradients."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731  # one line says it
    U, S, Vh = torch.linalg.svd(draw(m, n), full_matrices=False)
    S = torch.linspace(2.0, 0.5, len(S), dtype=torch.float64)
    return U @ torch.diag(S) @ Vh, U[:, 0], Vh[0], draw(batch, n), draw(batch, m)


def through_svd(function, weight):
    W = weight.clone().requires_grad_()
    function(W).backward()
    return W.grad


def central(function, weight, h=1e-6):
    """The derivative of a scalar function by central differences, in every entry."""
    out = torch.zeros_like(weight)
    for index in range(weight.numel()):
        step = torch.zeros(weight.numel(), dtype=weight.dtype)
        step[index] = h
        step = step.view_as(weight)
        out.view(-1)[index] = (function(weight + step) - function(weight - step)) / (2 * h)
    return out


def top(W):
    return torch.linalg.svdvals(W)[0]


def close(a, b, tolerance=1e-8):
    return float((a - b).norm()) <= tolerance * max(float(b.norm()), 1.0)


@pytest.mark.parametrize(
    ("formula", "function"),
    [
        (lambda W, u, v: gradients.sigma_gradient(u, v), top),
        (gradients.sigma_squared_gradient, lambda W: top(W) ** 2),
        (gradients.inverse_sigma_gradient, lambda W: 1 / top(W)),
    ],
    ids=["sigma", "sigma squared", "1 / sigma"],
)
@settings(max_examples=25, deadline=None)
@given(shapes)
def test_the_derivatives_of_sigma_are_those_of_the_top_singular_value(formula, function, shape):
    W, u, v, *_ = case(*shape)
    value = formula(W, u, v)
    assert close(value, through_svd(function, W))
    assert close(value, central(function, W))


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_the_full_gradient_is_that_of_the_loss_through_an_svd(shape):
    W, u, v, x, g = case(*shape)

    def loss(weight):
        return (g * (x @ weight.T / top(weight))).sum()

    value = gradients.full(W, x, g, u, v)
    assert close(value, through_svd(loss, W))
    assert close(value, central(loss, W))
    assert abs(float((value * W).sum())) <= 1e-9 * float(g.norm() * x.norm())  # the layer does not change when W is scaled


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_the_full_jacobian_is_that_of_the_layer_through_an_svd(shape):
    W, u, v, x, _ = case(*shape)
    expected = torch.autograd.functional.jacobian(lambda weight: weight @ x[0] / top(weight), W)
    assert close(gradients.full_jacobian(W, x[0], u, v), expected)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_the_simplified_gradient_holds_sigma_constant(shape):
    W, u, v, x, g = case(*shape)
    constant = top(W)
    expected = through_svd(lambda weight: (g * (x @ weight.T / constant)).sum(), W)
    assert close(gradients.simplified(W, x, g, u, v), expected)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_per_sample_gradients_are_those_of_batches_of_one_and_sum_to_the_batch(shape):
    W, u, v, x, g = case(*shape)
    for whole, each in ((gradients.full, gradients.full_per_sample), (gradients.simplified, gradients.simplified_per_sample)):
        samples = each(W, x, g, u, v)
        for b in range(len(x)):
            assert close(samples[b], whole(W, x[b : b + 1], g[b : b + 1], u, v))
        assert close(samples.sum(dim=0), whole(W, x, g, u, v))


def test_the_seed_s_correction_term_is_no_gradient():
    """The text's ``-u v' * W x / s^2`` contains no output gradient: where the shapes happen to broadcast it is far off."""
    W, u, v, x, g = case(5, 5, 5, 0)
    s = gradients.sigma(W, u, v)
    main = torch.einsum("bi,bj->bij", g, x) / s
    seed = (main - torch.outer(u, v) * (W @ x.T) / s**2).sum(dim=0)
    exact = gradients.full(W, x, g, u, v)
    assert float((seed - exact).norm() / exact.norm()) > 0.1
    assert float((gradients.simplified(W, x, g, u, v) - exact).norm() / exact.norm()) > 0.01


@pytest.mark.parametrize("mode", ["full", "simplified"])
@settings(max_examples=20, deadline=None)
@given(shapes, st.sampled_from([(), (3,), (2, 2)]), st.sampled_from([1.0, 0.7]))
def test_the_samplers_give_the_gradients_of_micro_batches_of_one(mode, shape, positions, target):
    import specnorm_core as sn

    m, n, batch, seed = shape
    torch.manual_seed(seed)
    layer = sn.SpectralLinear(n, m, gradient_mode=mode, target=target).double()
    x = torch.randn(batch, *positions, n, dtype=torch.float64)
    g = torch.randn(batch, *positions, m, dtype=torch.float64)
    found = getattr(gradients, f"{mode}_sampler")(layer, [x], g)
    assert set(found) == set(layer.parameters())
    for b in range(batch):
        layer.zero_grad()
        layer(x[b : b + 1]).backward(g[b : b + 1])
        for parameter, samples in found.items():
            assert samples.shape == (batch, *parameter.shape)
            assert close(samples[b], parameter.grad, 1e-9)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_the_gradient_of_the_input_is_the_same_in_both_modes(shape):
    W, u, v, x, g = case(*shape)
    x = x.requires_grad_()
    (g * (x @ W.T / top(W))).sum().backward()
    assert close(gradients.input_gradient(W, g, u, v), x.grad)
    # lam = <g, y_hat> is <dL/dx, x>: nothing of the forward pass is needed for it.
    assert float((x.grad * x).sum().detach()) == pytest.approx(float(((g * (x @ W.T)).sum() / top(W)).detach()), rel=1e-9, abs=1e-12)


def test_the_correction_s_share_does_not_change_when_the_weight_is_scaled():
    """ "sigma is about 1, so the term is small" is wrong: power iteration normalises W / s, never W."""
    W, u, v, x, g = case(6, 5, 3, 1)
    shares = []
    for factor in (0.01, 1.0, 100.0):
        exact, dropped = (function(W * factor, x, g, u, v) for function in (gradients.full, gradients.simplified))
        shares.append(float((exact - dropped).norm() / dropped.norm()))
    assert shares == pytest.approx([shares[0]] * 3, rel=1e-9)
    assert shares[0] > 0.01


@settings(max_examples=10, deadline=None)
@given(shapes)
def test_a_pair_that_is_left_out_is_the_leading_one(shape):
    W, u, v, x, g = case(*shape)
    for function, arguments in (
        (gradients.sigma, ()), (gradients.sigma_squared_gradient, ()), (gradients.inverse_sigma_gradient, ()),
        (gradients.full_jacobian, (x[0],)), (gradients.input_gradient, (g,)), (gradients.full, (x, g)), (gradients.simplified, (x, g)),
        (gradients.full_per_sample, (x, g)), (gradients.simplified_per_sample, (x, g)),
    ):  # fmt: skip
        assert close(function(W.requires_grad_(), *arguments).detach(), function(W.detach(), *arguments, u, v), 1e-10)
