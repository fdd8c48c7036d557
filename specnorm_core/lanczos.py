"""Sigma of a layer in its own norm, to 1e-10, by Lanczos iteration: what power iteration is too slow for where singular values crowd."""

import copy
from typing import Any

import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from specnorm_core import functional
from specnorm_core.layers import SpectralLayer


def settle(layer: SpectralLayer) -> float:
    """Converge (u, v) of ``layer`` by Lanczos iteration in float64 and return its sigma.

    Raises:
        ValueError: the weight is zero or not finite.
    """
    layer.rederive()
    twin = copy.deepcopy(layer).double()
    weight, shape = twin.weight.detach(), twin.domain()
    scaled = weight / weight.abs().amax()  # ARPACK takes eigenvalues below 1e-11 for zero
    u, v = twin.pair

    def gram(x: Any) -> Any:
        image = twin.forward_map(torch.as_tensor(x, dtype=torch.float64, device=weight.device).reshape(shape), scaled)
        return twin.adjoint_map(image, scaled).flatten().cpu().numpy()

    n = v.numel()
    if n > 1:
        try:
            operator = LinearOperator((n, n), matvec=gram, dtype="float64")
            _, vectors = eigsh(operator, k=1, which="LA", v0=v.flatten().cpu().numpy(), tol=1e-12)
            v = functional.unit(torch.as_tensor(vectors[:, 0]).to(weight.device).reshape(shape))
        except ArpackError:  # a start that is an eigenvector already leaves Lanczos nothing to build on
            v = twin.refresh(200).pair[1]
    u = functional.unit(twin.forward_map(v, weight))
    layer.set_pair(u, v)
    return float((u * twin.forward_map(v, weight)).sum())
