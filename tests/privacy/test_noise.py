import numpy as np
import pytest
import torch
from scipy import stats

from specnorm_core.privacy import Secure, Seeded, poisson, set_gradients
from specnorm_core.privacy.noise import CHUNK, spacing, to_grid
from specnorm_core.privacy.strips import STRIPS, Draws, strips


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


@pytest.mark.parametrize("source", [Fixed(9), Seeded(9)], ids=["secure", "seeded"])
def test_the_variance_is_the_stated_one_to_a_thousandth(source):
    """Six deviations of the estimate from thirty million draws; noise of a variance 0.2 % too small is nearly eight below."""
    rounds, count, values = 15, 2_000_000, torch.empty(2_000_000)
    squares = 0.0
    for _ in range(rounds):
        source.fill(values, 2.5)
        squares += float(torch.dot(values, values)) / 2.5**2
    assert abs(squares - rounds * count) < 6 * np.sqrt(2 * rounds * count)


def test_secure_noise_is_the_draws_of_the_strips_rounded_to_the_grid_each_at_its_place():
    """Rewritten from the words: where a word says the place in a strip, that place; where it says none, a draw from beside the strips."""
    source, deviation, count = Fixed(11), 0.7, 2 * CHUNK + 4321
    found = torch.empty(count, dtype=torch.float64)
    source.fill(found, deviation)
    again = Fixed(11)
    word = np.concatenate([again.words(part) for part in (CHUNK, CHUNK, 4321)]).astype(np.int64)
    table, chosen, place = strips(), word % STRIPS, word / 2.0**64
    expected = deviation * (table.centre[chosen] + table.width[chosen] * place)
    elsewhere = chosen >= table.count
    expected[elsewhere] = Draws(again.words, deviation, 1).rare(np.count_nonzero(elsewhere))
    assert elsewhere.sum() > 50
    assert np.abs(found.numpy() - expected).max() <= spacing(deviation) / 2 * (1 + 1e-6)


def test_of_no_values_there_is_no_noise():
    source = Fixed(0)
    source.fill(torch.empty(0), 1.0)


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
