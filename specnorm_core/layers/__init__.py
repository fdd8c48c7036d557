"""Layers whose weight is divided by its spectral norm: ``SpectralLinear``, ``SpectralEmbedding`` and the convolutions.

The forward pass changes nothing but a cache: (u, v) are neither parameter nor buffer, so the state dict is that of the plain layer; they
are derived again after a load, and in eval mode after any change of the weight, and refreshed by ``power_iteration`` (once per optimiser
step, by ``fit`` or ``attach``).
"""

from specnorm_core.layers.base import NORMS, UNATTACHED, Norm, SpectralLayer, choose
from specnorm_core.layers.convolution import SpectralConv1d, SpectralConv2d, SpectralConv3d, SpectralConvolution, SpectralConvTranspose2d
from specnorm_core.layers.dense import SpectralEmbedding, SpectralLinear

__all__ = [
    "NORMS", "UNATTACHED", "Norm", "SpectralConv1d", "SpectralConv2d", "SpectralConv3d", "SpectralConvTranspose2d", "SpectralConvolution",
    "SpectralEmbedding", "SpectralLayer", "SpectralLinear", "choose",
]  # fmt: skip
