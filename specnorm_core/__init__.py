"""Spectral-normalised networks: exact gradients, rigorous norms, training.

Names resolve on first use (PEP 562), so that ``import specnorm_core.bounds`` loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specnorm_core import activations, bounds, functional, gradients, losses, per_sample, privacy
    from specnorm_core.activations import FullSort, GroupSort, Householder
    from specnorm_core.architecture import Architecture, build, preset
    from specnorm_core.convert import ConversionWarning, load_torch_state_dict, plain, spectral_norm
    from specnorm_core.incoming import ConversionError
    from specnorm_core.layers import (
        SpectralConv1d,
        SpectralConv2d,
        SpectralConv3d,
        SpectralConvTranspose2d,
        SpectralEmbedding,
        SpectralLayer,
        SpectralLinear,
    )
    from specnorm_core.norms import attach, power_iteration, sigma, sigma_upper
    from specnorm_core.orthogonal import OrthogonalLinear
    from specnorm_core.training import DivergedError, Fit, Hyperparameters, StepRecord, fit

_HOME = {
    "Architecture": "architecture",
    "ConversionError": "incoming",
    "ConversionWarning": "convert",
    "DivergedError": "training",
    "Fit": "training",
    "FullSort": "activations",
    "GroupSort": "activations",
    "Householder": "activations",
    "Hyperparameters": "training",
    "OrthogonalLinear": "orthogonal",
    "SpectralConv1d": "layers",
    "SpectralConv2d": "layers",
    "SpectralConv3d": "layers",
    "SpectralConvTranspose2d": "layers",
    "SpectralEmbedding": "layers",
    "SpectralLayer": "layers",
    "SpectralLinear": "layers",
    "StepRecord": "training",
    "attach": "norms",
    "build": "architecture",
    "fit": "training",
    "load_torch_state_dict": "convert",
    "plain": "convert",
    "power_iteration": "norms",
    "preset": "architecture",
    "sigma": "norms",
    "sigma_upper": "norms",
    "spectral_norm": "convert",
}
_MODULES = ("activations", "bounds", "functional", "gradients", "losses", "per_sample", "privacy")

__all__ = [
    "Architecture", "ConversionError", "ConversionWarning", "DivergedError", "Fit", "FullSort", "GroupSort", "Householder",
    "Hyperparameters", "OrthogonalLinear", "SpectralConv1d", "SpectralConv2d", "SpectralConv3d", "SpectralConvTranspose2d",
    "SpectralEmbedding", "SpectralLayer", "SpectralLinear", "StepRecord", "activations", "attach", "bounds", "build", "fit", "functional",
    "gradients", "load_torch_state_dict", "losses", "per_sample", "plain", "power_iteration", "preset", "privacy", "sigma",
    "sigma_upper", "spectral_norm",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"specnorm_core.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"specnorm_core.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'specnorm_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
