"""Proved bounds of sigma, dense and convolution: the numbers that every promise of this product rests on. Never imports torch."""

from specnorm_core.convolution_bounds import conv_sigma_estimate, conv_sigma_upper, matricised_sigma_upper, prove_conv_sigma
from specnorm_core.deadline import Deadline
from specnorm_core.dense_bounds import Proved, prove_sigma, sigma_estimate, sigma_upper, stack_upper
from specnorm_core.roundoff import up

__all__ = [
    "Deadline",
    "Proved",
    "conv_sigma_estimate",
    "conv_sigma_upper",
    "matricised_sigma_upper",
    "prove_conv_sigma",
    "prove_sigma",
    "sigma_estimate",
    "sigma_upper",
    "stack_upper",
    "up",
]
