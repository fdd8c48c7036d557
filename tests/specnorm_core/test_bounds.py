import itertools
import subprocess
import sys
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mpmath import mp

from specnorm_core import bounds, ceiling, convolution_bounds, dense_bounds, symbol_bounds
from specnorm_core.bounds import (
    Deadline,
    conv_sigma_estimate,
    conv_sigma_upper,
    matricised_sigma_upper,
    prove_conv_sigma,
    prove_sigma,
    sigma_estimate,
    sigma_upper,
)


def at_most(matrix, t):
    """Whether the norm of ``matrix`` is at most ``t``, in exact rational arithmetic: t^2 I - A'A has an LDL' with no negative pivot."""
    A = [[Fraction(float(entry)) for entry in row] for row in np.asarray(matrix, dtype=np.float64)]
    n = len(A[0])
    B = [[(Fraction(t) ** 2 if i == j else 0) - sum(row[i] * row[j] for row in A) for j in range(n)] for i in range(n)]
    for k in range(n):
        if B[k][k] < 0 or (B[k][k] == 0 and any(B[k][j] for j in range(k + 1, n))):
            return False
        for i in range(k + 1, n):
            factor = B[i][k] / B[k][k] if B[k][k] else 0
            for j in range(k + 1, n):
                B[i][j] -= factor * B[k][j]
    return True


@settings(max_examples=150, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(-1e3, 1e3, allow_subnormal=False)),
    st.integers(-60, 60),
)
def test_the_upper_bound_holds_in_exact_rational_arithmetic(matrix, exponent):
    matrix = np.ldexp(matrix, exponent)
    upper, estimate = sigma_upper(matrix), sigma_estimate(matrix)
    assert at_most(matrix, upper)
    assert estimate <= upper
    if estimate:
        assert not at_most(matrix, estimate * (1 - 1e-6))
        assert at_most(matrix.T, upper)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(-1e3, 1e3, allow_subnormal=False)),
    st.integers(-60, 60),
)
def test_the_bounds_enclose_the_singular_value_of_forty_digits(matrix, exponent):
    matrix = np.ldexp(matrix, exponent)
    with mp.workdps(40):
        exact = max(mp.svd_r(mp.matrix(matrix.tolist()), compute_uv=False))
        hair = exact * mp.mpf("1e-35")  # of the forty digits' own rounding
        assert exact - hair <= sigma_upper(matrix) <= exact * (1 + mp.mpf("1e-6"))
        assert exact * (1 - mp.mpf("1e-6")) <= sigma_estimate(matrix) <= exact * (1 + mp.mpf("1e-12"))


@pytest.mark.parametrize("seed", range(40))
def test_neither_bound_is_wrong_on_stored_float32_weights(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal(rng.integers(1, 13, size=2)).astype(np.float32)
    assert at_most(matrix, sigma_upper(matrix))
    assert at_most(matrix, sigma_estimate(matrix)) <= (sigma_estimate(matrix) >= np.linalg.norm(matrix.astype(float), 2) * (1 - 1e-12))


@pytest.mark.parametrize(
    "matrix",
    [
        np.random.default_rng(0).standard_normal((300, 200)),
        np.random.default_rng(1).standard_normal((120, 500)),
        np.linalg.qr(np.random.default_rng(2).standard_normal((256, 256)))[0],
        np.outer(np.arange(1.0, 200), np.arange(1.0, 130)),
        np.ones((150, 300)),
        np.diag(np.r_[1, 1 - 1e-12, np.linspace(0, 0.999, 200)]),
        np.eye(1),
    ],
    ids=["tall", "wide", "orthogonal", "rank one", "constant", "clustered", "one entry"],
)
def test_the_bounds_enclose_sigma_within_1e_9(matrix):
    exact = np.linalg.svd(matrix, compute_uv=False)[0]
    assert exact * (1 - 1e-9) <= sigma_estimate(matrix) <= exact * (1 + 1e-13)
    assert exact * (1 - 1e-13) <= sigma_upper(matrix) <= exact * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-6, 1.0, 1e30, 1e300])
def test_scale_does_not_matter(scale):
    matrix = np.random.default_rng(3).standard_normal((20, 30)) * scale
    exact = np.linalg.norm(matrix / scale, 2)
    assert exact * (1 - 1e-13) <= sigma_upper(matrix) / scale <= exact * (1 + 1e-9)
    assert sigma_estimate(matrix) <= sigma_upper(matrix)


def test_subnormal_and_overflowing_matrices_are_bounded_from_above():
    assert at_most(np.full((2, 2), 5e-324), sigma_upper(np.full((2, 2), 5e-324)))
    assert sigma_upper(np.full((2, 2), 1.7e308)) == np.inf
    assert at_most([[1.0, 5e-324]], sigma_upper([[1.0, 5e-324]]))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.int8])
def test_narrow_types_are_widened_exactly(kind):
    matrix = (np.random.default_rng(4).standard_normal((9, 7)) * 10).astype(kind)
    assert sigma_upper(matrix) == sigma_upper(matrix.astype(np.float64))
    assert at_most(matrix.astype(np.float64), sigma_upper(matrix))


def test_a_zero_matrix_has_norm_zero():
    assert sigma_upper(np.zeros((3, 4))) == sigma_estimate(np.zeros((3, 4))) == 0.0
    assert conv_sigma_upper(np.zeros((2, 3, 3, 3))) == conv_sigma_estimate(np.zeros((2, 3, 3, 3))) == 0.0


@pytest.mark.parametrize(
    "bad", [[[np.nan]], [[np.inf, 1.0]], np.zeros((0, 3)), np.zeros(3), np.zeros((2, 2, 2)), np.ones((2, 2), complex), [[2**60 + 1]]]
)
@pytest.mark.parametrize("bound", [sigma_upper, sigma_estimate])
def test_what_is_no_finite_real_matrix_is_refused(bad, bound):
    with pytest.raises(ValueError, match=r"finite|empty|dimensions|real|exact"):
        bound(bad)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.999, 1 - 1e-9])
def test_a_guess_that_is_too_low_is_never_believed(factor, monkeypatch):
    matrix = np.random.default_rng(5).standard_normal((40, 30))
    exact = np.linalg.norm(matrix, 2)
    honest = ceiling.leading_eigenvalue
    monkeypatch.setattr(ceiling, "leading_eigenvalue", lambda G, effort: factor * honest(G, effort))
    assert sigma_upper(matrix) >= exact * (1 - 1e-13)


@pytest.mark.parametrize("ones", [1, 4, 16, 64])
def test_what_a_long_sum_of_squares_loses_is_part_of_the_bound(ones, monkeypatch):
    monkeypatch.setattr(ceiling, "FIRST_MARGIN", 2.0**-52)  # so that nothing but the error terms covers it
    matrix = np.full((20000, 1), 2.0**-27)  # each square is half a unit in the last place of one, and vanishes beside it
    matrix[:ones] = 1.0
    assert at_most(matrix, sigma_upper(matrix))


def test_beyond_the_largest_size_the_norms_of_rows_and_columns_do(monkeypatch):
    monkeypatch.setattr(dense_bounds, "LARGEST", 10)
    matrix = np.random.default_rng(6).standard_normal((20, 20))
    assert np.linalg.norm(matrix, 2) <= sigma_upper(matrix) <= np.linalg.norm(matrix) * (1 + 1e-9)


def dense(kernel, size, stride, pads, dilation, *, groups=1, mode="zeros"):
    """The convolution as a matrix, window by window, written independently of the code under test."""
    out, inner, *taps = kernel.shape
    axes = len(taps)
    pixels = np.arange(np.prod(size)).reshape(size)
    words = {"zeros": {"mode": "constant", "constant_values": -1}, "circular": {"mode": "wrap"}, "replicate": {"mode": "edge"}}
    padded = np.pad(pixels, pads, **words.get(mode, {"mode": mode}))
    counts = [(padded.shape[a] - dilation[a] * (taps[a] - 1) - 1) // stride[a] + 1 for a in range(axes)]
    if min(counts) < 1:
        return None
    matrix = np.zeros((out, *counts, inner * groups, pixels.size))
    for o, place, tap in itertools.product(range(out), itertools.product(*map(range, counts)), itertools.product(*map(range, taps))):
        pixel = padded[tuple(p * s + t * d for p, s, t, d in zip(place, stride, tap, dilation, strict=True))]
        if pixel >= 0:
            first = o // (out // groups) * inner
            matrix[(o, *place, slice(first, first + inner), pixel)] += kernel[(o, slice(None), *tap)]
    return matrix.reshape(out * int(np.prod(counts)), -1)


def random_convolution(seed):
    rng = np.random.default_rng(seed)
    axes = int(rng.integers(1, 3))

    def draw(low, high):
        return tuple(int(d) for d in rng.integers(low, high, axes))

    groups = int(rng.choice([1, 1, 2]))
    kernel = rng.standard_normal((groups * int(rng.integers(1, 3)), int(rng.integers(1, 3)), *draw(1, 5))).astype(np.float32)
    pads = tuple(zip(draw(0, 3), draw(0, 3), strict=True))
    options = {"stride": draw(1, 4), "padding": pads, "dilation": draw(1, 3), "groups": groups}
    return kernel, draw(3, 8), options, str(rng.choice(["zeros", "zeros", "circular", "reflect", "replicate"]))


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("way", ["lags", "direct", "matrix"])
def test_convolution_bounds_enclose_the_norm_of_the_dense_operator(seed, way, monkeypatch):
    if way != "matrix":
        monkeypatch.setattr(convolution_bounds, "is_small", lambda K, geometry, size, most: False)
        monkeypatch.setattr(symbol_bounds, "worth_lags", lambda P, frequencies: way == "lags")
    kernel, size, options, mode = random_convolution(seed)
    matrix = dense(
        kernel.astype(np.float64), size, options["stride"], options["padding"], options["dilation"], groups=options["groups"], mode=mode
    )
    if matrix is None:
        assert conv_sigma_estimate(kernel, input_size=size, padding_mode=mode, **options) == 0.0
        return
    exact = np.linalg.norm(matrix, 2)
    upper = conv_sigma_upper(kernel, input_size=size, padding_mode=mode, **options)
    assert exact * (1 - 1e-13) <= upper <= 4 * exact
    if way == "matrix":
        assert upper <= exact * (1 + 1e-9)
    assert exact * (1 - 1e-6) <= conv_sigma_estimate(kernel, input_size=size, padding_mode=mode, **options) <= exact * (1 + 1e-13)
    if mode == "zeros":
        assert conv_sigma_upper(kernel, padding_mode=mode, **options) >= exact * (1 - 1e-13)


def test_without_a_size_the_bound_holds_for_every_size_and_is_within_a_percent():
    kernel = np.random.default_rng(7).standard_normal((3, 2, 3, 3))
    bound = conv_sigma_upper(kernel, padding=1)
    norms = [
        np.linalg.norm(dense(kernel, (n, n), (1, 1), ((1, 1), (1, 1)), (1, 1), mode=mode), 2)
        for n in (3, 5, 12)
        for mode in ("zeros", "circular")
    ]
    assert max(norms) <= bound
    assert bound <= 1.01 * conv_sigma_estimate(kernel, input_size=(48, 48), padding=1, steps=60)


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_for_every_size_covers_frequencies_between_those_of_its_grid(seed, monkeypatch):
    kernel = np.random.default_rng(seed).standard_normal((1, 1, 3))
    everywhere = conv_sigma_upper(kernel, input_size=(997,), padding=1, padding_mode="circular")
    monkeypatch.setattr(convolution_bounds, "GRIDS", {1: 3})
    monkeypatch.setattr(convolution_bounds, "young", lambda K, groups: np.inf)
    monkeypatch.setattr(convolution_bounds, "schur", lambda K, geometry: np.inf)
    assert everywhere <= conv_sigma_upper(kernel, padding=1) <= 3 * everywhere


def test_circular_padding_at_its_own_size_is_exact():
    kernel = np.random.default_rng(8).standard_normal((4, 3, 3, 3))
    for stride in (1, 2):
        exact = np.linalg.norm(dense(kernel, (6, 6), (stride, stride), ((1, 1), (1, 1)), (1, 1), mode="circular"), 2)
        assert conv_sigma_upper(kernel, input_size=(6, 6), padding=1, stride=stride, padding_mode="circular") == pytest.approx(
            exact, rel=1e-9
        )


def test_a_torus_of_the_image_size_would_not_bound_zero_padding():
    kernel = np.array([[[1.0, 0.0, 1.0]]])  # at n = 3 both taps of a window fall on different pixels, but cos(2 w) misses its peak
    kernel[0, 0, 2] = -1.0
    exact = np.linalg.norm(dense(kernel, (3,), (1,), ((1, 1),), (1,)), 2)
    at_own_size = conv_sigma_upper(kernel, input_size=(3,), padding=1, padding_mode="circular")
    assert conv_sigma_upper(kernel, input_size=(3,), padding=1) >= exact
    kernels = np.random.default_rng(9).standard_normal((60, 1, 1, 3))
    missed = 0
    for k in kernels:
        true = np.linalg.norm(dense(k, (3,), (1,), ((1, 1),), (1,)), 2)
        assert conv_sigma_upper(k, input_size=(3,), padding=1) >= true
        missed += conv_sigma_upper(k, input_size=(3,), padding=1, padding_mode="circular") < true
    assert missed > 0
    assert at_own_size > 0


def test_a_patch_embedding_is_as_tight_as_its_matrix():
    kernel = np.random.default_rng(10).standard_normal((8, 3, 4, 4))
    assert conv_sigma_upper(kernel, stride=4) == pytest.approx(matricised_sigma_upper(kernel), rel=1e-9)
    assert conv_sigma_upper(kernel, stride=4) >= np.linalg.norm(kernel.reshape(8, -1), 2)


def test_the_matricised_norm_is_not_the_operator_norm():
    kernel = np.ones((1, 1, 3, 3))
    assert matricised_sigma_upper(kernel) == pytest.approx(3.0)
    assert conv_sigma_upper(kernel, input_size=(32, 32), padding=1) > 8.9


def test_a_dear_convolution_gets_a_coarser_grid_that_still_bounds_it(monkeypatch):
    kernel = np.random.default_rng(11).standard_normal((3, 3, 3, 3))
    exact = conv_sigma_estimate(kernel, input_size=(24, 24), padding=1, steps=80)
    monkeypatch.setattr(convolution_bounds, "BUDGET", 1.0)
    bound, looser = prove_conv_sigma(kernel, input_size=(24, 24), padding=1)
    assert exact <= bound <= 1.2 * exact
    assert looser == "a grid of 8 x 8 frequencies, at most 17.16% above"


class Impatient(Deadline):
    """A time that is enough for the last of so many attempts alone."""

    attempts = 0

    def attempt(self):
        type(self).attempts -= 1
        return Deadline(0.0 if type(self).attempts > 0 else np.inf)


@pytest.mark.parametrize(("attempts", "looser"), [(1, ""), (2, "8 blocks of columns, one by one"), (3, "64 blocks of columns, one by one")])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_matrix_that_takes_too_long_is_proved_in_blocks_which_is_looser_and_said(attempts, looser, kind, monkeypatch):
    monkeypatch.setattr(dense_bounds, "CHUNKED", 1)
    monkeypatch.setattr(Impatient, "attempts", attempts)
    matrix = (np.random.default_rng(13).standard_normal((150, 70)) * 1e-20).astype(kind)
    exact = np.linalg.norm(matrix.astype(np.float64), 2)
    bound, why = prove_sigma(matrix, Impatient())
    assert exact * (1 - 1e-13) <= bound <= [1 + 1e-9, 2.5, 8][attempts - 1] * exact
    assert why == looser


def test_blocks_of_columns_add_up_in_squares(monkeypatch):
    monkeypatch.setattr(dense_bounds, "BLOCKS", (8,))
    matrix = np.ones((40, 24))  # each block attains its norm at the same vector: nothing less than all of them holds
    assert sigma_upper(matrix) == pytest.approx(np.sqrt(40 * 24), rel=1e-9)
    assert at_most(matrix, sigma_upper(matrix))


@pytest.mark.parametrize(
    ("attempts", "looser"), [(1, ""), (2, "a grid of 16 x 16"), (3, "a grid of 8 x 8"), (4, "norms of rows and columns")]
)
def test_a_convolution_that_takes_too_long_gets_what_is_cheaper_which_is_looser_and_said(attempts, looser, monkeypatch):
    monkeypatch.setattr(Impatient, "attempts", attempts)
    kernel = np.random.default_rng(14).standard_normal((3, 3, 3, 3))
    exact = conv_sigma_upper(kernel, input_size=(24, 24), padding=1)
    bound, why = prove_conv_sigma(kernel, input_size=(24, 24), padding=1, deadline=Impatient())
    assert exact <= bound <= 3 * exact
    assert why.startswith(looser)
    assert bool(why) == bool(looser)


def test_no_frequency_is_left_out_and_the_bound_is_the_same_on_any_number_of_cores(monkeypatch):
    monkeypatch.setattr(symbol_bounds, "ENTRIES", 1)
    monkeypatch.setattr(convolution_bounds, "SMALL", 0)
    for peak in range(25):
        kernel = np.cos(2 * np.pi * peak / 48 * np.arange(16)).reshape(1, 1, 16)
        found = set()
        for cores in (1, 2, 5):
            monkeypatch.setattr(symbol_bounds, "cores", lambda cores=cores: cores)
            found.add(conv_sigma_upper(kernel, input_size=(48,), padding_mode="circular"))
        exact = np.abs(np.fft.fft(kernel, 48)).max()
        assert len(found) == 1
        assert exact * (1 - 1e-12) <= found.pop() <= exact * (1 + 1e-6)


def test_no_time_at_all_is_enough_for_a_bound_and_an_estimate():
    rng = np.random.default_rng(15)
    matrix, kernel = rng.standard_normal((40, 30)), rng.standard_normal((2, 2, 3))
    bound, looser = prove_sigma(matrix, Deadline(0.0))
    assert sigma_estimate(matrix, Deadline(0.0)) <= np.linalg.norm(matrix, 2) <= bound
    assert looser == "norms of rows and columns"
    options = {"input_size": (300,), "padding": 1, "deadline": Deadline(0.0)}
    assert (
        conv_sigma_estimate(kernel, **options)
        <= conv_sigma_upper(kernel, input_size=(300,), padding=1)
        <= prove_conv_sigma(kernel, **options)[0]
    )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_kernel_does_not_matter(scale):
    kernel = np.random.default_rng(12).standard_normal((3, 2, 3)).astype(np.float32)
    scaled = (kernel * scale).astype(np.float32)
    assert conv_sigma_upper(scaled, input_size=(9,), padding=1) / scale == pytest.approx(
        conv_sigma_upper(kernel, input_size=(9,), padding=1), rel=1e-6
    )


@pytest.mark.parametrize(
    "options", [{"groups": 3}, {"stride": 0}, {"padding_mode": "mirror"}, {"input_size": (4,)}, {"padding": (1,)}, {"input_size": (0, 4)}]
)
def test_options_that_describe_no_convolution_are_refused(options):
    with pytest.raises(ValueError, match=r"groups|least 1|padding_mode is one of \['circular', 'reflect'|spatial axes"):
        conv_sigma_upper(np.ones((2, 2, 3, 3)), **options)


def test_the_bounds_load_no_torch():
    code = "import sys, specnorm_core.bounds, export.audit; assert not {'torch', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert bounds.up(1.0) > 1.0


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_matrix_that_is_too_large_for_float64_has_the_bounds_of_one_that_is_not(monkeypatch, shape, scale):
    monkeypatch.setattr(dense_bounds, "ENTRIES", 64 * 200)
    monkeypatch.setattr(dense_bounds, "MIRRORED", 64)
    A = (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)
    exact = np.linalg.svd(A.astype(np.float64), compute_uv=False)[0]
    whole = dense_bounds.sigma_upper(A), dense_bounds.sigma_estimate(A)
    monkeypatch.setattr(dense_bounds, "CHUNKED", 1)
    upper, lower = dense_bounds.sigma_upper(A), dense_bounds.sigma_estimate(A)
    assert lower <= exact * (1 + 1e-12) <= upper * (1 + 1e-12)
    assert (upper, lower) == pytest.approx(whole, rel=1e-5)
    assert upper <= exact * (1 + 1e-8)
    assert (
        dense_bounds.sigma_upper(np.zeros(shape, dtype=np.float32)) == dense_bounds.sigma_estimate(np.zeros(shape, dtype=np.float32)) == 0
    )
    A[3, 5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        dense_bounds.sigma_upper(A)


@pytest.mark.parametrize(("taps", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 3, 2)])
def test_the_estimate_on_a_smaller_image_is_below_the_norm_on_the_larger(taps, stride, padding):
    K = np.random.default_rng(taps).standard_normal((2, 2, taps)).astype(np.float32)
    options = {"stride": stride, "padding": padding}
    small = conv_sigma_estimate(K, input_size=(70,), **options)
    upper = conv_sigma_upper(K, input_size=(70,), **options)
    assert upper * 0.98 <= small <= upper
