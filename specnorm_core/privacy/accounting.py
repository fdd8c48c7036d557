"""What steps of the subsampled Gaussian mechanism cost, by Opacus' accountants."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import numpy as np

AccountantName = Literal["prv", "rdp"]
TIGHTER_BELOW = 50.0
"""The PRV accountant is asked where the RDP one says less: above, its tables take minutes, and nobody calls the result private."""


def epsilon(*, noise_multiplier: float, sample_rate: float, steps: int, delta: float, accountant: AccountantName = "rdp") -> float:
    """Return the epsilon that ``steps`` steps have spent at ``delta``, adding or removing one row.

    Args:
        noise_multiplier: standard deviation of the noise, in units of the clipping norm.
        sample_rate: probability with which each row is in a batch, by itself (Poisson sampling).
        steps: how many were begun.
        delta: probability, roughly, with which the guarantee may fail; far below one over the number of rows.
        accountant: ``rdp`` (Renyi differential privacy; Mironov et al. 2019) or ``prv`` (Gopi et al. 2021; tighter, seconds slower).

    Raises:
        ModuleNotFoundError: the extra ``privacy`` is not installed.
    """
    if steps == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    with _quiet():
        orders, rdp = _rdp(noise_multiplier, sample_rate)
        from opacus.accountants.analysis.rdp import get_privacy_spent  # noqa: PLC0415  # the extra takes seconds to import

        spent = float(get_privacy_spent(orders=orders, rdp=rdp * steps, delta=delta)[0])
        if accountant == "prv" and spent < TIGHTER_BELOW:
            spent = _prv(noise_multiplier, sample_rate, steps, delta)
    return spent


def noise_multiplier(target_epsilon: float, *, sample_rate: float, steps: int, delta: float, accountant: AccountantName = "rdp") -> float:
    """Return a noise multiplier with which ``steps`` steps spend at most ``target_epsilon`` (and hardly less) at ``delta``.

    Raises:
        ValueError: no noise is large enough.
        ModuleNotFoundError: the extra ``privacy`` is not installed.
    """

    def spent(noise: float) -> float:
        return epsilon(noise_multiplier=noise, sample_rate=sample_rate, steps=steps, delta=delta, accountant=accountant)

    low, high = 0.0, 1.0
    while spent(high) > target_epsilon:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"no noise gives epsilon {target_epsilon:g} at delta {delta:g} over {steps} steps: ask for a larger one")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > target_epsilon else (low, middle)
    return high


@lru_cache(maxsize=64)
def _rdp(noise_multiplier: float, sample_rate: float) -> tuple[list[float], np.ndarray]:
    """Return the orders and what one step costs at each; steps add up."""
    from opacus.accountants import RDPAccountant  # noqa: PLC0415  # the extra takes seconds to import
    from opacus.accountants.analysis.rdp import compute_rdp  # noqa: PLC0415  # as above

    orders: list[float] = list(RDPAccountant.DEFAULT_ALPHAS)
    return orders, np.asarray(compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders))


@lru_cache(maxsize=64)
def _prv(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    from opacus.accountants import PRVAccountant  # noqa: PLC0415  # the extra takes seconds to import

    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Opacus' advice (about its orders, and divisions that it means) from a user who cannot act on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
