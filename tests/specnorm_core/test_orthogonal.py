import copy

import pytest
import torch
from torch import nn

import specnorm_core as sn
from specnorm_core.data import load
from specnorm_core.losses import margins
from specnorm_core.orthogonal import OrthogonalLinear, bjorck

SHAPES = [(5, 5), (3, 8), (8, 3), (1, 6), (6, 1), (1, 1)]


def skewed(m, n, **options):
    """A layer whose weight is well off the orthogonal ones, its pair fresh."""
    torch.manual_seed(0)
    layer = OrthogonalLinear(n, m, **options).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(m, n, dtype=torch.float64) + torch.eye(m, n, dtype=torch.float64) * 3)
    return layer.rederive(200)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_every_singular_value_of_the_effective_weight_is_one_and_it_is_the_polar_factor(shape, scale):
    layer = skewed(*shape)
    with torch.no_grad():
        layer.weight *= scale
    layer.rederive(200)
    u, _, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    effective = layer.orthonormal().detach()
    torch.testing.assert_close(torch.linalg.svdvals(effective), torch.ones(min(shape), dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(effective, u @ v, atol=1e-9, rtol=0)


def test_the_forward_pass_is_that_weight_and_changes_nothing():
    layer = skewed(4, 6, target=0.5).rederive(1)  # far from converged, so another step would show
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    before = [part.clone() for part in (*layer.pair, layer.weight, layer.bias)]
    once, again = layer(x), layer(x)
    assert torch.equal(once, again)
    torch.testing.assert_close(once, x @ (layer.orthonormal().T * 0.5) + layer.bias)
    assert all(torch.equal(a, b) for a, b in zip(before, (*layer.pair, layer.weight, layer.bias), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_the_iterations_and_has_no_part_along_the_weight(shape):
    layer = skewed(*shape)
    x = torch.randn(4, shape[1], dtype=torch.float64)

    def output(weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    layer.eval()  # the weight that is passed in is not the one whose changes are counted
    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(output, (weight,))
    (gradient,) = torch.autograd.grad(output(weight).square().sum() + output(weight).sum(), weight)
    assert abs(float((gradient * weight.detach()).sum())) < 1e-7 * float(gradient.norm() * weight.detach().norm()) + 1e-9


def test_far_from_orthogonal_the_gradient_passes_through_sigma_and_simplified_leaves_that_part_out():
    layer = skewed(4, 6, iterations=1).eval()
    weight, x = layer.weight.detach().clone().requires_grad_(), torch.randn(3, 6, dtype=torch.float64)

    def output(weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(output, (weight,))
    layer.gradient_mode = "simplified"
    assert not torch.autograd.gradcheck(output, (weight,), raise_exception=False)


def test_its_state_dict_is_that_of_the_plain_layer_and_starts_orthogonal():
    layer, plain = OrthogonalLinear(6, 4), nn.Linear(6, 4)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-6, rtol=0)
    plain.load_state_dict(layer.state_dict())
    other = OrthogonalLinear(6, 4)
    other.load_state_dict(plain.state_dict())
    x = torch.randn(3, 6)
    torch.testing.assert_close(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_no_iteration_count_lets_a_singular_value_exceed_one():
    s = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for iterations in (1, 2, 5, 12):
        assert float(torch.linalg.svdvals(bjorck(torch.diag(s), iterations))[0]) <= 1 + 1e-15


def test_bad_options_and_a_zero_weight_are_refused():
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        OrthogonalLinear(2, 2, iterations=0)
    layer = OrthogonalLinear(2, 2)
    with torch.no_grad():
        layer.weight.zero_()
    with pytest.raises(ValueError, match="is zero"):
        layer.rederive()


def polar(matrix):
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-3, 0.1, 30.0, 1e8])
def test_after_a_step_of_the_optimiser_the_weight_is_orthonormal_again_and_the_layer_computes_what_it_did(shape, size):
    layer = OrthogonalLinear(shape[1], shape[0]).double()
    torch.manual_seed(1)
    step = torch.randn(*shape, dtype=torch.float64)
    with torch.no_grad():
        layer.weight += step * size / step.norm()
    wanted = polar(layer.weight.detach())
    sn.power_iteration(nn.Sequential(layer))
    found = layer.orthonormal().detach()
    assert float(torch.linalg.svdvals(found)[0]) <= 1 + 1e-12
    if size < 1e8:
        torch.testing.assert_close(polar(layer.weight.detach()), wanted, atol=1e-7, rtol=0)
    if size < 1:  # after a step far beyond that, small singular values take a few more to come back
        torch.testing.assert_close(found, wanted, atol=1e-8, rtol=0)
    for _ in range(20):
        sn.power_iteration(nn.Sequential(layer))
    torch.testing.assert_close(layer.orthonormal().detach(), polar(layer.weight.detach()), atol=1e-7, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_an_orthonormal_weight_one_step_has_the_gradient_of_the_polar_factor(shape):
    layer = OrthogonalLinear(shape[1], shape[0], bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(polar(layer.weight))
    layer.rederive()
    x, g = torch.randn(4, shape[1], dtype=torch.float64), torch.randn(4, shape[0], dtype=torch.float64)
    layer(x).backward(g)
    weight = layer.weight.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad((x @ bjorck(weight, 30).T * g).sum(), weight)
    torch.testing.assert_close(layer.weight.grad, wanted, atol=1e-10, rtol=0)
    torch.testing.assert_close(layer(x), x @ layer.weight.T, atol=1e-12, rtol=0)


def test_a_weight_changed_behind_its_back_takes_all_the_iterations_again():
    layer = OrthogonalLinear(6, 4).double()
    with torch.no_grad():
        layer.weight += torch.randn(4, 6, dtype=torch.float64) * 0.3
    layer.eval()
    x = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close((layer(x) - layer.bias).detach().T, polar(layer.weight.detach()), atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def network():
    return sn.build(sn.preset("mlp-orthogonal", (64,), 10, shift=8.0, scale=0.125), seed=0)


def test_it_learns_the_digits_with_the_margin_loss(digits):
    rows, held_out = digits.split(0.2)
    model = network()
    options = sn.Hyperparameters(n_epochs=8, loss="margin", temperature=1.0, margin=1.0)
    records = list(sn.Fit(model, rows, options, validation=held_out))
    assert records[-1].accuracy > 0.93
    for layer in model:
        if isinstance(layer, OrthogonalLinear):
            values = torch.linalg.svdvals(layer.orthonormal().detach())
            torch.testing.assert_close(values, torch.ones_like(values), atol=1e-4, rtol=0)
    with torch.no_grad():
        assert (
            float((margins(model(torch.from_numpy(held_out.x)), torch.from_numpy(held_out.y)) > 0).double().mean()) == records[-1].accuracy
        )


def test_a_resumed_run_of_orthogonal_layers_ends_with_the_same_bits(digits):
    options = sn.Hyperparameters(n_epochs=1, loss="margin", margin=1.0, temperature=1.0)
    whole = sn.Fit(network(), digits, options)
    list(whole)
    first = sn.Fit(network(), digits, options)
    for record in first:
        if record.step == 11:
            break
    second = sn.Fit(network(), digits, options, resume=first.checkpoint())
    assert next(iter(second)).step == 12
    list(second)
    for (name, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
