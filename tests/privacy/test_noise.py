import numpy as np
import pytest
import torch
from scipy import stats

from specnorm_core.privacy import Secure, Seeded, poisson, set_gradients
from specnorm_core.privacy.noise import spacing, to_grid


class Fixed(Secure):
    """The secure source's arithmetic on words that are the same every time."""

    def __init__(self, seed):
        self._words = np.random.default_rng(seed)

    def words(self, count):
        return self._words.integers(2**64, size=count, dtype=np.uint64)


def drawn(count, source, deviation=1.0):
    values = torch.empty(count)
    source.fill(values, deviation)
    return values.double().numpy()


@pytest.mark.parametrize("source", [Fixed(3), Seeded(3)], ids=["secure", "seeded"])
def test_noise_is_normal_with_the_stated_deviation_and_independent_entries(source):
    found = drawn(2**20 + 1, source, 2.5) / 2.5
    assert stats.kstest(found, "norm").pvalue > 1e-3
    cells = stats.norm.ppf(np.linspace(0, 1, 257))
    counts, _ = np.histogram(found, cells)
    assert stats.chisquare(counts).pvalue > 1e-3
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], len(found))
    assert low < np.sum(found**2) < high
    for lag in (1, 16_384, 2**15, 50_000):  # neighbours, the two halves of a pair, two chunks, and afar
        assert abs(np.mean(found[lag:] * found[:-lag])) < 4 / np.sqrt(len(found) - lag)
        assert abs(np.mean(found[lag:] ** 2 * found[:-lag] ** 2) - 1) < 4 * np.sqrt(8 / (len(found) - lag))


@pytest.mark.parametrize("source", [Fixed(8), Seeded(8)], ids=["secure", "seeded"])
def test_the_tails_are_as_heavy_as_they_must_be(source):
    found = drawn(2**22, source)
    for beyond in (2.5, 3.5, 4.25, 4.75):
        for side in (found, -found):
            low, high = stats.binom.ppf([1e-4, 1 - 1e-4], len(found), stats.norm.sf(beyond))
            assert low <= np.count_nonzero(side > beyond) <= high


def test_the_two_values_of_a_pair_are_independent_in_angle_and_radius():
    a, b = np.split(drawn(2**15, Fixed(5)), 2)
    assert stats.kstest(np.arctan2(b, a), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3
    assert stats.kstest(a**2 + b**2, "chi2", args=(2,)).pvalue > 1e-3


@pytest.mark.parametrize("word", [0, 1, 2**63, 2**64 - 1])
def test_the_words_at_the_ends_give_numbers_and_the_smallest_a_draw_far_out(word):
    class Rare(Secure):
        def words(self, count):
            return np.full(count, word, dtype=np.uint64)  # as a radius, 0 and 1 have a chance of some 2^-63

    found = drawn(4, Rare())
    assert np.isfinite(found).all()
    assert (np.abs(found).max() > 9.0) == (word in {0, 1, 2**64 - 1})
    assert np.abs(found).max() < 16  # else float32 would leave the grid


def test_noise_of_the_secure_source_lies_on_the_grid_in_float32_and_float64():
    for dtype in (torch.float32, torch.float64):
        values = torch.empty(2**17, dtype=dtype)
        Fixed(1).fill(values, 0.9)
        assert torch.equal((values.double() / spacing(0.9)).round() * spacing(0.9), values.double())
        assert len(values.unique()) > 0.9 * len(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_to_the_grid_is_to_the_nearest_point_however_large_the_value(dtype):
    step = 2.0**-9
    values = torch.cat([torch.linspace(-40, 40, 9999), torch.linspace(-(2.0**16), 2.0**16, 9999), torch.tensor([-1e9, 3e20])]).to(dtype)
    found = to_grid(values.clone(), step)
    assert torch.equal((found.double() / step).round() * step, found.double())
    assert bool(((found - values).abs() <= step / 2).all())


def test_the_secure_source_never_repeats_itself_and_the_seeded_one_does():
    assert not np.array_equal(drawn(64, Secure()), drawn(64, Secure()))
    assert np.array_equal(drawn(64, Seeded(1, 2)), drawn(64, Seeded(1, 2)))
    assert not np.array_equal(drawn(64, Seeded(1, 2)), drawn(64, Seeded(1, 3)))


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
