"""Normal draws from strips under the density: the tables against the density, both kinds of draw against their own distribution."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from specnorm_core.privacy.strips import STRIPS, Draws, density, strips


def words(seed):
    generator = np.random.default_rng(seed)
    return lambda count: generator.integers(2**64, size=count, dtype=np.uint64)


def constant(*values):
    return lambda count: np.resize(np.array(values, dtype=np.uint64), count)


def edges():
    """Return where the strips of the positive side begin, and where the last one ends."""
    table = strips()
    return np.append(table.rest[:, 0][:-1], table.rest[-1, 0])


def test_the_density_is_that_of_the_standard_normal_distribution():
    x = np.linspace(-9, 9, 1001)
    np.testing.assert_allclose(density(x), stats.norm.pdf(x), rtol=1e-13)


def test_strips_lie_side_by_side_on_both_sides_of_zero_and_under_the_density():
    table, side = strips(), edges()
    n = table.count // 2
    assert table.count < STRIPS
    for sign, part in ((1, slice(0, n)), (-1, slice(n, 2 * n))):
        np.testing.assert_allclose(sign * table.centre[part], (side[1:] + side[:-1]) / 2, rtol=1e-13)
        np.testing.assert_allclose(table.width[part], np.diff(side), rtol=1e-13)
    height = 1 / (STRIPS * np.diff(side))
    np.testing.assert_allclose(table.rest[:-1, 2], height, rtol=1e-14)
    assert side[0] == 0
    assert (height <= density(side[1:]) * (1 + 1e-12)).all()  # the density falls: at the far end it is at its least


def test_what_the_strips_leave_over_is_the_mass_of_the_numbers_that_stand_for_none():
    """So that all draws together have the density itself: ``height + mass (density - height) / mass``."""
    table, side = strips(), edges()
    between = np.diff(ndtr(side)) - 1 / STRIPS
    assert (between > 0).all()
    mass = 2 * (between.sum() + ndtr(-side[-1]))
    assert mass == pytest.approx((STRIPS - table.count) / STRIPS, rel=1e-11)


def test_the_boxes_hold_what_is_between_strips_and_density_and_are_chosen_by_their_areas():
    table, side = strips(), edges()
    _, width, height, lacking = table.rest[:-1].T
    np.testing.assert_allclose(height + lacking, density(side[:-1]), rtol=1e-13)
    np.testing.assert_allclose(np.diff(table.shares, prepend=0)[:-1], width * lacking, rtol=1e-6)
    tail = side[-1]
    assert table.shares[-1] - table.shares[-2] == pytest.approx(stats.norm.pdf(tail) / tail, rel=1e-9)


def test_the_draws_from_beside_the_strips_have_the_distribution_of_what_is_left_over_there():
    """These are one in four hundred: by themselves, an error shows that would drown among the others."""
    side = edges()
    found = Draws(words(1), 2.5, 1).rare(400_000) / 2.5
    corners = np.concatenate([-side[:0:-1], side])
    inner = np.append(np.diff(ndtr(corners)) - 1 / STRIPS, 0)[:-1]
    cells = np.concatenate([[ndtr(-side[-1])], inner, [ndtr(-side[-1])]])
    counts, _ = np.histogram(found, np.concatenate([[-np.inf], corners, [np.inf]]))
    # A few neighbours at a time, so that every cell has some.
    groups = np.searchsorted(np.linspace(0, cells.sum(), 800), np.cumsum(cells))
    expected = np.bincount(groups, cells)
    expected, seen = expected[expected > 0], np.bincount(groups, counts)[expected > 0]
    assert stats.chisquare(seen, expected / expected.sum() * len(found)).pvalue > 1e-3
    beyond = np.abs(found[np.abs(found) > side[-1]])
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], len(found), 2 * cells[0] / cells.sum())
    assert low < len(beyond) < high
    assert stats.kstest(ndtr(-beyond) / ndtr(-side[-1]), "uniform").pvalue > 1e-3
    within = np.abs(found[np.abs(found) < side[-1]])
    at = np.searchsorted(side, within) - 1
    place = (within - side[at]) / np.diff(side)[at]
    # Between a strip and the density there is a triangle, but for a curvature of some thousandths: highest at the near end.
    assert place.mean() == pytest.approx(1 / 3, abs=0.005)
    assert abs(np.count_nonzero(found > 0) - len(found) / 2) < 4 * np.sqrt(len(found) / 4)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / np.sqrt(len(found))


@pytest.mark.parametrize("strip", [0, 1, 2042, 2043, 4085])
def test_the_places_in_a_strip_reach_from_one_end_of_it_to_the_other(strip):
    table = strips()
    half = np.uint64(2**63)
    ends = [
        half + np.uint64(strip),
        half - np.uint64(STRIPS - strip),
        np.uint64(strip),
    ]  # as signed words the least, the greatest, one near 0
    found, left = Draws(constant(*ends), 2.0, 3).common(3)
    centre, width = 2 * table.centre[strip], 2 * table.width[strip]
    np.testing.assert_allclose(found, [centre - width / 2, centre + width / 2, centre], rtol=1e-12, atol=1e-15)
    assert len(left) == 0


def test_the_numbers_that_stand_for_no_strip_are_left_and_no_others():
    table = strips()
    numbers = np.arange(STRIPS, dtype=np.uint64) + np.uint64(2**40)
    _, left = Draws(constant(*numbers), 1.0, STRIPS).common(STRIPS)
    assert left.tolist() == list(range(table.count, STRIPS))


def test_the_words_at_the_ends_give_draws_that_are_finite_and_no_further_out_than_the_grid_reaches():
    greatest, least = 2**64 - 1, 0
    for which, place in ((greatest, greatest), (greatest, least), (least, 2**63), (least, least)):
        draws = np.repeat(np.array([which, place, least], dtype=np.uint64), 10)  # at the lowest level, so that they are kept
        found = Draws(lambda count, draws=draws: np.resize(draws, count), 1.0, 1).rare(1)
        assert np.isfinite(found).all()
        assert (np.abs(found) > 14).all() == (which == place == greatest)
        assert np.abs(found).max() < 16  # float32 holds 16 deviations on the grid
