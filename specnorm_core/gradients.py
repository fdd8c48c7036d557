"""The derivation as code: one function per step, in the corrected form; the oracle of all tests.

Notation: ``W (m, n)``; ``u (m)``, ``v (n)`` unit vectors; ``s = u' W v``; ``y_hat = W x / s`` without bias; ``g = dL/dy``. The two modes
differ in one term: ``full`` is the gradient of the loss, ``simplified`` holds sigma constant and is not. Miyato et al. 2018 (Spectral
normalization for GANs), equations 10 to 12, keep the term that ``simplified`` drops.

``pair`` is ``u, v``. Left out, it is the leading pair, by an SVD; that of a layer is given as in ``full(weight, x, g, *layer.pair)``.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from specnorm_core.layers import SpectralLinear

Activations = Tensor | list[Tensor]


def leading_pair(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leading ``u (m)``, ``v (n)`` of ``weight (m, n)``, by an SVD; they are constants, no gradient flows through them."""
    u, _, vh = torch.linalg.svd(weight.detach(), full_matrices=False)
    return u[:, 0], vh[0]


def sigma(weight: Tensor, *pair: Tensor) -> Tensor:
    """Return ``u' W v``, a scalar: the largest singular value at the leading pair, a lower bound of it at any other unit vectors."""
    u, v = pair or leading_pair(weight)
    return torch.dot(u, torch.mv(weight, v))


def sigma_gradient(u: Tensor, v: Tensor) -> Tensor:
    """Return ``d sigma / dW = u v'``, ``(m, n)``; one subgradient where the top singular value is repeated.

    Stewart 1990, Perturbation theory for the singular value decomposition; the functions below follow from it by the chain rule.
    """
    return torch.outer(u, v)


def sigma_squared_gradient(weight: Tensor, *pair: Tensor) -> Tensor:
    """Return ``d sigma^2 / dW = 2 sigma u v'``, ``(m, n)``."""
    u, v = pair or leading_pair(weight)
    return 2 * sigma(weight, u, v) * sigma_gradient(u, v)


def inverse_sigma_gradient(weight: Tensor, *pair: Tensor) -> Tensor:
    """Return ``d (1 / sigma) / dW = -u v' / sigma^2``, ``(m, n)``."""
    u, v = pair or leading_pair(weight)
    return -sigma_gradient(u, v) / sigma(weight, u, v) ** 2


def product_jacobian(weight: Tensor, x: Tensor) -> Tensor:
    """Return ``d (W x)_i / dW_jk = delta_ij x_k``, ``(m, m, n)``."""
    return torch.einsum("ij,k->ijk", torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device), x)


def full_jacobian(weight: Tensor, x: Tensor, *pair: Tensor) -> Tensor:
    """Return ``dy_i / dW_jk = (delta_ij x_k - y_hat_i u_j v_k) / s``, ``(m, m, n)``.

    The seed writes the second term as a product that does not conform; it is an outer product.
    """
    u, v = pair or leading_pair(weight)
    s = sigma(weight, u, v)
    y_hat = torch.mv(weight, x) / s
    return (product_jacobian(weight, x) - torch.einsum("i,j,k->ijk", y_hat, u, v)) / s


def input_gradient(weight: Tensor, g: Tensor, *pair: Tensor) -> Tensor:
    """Return ``dL/dx = G W / s``, ``(B, n)``, the same in both modes; ``g (B, m)``."""
    return (g @ weight) / sigma(weight, *pair)


def full(weight: Tensor, x: Tensor, g: Tensor, *pair: Tensor) -> Tensor:
    """Return the exact ``dL/dW = (G' X - Lam u v') / s`` with ``Lam = sum_b <g_b, y_hat_b>``; ``x (B, n)``, ``g (B, m)``."""
    u, v = pair or leading_pair(weight)
    s = sigma(weight, u, v)
    lam = (g * (x @ weight.T)).sum() / s
    return (g.T @ x - lam * torch.outer(u, v)) / s


def simplified(weight: Tensor, x: Tensor, g: Tensor, *pair: Tensor) -> Tensor:
    """Return ``G' X / s``: sigma held constant, which is *not* the gradient of the loss; ``x (B, n)``, ``g (B, m)``."""
    return (g.T @ x) / sigma(weight, *pair)


def full_per_sample(weight: Tensor, x: Tensor, g: Tensor, *pair: Tensor) -> Tensor:
    """Return ``(g_b x_b' - lam_b u v') / s`` for each sample, ``(B, m, n)``; its sum over b is :func:`full`."""
    u, v = pair or leading_pair(weight)
    s = sigma(weight, u, v)
    lam = (g * (x @ weight.T)).sum(dim=1) / s
    return (torch.einsum("bi,bj->bij", g, x) - torch.einsum("b,i,j->bij", lam, u, v)) / s


def simplified_per_sample(weight: Tensor, x: Tensor, g: Tensor, *pair: Tensor) -> Tensor:
    """Return ``g_b x_b' / s`` for each sample, ``(B, m, n)``; its sum over b is :func:`simplified`."""
    return torch.einsum("bi,bj->bij", g, x) / sigma(weight, *pair)


def full_sampler(module: "SpectralLinear", activations: Activations, backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return the exact per-sample gradients of a linear layer's parameters, as Opacus' grad samplers do.

    Args:
        module: the layer, with constraint ``unit`` and any target c (which multiplies the gradient).
        activations: its input ``(B, n)`` or ``(B, ..., n)``, or a list that begins with it; positions of one sample are summed over.
        backprops: ``dL/dy``, ``(B, m)`` or ``(B, ..., m)``.

    Raises:
        ValueError: the constraint is not ``unit``.
    """
    return _sample(module, activations, backprops, corrected=True)


def simplified_sampler(module: "SpectralLinear", activations: Activations, backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return per-sample gradients with sigma held constant; arguments as in :func:`full_sampler`."""
    return _sample(module, activations, backprops, corrected=False)


@torch.no_grad()
def _sample(module: "SpectralLinear", activations: Activations, backprops: Tensor, *, corrected: bool) -> dict[nn.Parameter, Tensor]:
    """``(c/s) (sum_t g_bt x_bt' - lam_b u v')`` with ``lam_b = sum_t <g_bt, W x_bt> / s``; t are the positions of sample b."""
    if module.constraint != "unit":
        raise ValueError(f"the derivation is of the constraint unit, W c / sigma; the layer has {module.constraint!r}")
    x = activations[0] if isinstance(activations, list) else activations
    x, g = x.reshape(len(x), -1, x.shape[-1]), backprops.reshape(len(x), -1, backprops.shape[-1])
    u, v = module.pair
    s = sigma(module.weight, u, v)
    weight = torch.einsum("bti,btj->bij", g, x)
    if corrected:
        lam = torch.einsum("bti,bti->b", g, x @ module.weight.T) / s
        weight = weight - torch.einsum("b,i,j->bij", lam, u, v)
    found: dict[nn.Parameter, Tensor] = {module.weight: weight * (module.target / s)}
    if module.bias is not None:
        found[module.bias] = g.sum(dim=1)
    return found
