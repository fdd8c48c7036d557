import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import specnorm_core as sn
from specnorm_core.privacy import SLACK, NotPrivateError, clipped_sum


class Doubled(nn.Module):
    def forward(self, x):
        return x.mul_(2)  # in the place of what the layer before put out


def network(mode, dtype=torch.float64, *, constraint="unit", inplace=False):
    torch.manual_seed(0)
    between = Doubled() if inplace else nn.ReLU()
    layers = (sn.SpectralLinear(6, 8, gradient_mode=mode, constraint=constraint), between, nn.Linear(8, 7), nn.Tanh())
    return nn.Sequential(*layers, sn.SpectralLinear(7, 3, gradient_mode=mode)).to(dtype)


def batch(dtype=torch.float64, rows=9):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator, dtype=dtype), torch.randint(3, (rows,), generator=generator)


def row_losses(model, x, y):
    return F.cross_entropy(10 * model(x), y, reduction="none")


def by_micro_batches(model, x, y, bound, loss=row_losses):
    """The definition: one backward pass per row, clipped, summed."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = {parameter: torch.zeros_like(parameter) for parameter in parameters}
    norms = []
    for at in range(len(x)):
        found = torch.autograd.grad(loss(model, x[at : at + 1], y[at : at + 1]).sum(), parameters)
        norms.append(float(sum(part.square().sum() for part in found).sqrt()))
        for parameter, part in zip(parameters, found, strict=True):
            total[parameter] += part * min(1.0, bound * (1 - SLACK) / norms[-1])
    return total, norms


def length(total):
    return float(sum(part.double().square().sum() for part in total.values()).sqrt())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("constraint", ["unit", "cap"])
@pytest.mark.parametrize("mode", ["full", "simplified"])
def test_the_clipped_sum_is_the_sum_of_clipped_gradients_of_single_rows(mode, constraint, inplace):
    model = network(mode, constraint=constraint, inplace=inplace)
    x, y = batch()
    expected, norms = by_micro_batches(model, x, y, bound := 6.0)
    assert min(norms) < bound < max(norms)
    found = clipped_sum(model, lambda: row_losses(model, x, y), max_grad_norm=bound)
    assert found.keys() == expected.keys()
    for parameter, total in expected.items():
        torch.testing.assert_close(found[parameter], total, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("mode", ["full", "simplified"])
def test_convolutions_embeddings_and_sequences_are_clipped_by_their_own_rules(mode):
    torch.manual_seed(0)
    layers = (
        sn.SpectralConv2d(2, 3, 3, input_size=5, gradient_mode=mode),
        nn.ReLU(),
        nn.Flatten(),
        sn.SpectralLinear(27, 4, gradient_mode=mode),
    )
    model = nn.Sequential(*layers).double()
    x, y = torch.randn(5, 2, 5, 5, dtype=torch.float64), torch.randint(4, (5,))
    expected, norms = by_micro_batches(model, x, y, bound := 2.0)
    assert max(norms) > bound
    found = clipped_sum(model, lambda: row_losses(model, x, y), max_grad_norm=bound)
    for parameter, total in expected.items():
        torch.testing.assert_close(found[parameter], total, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["full", "simplified"])
def test_one_row_more_or_less_moves_the_sum_by_at_most_the_bound(mode, dtype):
    """Rows that an adversary would choose: parallel to u and v, huge, tiny, the same row many times over."""
    model = network(mode, dtype)
    _, v = model[0].pair
    x, y = batch(dtype, rows=40)
    x[:4] = v * torch.tensor([1e-12, 1.0, 1e4, 1e8], dtype=dtype)[:, None]
    x[4:8] = x[8]
    bound = 0.37

    def total(rows):
        return clipped_sum(model, lambda: row_losses(model, x[rows], y[rows]), max_grad_norm=bound)

    rows = torch.arange(len(x))
    whole = total(rows)
    changes = []
    for at in range(len(x)):
        without = total(rows[rows != at])
        changes.append(length({parameter: whole[parameter] - without[parameter] for parameter in whole}))
    assert max(changes) <= bound
    assert max(changes) >= bound * (1 - 2 * SLACK)  # and the bound is reached


def test_search_for_a_row_whose_clipped_gradient_is_too_long_finds_none():
    """Gradient ascent on the length of what one row contributes, where g is near u and x near v and rounding is at its worst."""
    from specnorm_core.privacy.dense import dense

    torch.manual_seed(0)
    worst = 0.0
    for trial in range(45):
        layer = sn.SpectralLinear(33, 21, bias=bool(trial % 2)).refresh(50)
        u, v = layer.pair
        near = 10.0 ** -(trial % 9)
        x, g = v + near * torch.randn(8, 33), u + near * torch.randn(8, 21)
        one = dense(layer, x, g, layer(x).detach())
        squares = one.squares()
        for at in range(8):
            weights, parts = np.zeros(8), []
            weights[at] = 1.0
            one.weighted_sum(weights, lambda _parameter, _rows, part, parts=parts: parts.append(float(part.double().square().sum())))
            true = sum(parts)
            worst = max(worst, float(true / squares[at]))
    assert worst <= 1 + 2e-3 * SLACK


def test_a_row_that_is_not_finite_contributes_nothing():
    model = network("full", torch.float32)
    x, y = batch(torch.float32)
    x[3] = torch.inf
    found = clipped_sum(model, lambda: row_losses(model, x, y), max_grad_norm=1.0)
    kept = torch.arange(len(x)) != 3
    expected = clipped_sum(model, lambda: row_losses(model, x[kept], y[kept]), max_grad_norm=1.0)
    for parameter, total in expected.items():
        torch.testing.assert_close(found[parameter], total)


def test_no_gradient_of_a_weight_is_formed_on_the_way_and_the_model_is_left_as_it_was():
    model = network("full")
    x, y = batch()
    clipped_sum(model, lambda: row_losses(model, x, y), max_grad_norm=1.0)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_frozen_parameters_count_neither_in_the_norm_nor_in_the_sum():
    model = network("full")
    model[0].weight.requires_grad_(False)
    model[4].requires_grad_(False)
    x, y = batch()
    expected, _ = by_micro_batches(model, x, y, 0.5)
    found = clipped_sum(model, lambda: row_losses(model, x, y), max_grad_norm=0.5)
    assert found.keys() == expected.keys()
    for parameter, total in expected.items():
        torch.testing.assert_close(found[parameter], total, rtol=2e-6, atol=1e-9)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return self.inner(self.inner(x))


class Functional(Twice):
    def forward(self, x):
        return F.linear(self.inner(x), self.inner.weight)


class Unused(Twice):
    def forward(self, x):
        return x @ x.new_ones(6, 3).requires_grad_()


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Twice(), "'inner' is used twice"),
        (Functional(), "'inner' reaches the loss by another way"),
        (Unused(), "'inner' takes no part in the loss"),
        (nn.Sequential(Own()), "layer '0': no rule .* Own"),
        (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), "'1' .BatchNorm1d. mixes the rows"),
        (nn.ReLU(), "no trainable layer"),
    ],
)
def test_what_has_no_per_sample_gradients_is_refused_by_name_and_left_as_it_was(model, sentence):
    x, y = torch.randn(4, 6), torch.randint(3, (4,))
    with pytest.raises(ValueError, match=sentence):
        clipped_sum(model, lambda: row_losses(model, x, y), max_grad_norm=1.0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_tied_layers_and_losses_that_are_no_rows_are_refused():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    x = torch.randn(4, 6)
    with pytest.raises(NotPrivateError, match=r"one per row, of shape \(B,\); got \(\)"):
        clipped_sum(model, lambda: model(x).sum(), max_grad_norm=1.0)
    model[1].weight = model[0].weight
    with pytest.raises(NotPrivateError, match="'0' and '1' share a parameter"):
        clipped_sum(model, lambda: model(x).sum(dim=1), max_grad_norm=1.0)
    with pytest.raises(ValueError, match="max_grad_norm must be a finite number above 0"):
        clipped_sum(model, lambda: model(x).sum(dim=1), max_grad_norm=0.0)
