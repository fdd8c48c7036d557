import math
import warnings

import pytest

from specnorm_core.privacy import Privacy, epsilon, noise_multiplier

RUN = {"sample_rate": 0.04, "delta": 1e-5}


def opacus(kind, noise, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import create_accountant

        accountant = create_accountant(kind)
        accountant.history = [(noise, RUN["sample_rate"], steps)]
        return accountant.get_epsilon(RUN["delta"])


@pytest.mark.parametrize("kind", ["rdp", "prv"])
@pytest.mark.parametrize(("noise", "steps"), [(1.0, 200), (4.0, 1000)])
def test_epsilon_is_that_of_the_accountant_of_opacus(kind, noise, steps):
    assert epsilon(noise_multiplier=noise, steps=steps, accountant=kind, **RUN) == pytest.approx(opacus(kind, noise, steps), rel=1e-12)


def test_epsilon_grows_with_the_steps_and_the_rate_and_shrinks_with_the_noise_and_delta():
    base = epsilon(noise_multiplier=1.0, steps=100, **RUN)
    assert 0 < base < epsilon(noise_multiplier=1.0, steps=101, **RUN)
    assert base < epsilon(noise_multiplier=1.0, steps=100, sample_rate=0.05, delta=1e-5)
    assert base > epsilon(noise_multiplier=1.1, steps=100, **RUN)
    assert base > epsilon(noise_multiplier=1.0, steps=100, sample_rate=0.04, delta=1e-4)
    assert epsilon(noise_multiplier=1.0, steps=0, **RUN) == 0
    assert epsilon(noise_multiplier=0.0, steps=1, **RUN) == math.inf


def test_prv_is_not_above_rdp():
    options = {"noise_multiplier": 1.0, "steps": 300, **RUN}
    assert epsilon(accountant="prv", **options) < epsilon(accountant="rdp", **options)


def test_very_little_noise_is_answered_at_once_with_a_very_large_epsilon():
    assert epsilon(noise_multiplier=0.05, steps=100, accountant="prv", **RUN) > 1000


@pytest.mark.parametrize("target", [0.5, 8.0])
def test_a_target_is_kept_and_hardly_undershot(target):
    noise = noise_multiplier(target, steps=150, **RUN)
    assert 0.97 * target < epsilon(noise_multiplier=noise, steps=150, **RUN) <= target


def test_a_target_that_no_noise_reaches_is_refused():
    with pytest.raises(ValueError, match="no noise gives epsilon 1e-09"):
        noise_multiplier(1e-9, steps=100_000, **RUN)


def test_noise_or_target_are_given_and_not_both():
    for wrong in ({}, {"noise_multiplier": 1.0, "target_epsilon": 1.0}):
        with pytest.raises(ValueError, match="noise_multiplier or target_epsilon: one of the two"):
            Privacy(max_grad_norm=1.0, delta=1e-5, **wrong)


def test_a_delta_of_one_over_the_rows_is_refused():
    privacy = Privacy(max_grad_norm=1.0, delta=1e-3, noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"below one over the number of rows, 1/1000"):
        privacy.plan(rows=1000, batch_size=10, steps=10)
    plan = privacy.plan(rows=999, batch_size=10, steps=10)
    assert plan.sample_rate == 10 / 999
    assert plan.expected_rows == pytest.approx(10)
