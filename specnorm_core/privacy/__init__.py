"""Differentially private training: our own step of DP-SGD, at about the price of one that is not private.

``clipped_sum`` is the sum of clipped per-sample gradients, ``set_gradients`` adds the noise, ``poisson`` draws the batch, ``epsilon`` and
``noise_multiplier`` are Opacus' accounting (extra ``privacy``). ``fit`` does all of it where ``Hyperparameters.privacy`` is set.
"""

from specnorm_core.privacy.accounting import epsilon, noise_multiplier
from specnorm_core.privacy.clipping import SLACK, NotPrivateError, check, clipped_sum
from specnorm_core.privacy.noise import Secure, Seeded, Source, poisson
from specnorm_core.privacy.options import Plan, Privacy
from specnorm_core.privacy.step import set_gradients

__all__ = [
    "SLACK", "NotPrivateError", "Plan", "Privacy", "Secure", "Seeded", "Source", "check", "clipped_sum", "epsilon",
    "noise_multiplier", "poisson", "set_gradients",
]  # fmt: skip
