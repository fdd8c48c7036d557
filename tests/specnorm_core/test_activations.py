import math

import pytest
import torch
from torch import nn

from specnorm_core.activations import CONSTANTS, FullSort, GroupSort, Householder, lipschitz

MADE = {
    FullSort: FullSort,
    GroupSort: lambda: GroupSort(3),
    Householder: lambda: Householder(12),
}
WITH_OPTIONS = [
    *(MADE.get(kind, kind)() for kind in CONSTANTS),
    GroupSort(2), GroupSort(4), nn.LeakyReLU(0.5), nn.LeakyReLU(-3.0), nn.ELU(2.5), nn.CELU(0.3), nn.GELU("tanh"),
    nn.Softplus(beta=4), nn.PReLU(12, 1.7),
]  # fmt: skip


def drawn(layer):
    if isinstance(layer, Householder):
        with torch.no_grad():
            layer.angle.uniform_(-4, 4)
    return layer.double()


@pytest.mark.parametrize("layer", WITH_OPTIONS, ids=repr)
def test_no_difference_quotient_and_no_jacobian_exceeds_the_constant(layer):
    torch.manual_seed(0)
    layer = drawn(layer)
    bound = lipschitz(layer)
    for scale in (0.1, 1.0, 10.0):
        a = torch.randn(2000, 12, dtype=torch.float64) * scale
        b = a + torch.randn_like(a) * 10 ** torch.empty(2000, 1, dtype=torch.float64).uniform_(-2, 1)
        quotient = (layer(a) - layer(b)).norm(dim=1) / (a - b).norm(dim=1)
        assert float(quotient.detach().max()) <= bound * (1 + 1e-9)
        for row in a[:20]:
            jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], row)
            assert float(torch.linalg.svdvals(jacobian)[0]) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("layer", WITH_OPTIONS, ids=repr)
def test_the_constant_is_attained_to_a_part_in_ten_thousand(layer):
    layer = drawn(layer)
    grid = torch.cat([torch.linspace(-12, 12, 240_001, dtype=torch.float64), torch.tensor([25.0, -1e-9], dtype=torch.float64)])
    if isinstance(layer, GroupSort | FullSort | Householder | nn.PReLU):
        x = torch.randn(12, dtype=torch.float64) * 3
        x[:3] = -x[:3].abs()
        attained = float(torch.linalg.svdvals(torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], x))[0])
    else:
        x = grid.requires_grad_()
        attained = float(torch.autograd.grad(layer(x).sum(), x)[0].abs().max())
    assert attained == pytest.approx(lipschitz(layer), rel=1e-4)


@pytest.mark.parametrize("layer", [GroupSort(2), GroupSort(3), GroupSort(12), FullSort(), Householder(12)], ids=repr)
def test_sorts_and_reflections_keep_the_norm_of_vectors_and_images(layer):
    layer = drawn(layer)
    x = torch.randn(5, 12, 3, 2, dtype=torch.float64)
    assert layer(x).shape == x.shape
    torch.testing.assert_close(layer(x).norm(dim=1), x.norm(dim=1))
    assert torch.equal(layer(x[:, :, 1, 0]), layer(x)[:, :, 1, 0])


def test_group_sort_of_all_features_is_full_sort_and_householder_starts_as_max_min():
    x = torch.randn(50, 12)
    assert torch.equal(GroupSort(12)(x), FullSort()(x))
    first, second = x.chunk(2, dim=1)
    torch.testing.assert_close(Householder(12)(x), torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1))


def test_householder_is_continuous_where_it_begins_to_reflect():
    layer = drawn(Householder(2))
    half = layer.angle.detach() / 2
    line = torch.stack([half.cos(), half.sin()], dim=1) * 7  # across v
    across = torch.stack([half.sin(), -half.cos()], dim=1)
    torch.testing.assert_close(layer(line + 1e-9 * across), layer(line - 1e-9 * across), atol=1e-8, rtol=0)


def test_what_has_no_constant_is_refused_by_name_and_bad_options_give_infinity():
    with pytest.raises(ValueError, match=r"no Lipschitz constant is known for Bilinear; known are CELU, ELU, FullSort"):
        lipschitz(nn.Bilinear(2, 2, 2))
    assert lipschitz(nn.Softplus(threshold=1)) == math.inf
    for call, words in (
        (lambda: GroupSort(1), "size must be at least 2"),
        (lambda: GroupSort(3)(torch.zeros(1, 4)), "4 features do not split into groups of 3"),
        (lambda: Householder(3), "must be even, got 3"),
        (lambda: Householder(4)(torch.zeros(1, 6)), "takes 4 features, got 6"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
