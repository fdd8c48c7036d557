"""Proved bounds of sigma, dense and convolution: the numbers that every promise of this product rests on. Never imports torch."""

from specnorm_core.convolution_bounds import conv_sigma_estimate, conv_sigma_upper, matricised_sigma_upper
from specnorm_core.dense_bounds import sigma_estimate, sigma_upper, stack_upper, up

__all__ = ["conv_sigma_estimate", "conv_sigma_upper", "matricised_sigma_upper", "sigma_estimate", "sigma_upper", "stack_upper", "up"]
