"""The derivation as code: one function per step, in the corrected form; the oracle of all tests.

Notation: ``W (m, n)``; ``u (m)``, ``v (n)`` unit vectors; ``s = u' W v``; ``y_hat = W x / s`` without bias; ``g = dL/dy``. The two modes
differ in one term: ``full`` is the gradient of the loss, ``simplified`` holds sigma constant and is not. Miyato et al. 2018 (Spectral
normalization for GANs), equations 10 to 12, keep the term that ``simplified`` drops.
"""

import torch
from torch import Tensor


def sigma(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return ``u' W v``, a scalar: the largest singular value at the leading pair, a lower bound of it at any other unit vectors."""
    return torch.dot(u, torch.mv(weight, v))


def sigma_gradient(u: Tensor, v: Tensor) -> Tensor:
    """Return ``d sigma / dW = u v'``, ``(m, n)``; one subgradient where the top singular value is repeated."""
    return torch.outer(u, v)


def sigma_squared_gradient(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return ``d sigma^2 / dW = 2 sigma u v'``, ``(m, n)``."""
    return 2 * sigma(weight, u, v) * sigma_gradient(u, v)


def inverse_sigma_gradient(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return ``d (1 / sigma) / dW = -u v' / sigma^2``, ``(m, n)``."""
    return -sigma_gradient(u, v) / sigma(weight, u, v) ** 2


def product_jacobian(weight: Tensor, x: Tensor) -> Tensor:
    """Return ``d (W x)_i / dW_jk = delta_ij x_k``, ``(m, m, n)``."""
    return torch.einsum("ij,k->ijk", torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device), x)


def full_jacobian(weight: Tensor, u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """Return ``dy_i / dW_jk = (delta_ij x_k - y_hat_i u_j v_k) / s``, ``(m, m, n)``.

    The seed writes the second term as a product that does not conform; it is an outer product.
    """
    s = sigma(weight, u, v)
    y_hat = torch.mv(weight, x) / s
    return (product_jacobian(weight, x) - torch.einsum("i,j,k->ijk", y_hat, u, v)) / s


def full(weight: Tensor, u: Tensor, v: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """Return the exact ``dL/dW = (G' X - Lam u v') / s`` with ``Lam = sum_b <g_b, y_hat_b>``; ``x (B, n)``, ``g (B, m)``."""
    s = sigma(weight, u, v)
    lam = (g * (x @ weight.T)).sum() / s
    return (g.T @ x - lam * torch.outer(u, v)) / s


def simplified(weight: Tensor, u: Tensor, v: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """Return ``G' X / s``: sigma held constant, which is *not* the gradient of the loss; ``x (B, n)``, ``g (B, m)``."""
    return (g.T @ x) / sigma(weight, u, v)


def full_per_sample(weight: Tensor, u: Tensor, v: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """Return ``(g_b x_b' - lam_b u v') / s`` for each sample, ``(B, m, n)``; its sum over b is :func:`full`."""
    s = sigma(weight, u, v)
    lam = (g * (x @ weight.T)).sum(dim=1) / s
    return (torch.einsum("bi,bj->bij", g, x) - torch.einsum("b,i,j->bij", lam, u, v)) / s


def simplified_per_sample(weight: Tensor, u: Tensor, v: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """Return ``g_b x_b' / s`` for each sample, ``(B, m, n)``; its sum over b is :func:`simplified`."""
    return torch.einsum("bi,bj->bij", g, x) / sigma(weight, u, v)
