import pytest
import torch
from torch import nn

import specnorm_core as sn
from specnorm_core.krylov import leading
from specnorm_core.norms import converge


def sigma_after(matrix, steps=20):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(matrix.shape[1], generator=generator, dtype=torch.float64).to(matrix.dtype)
    u, v = leading(lambda x: matrix @ x, lambda y: matrix.T @ y, start, steps)
    for part in (u, v):
        assert float(part.double().norm()) == pytest.approx(1, abs=1e-6)
    return float(u.double() @ matrix.double() @ v.double())


def true_sigma(matrix):
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (3, 7), (7, 3), (40, 40)])
def test_small_matrices_of_any_scale_converge_to_rounding(shape, scale):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    assert sigma_after(matrix * scale) / scale == pytest.approx(true_sigma(matrix), rel=1e-6)


def test_rank_one_and_repeated_singular_values_are_no_hindrance():
    torch.manual_seed(0)
    rank_one = torch.outer(torch.randn(9), torch.randn(8))
    assert sigma_after(rank_one) == pytest.approx(true_sigma(rank_one), rel=1e-6)
    orthogonal = torch.linalg.qr(torch.randn(30, 30))[0]
    assert sigma_after(orthogonal) == pytest.approx(1, rel=1e-6)


def few_rows(rank):
    matrix = torch.zeros(48, 64)
    matrix[:rank] = torch.randn(rank, 64)
    return matrix


LOW_RANK = {
    "few rows": few_rows,
    "few columns": lambda rank: few_rows(rank).T,
    "the same rows again": lambda rank: torch.randn(rank, 64).repeat(6, 1),
    "whole numbers": lambda rank: torch.randint(-2, 3, (48, rank)).float() @ torch.randint(-2, 3, (rank, 64)).float(),
    "blocks of ones": lambda rank: torch.block_diag(*[torch.ones(3, 4)] * rank),
    "a product": lambda rank: torch.randn(48, rank) @ torch.randn(rank, 64),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 5, 9, 15])
@pytest.mark.parametrize("kind", LOW_RANK)
def test_a_rank_below_the_number_of_steps_is_no_hindrance(kind, rank, dtype):
    torch.manual_seed(rank)
    matrix = LOW_RANK[kind](rank).to(dtype)
    assert sigma_after(matrix) == pytest.approx(true_sigma(matrix), rel=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: sn.SpectralConv1d(2, 3, 3, padding=1, input_size=8),
        lambda: sn.SpectralConv2d(2, 3, 3, padding=1, input_size=4),
        lambda: sn.SpectralConv3d(2, 3, 2, input_size=3),
        lambda: sn.SpectralConvTranspose2d(2, 3, 2, stride=2, input_size=3),
    ],
)
def test_a_kernel_of_ones_has_the_sigma_of_its_map(layer):
    layer = layer()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer.rederive()
    assert 1 <= sn.sigma_upper(layer) / sn.sigma(layer) < 1 + 1e-5


def test_more_steps_come_closer_and_never_above():
    torch.manual_seed(0)
    matrix = torch.randn(200, 300, dtype=torch.float64)
    found = [sigma_after(matrix, steps) for steps in (1, 3, 8, 15, 30)]
    assert found == sorted(found)
    assert found[0] < 0.9 * found[-1]
    assert found[-1] == pytest.approx(true_sigma(matrix), rel=1e-6)
    assert found[-1] <= true_sigma(matrix) * (1 + 1e-12)


def test_sigma_of_a_new_layer_is_close_to_its_bound():
    torch.manual_seed(0)
    layer = sn.SpectralLinear(784, 256)
    assert 1 <= sn.sigma_upper(layer) / sn.sigma(layer) < 1 + 1e-3


def test_a_loaded_layer_answers_as_the_converged_one_that_was_saved():
    torch.manual_seed(0)
    saved = nn.Sequential(sn.SpectralLinear(64, 64), nn.ReLU(), sn.SpectralLinear(64, 64))
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    converge(saved)
    loaded = nn.Sequential(sn.SpectralLinear(64, 64), nn.ReLU(), sn.SpectralLinear(64, 64))
    loaded.load_state_dict(saved.state_dict())
    x = torch.randn(5, 64)
    torch.testing.assert_close(loaded(x), saved(x), rtol=1e-5, atol=1e-5)
