import numpy as np
import pytest
import torch
from scipy import stats

from specnorm_core.privacy import Secure, Seeded, add_noise, poisson, set_gradients
from specnorm_core.privacy.noise import GRID

SOURCES = {"secure": Secure, "seeded": lambda: Seeded(7)}


class Fixed(Secure):
    """The secure source's arithmetic on words that are the same every time."""

    def __init__(self, seed):
        self._words = np.random.default_rng(seed)

    def words(self, count):
        return self._words.integers(2**64, size=count, dtype=np.uint64)


@pytest.mark.parametrize("source", [Fixed(3), Seeded(3)], ids=["secure", "seeded"])
def test_noise_is_normal_with_the_stated_deviation_and_independent_entries(source):
    drawn = add_noise(torch.zeros(100_001), 2.5, source).double().numpy() / 2.5
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    cells = stats.norm.ppf(np.linspace(0, 1, 65))
    counts, _ = np.histogram(drawn, cells)
    assert stats.chisquare(counts).pvalue > 1e-3
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], len(drawn))
    assert low < np.sum(drawn**2) < high
    for lag in (1, 16_384, 50_000):  # neighbours, the two halves of a pair, and afar
        assert abs(np.mean(drawn[lag:] * drawn[:-lag])) < 4 / np.sqrt(len(drawn) - lag)


def test_the_two_values_of_a_pair_are_independent_in_angle_and_radius():
    drawn = add_noise(torch.zeros(2**15), 1.0, Fixed(5)).double().numpy()
    a, b = drawn[: 2**14], drawn[2**14 :]
    assert stats.kstest(np.arctan2(b, a), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3
    assert stats.kstest(a**2 + b**2, "chi2", args=(2,)).pvalue > 1e-3


def test_the_tails_reach_beyond_what_float32_uniforms_would_allow():
    class Rare(Secure):
        def words(self, count):
            return np.ones(count, dtype=np.uint64)  # radius words of one: a chance of 2^-63

    drawn = add_noise(torch.zeros(4), 1.0, Rare())
    assert float(drawn.abs().max()) > 9.0
    assert torch.isfinite(drawn).all()


def test_what_the_secure_source_releases_lies_on_a_grid_whatever_the_sum_was():
    for sums in (torch.zeros(5000), torch.rand(5000) * 1e-3, torch.full((5000,), 1 / 3)):
        released = add_noise(sums.clone(), 0.9, Fixed(1)).double()
        small = released[released.abs() < 2]  # larger ones are rounded further, to float32
        assert torch.equal(small / GRID, (small / GRID).round())
        assert len(small) > 4000


@pytest.mark.parametrize("name", SOURCES)
def test_noise_is_added_to_the_values(name):
    values = torch.full((300, 200), 5.0)
    found = add_noise(values, 0.5, SOURCES[name]())
    assert found.data_ptr() == values.data_ptr()
    assert float(found.mean()) == pytest.approx(5.0, abs=5 * 0.5 / np.sqrt(60_000))
    assert float(found.std()) == pytest.approx(0.5, rel=0.02)


def test_the_secure_source_never_repeats_itself_and_the_seeded_one_does():
    zeros = torch.zeros(64)
    assert not torch.equal(add_noise(zeros.clone(), 1.0, Secure()), add_noise(zeros.clone(), 1.0, Secure()))
    assert torch.equal(add_noise(zeros.clone(), 1.0, Seeded(1, 2)), add_noise(zeros.clone(), 1.0, Seeded(1, 2)))
    assert not torch.equal(add_noise(zeros.clone(), 1.0, Seeded(1, 2)), add_noise(zeros.clone(), 1.0, Seeded(1, 3)))


@pytest.mark.parametrize("rate", [0.01, 0.3])
@pytest.mark.parametrize("source", [Fixed(2), Seeded(2)], ids=["secure", "seeded"])
def test_every_row_is_drawn_with_the_stated_rate_by_itself(source, rate):
    rounds, rows = 400, 500
    drawn = np.zeros((rounds, rows))
    for at in range(rounds):
        drawn[at, poisson(rows, rate, source).numpy()] = 1
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], rounds * rows, rate)
    assert low < drawn.sum() < high
    sizes = drawn.sum(axis=1)  # binomial, as a batch of fixed size would not be
    expected = rows * rate * (1 - rate)
    assert 0.75 * expected < sizes.var() < 1.3 * expected
    pairs = np.corrcoef(drawn[:, :40].T)[np.triu_indices(40, 1)]
    assert abs(pairs.mean()) < 5 / np.sqrt(rounds * len(pairs))


def test_a_rate_of_one_draws_every_row_and_one_near_zero_none():
    assert torch.equal(poisson(5, 1.0, Seeded(0)), torch.arange(5))
    assert len(poisson(1000, 1e-12, Seeded(0))) == 0


def test_an_empty_batch_steps_by_noise_alone():
    model = torch.nn.Linear(40, 50)
    set_gradients(model, None, max_grad_norm=2.0, noise_multiplier=3.0, expected_rows=4.0, source=Seeded(0))
    assert float(model.weight.grad.std()) == pytest.approx(2.0 * 3.0 / 4.0, rel=0.1)
    assert model.bias.grad.abs().max() > 0


def test_the_sum_is_divided_by_the_expected_size_of_the_batch_not_by_its_own():
    model = torch.nn.Linear(3, 2)
    x = torch.randn(5, 3)
    whole = {}
    for expected in (1.0, 8.0):
        options = {"max_grad_norm": 1e6, "noise_multiplier": 1e-12, "source": Seeded(0)}
        set_gradients(model, lambda: model(x).sum(dim=1), expected_rows=expected, **options)
        whole[expected] = model.weight.grad.clone()
    torch.testing.assert_close(whole[8.0] * 8, whole[1.0])
    torch.testing.assert_close(whole[1.0][0], x.sum(dim=0))
