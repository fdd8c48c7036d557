"""Spectral layers of a matrix: ``SpectralLinear`` and ``SpectralEmbedding``."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specnorm_core import functional
from specnorm_core.functional import Constraint, GradientMode
from specnorm_core.layers.base import Norm, SpectralLayer


class _Matrix(SpectralLayer):
    """A layer whose weight is the matrix of its map: ``(m, n)``, or its transpose."""

    def domain(self) -> tuple[int, ...]:
        """Return ``(n,)``."""
        return (self.weight.shape[1],)

    def forward_map(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``W x``, ``(m,)``."""
        return torch.mv(weight, x)

    def adjoint_map(self, y: Tensor, weight: Tensor) -> Tensor:
        """Return ``W' y``, ``(n,)``."""
        return torch.mv(weight.T, y)


class SpectralLinear(_Matrix):
    """``y = x W' c / sigma(W) + b``: ``x (..., in_features)`` to ``(..., out_features)``.

    Args:
        in_features: n.
        out_features: m.
        bias: whether a bias is added; it does not pass through W, so no gradient of sigma flows to or from it.
        **options: as in :class:`SpectralLayer`; the two norms are one for a matrix.
    """

    kind = "linear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        gradient_mode: GradientMode = "full",
        constraint: Constraint = "unit",
        target: float = 1.0,
        norm: Norm = "operator",
    ) -> None:
        super().__init__(gradient_mode=gradient_mode, constraint=constraint, target=target, norm=norm)
        plain = nn.Linear(in_features, out_features, bias=bias)
        self._take(plain.weight, plain.bias)
        self.in_features, self.out_features = in_features, out_features
        self.rederive()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x (..., n)``."""
        self._follow()
        weight = self.weight
        return functional.linear(
            x, weight, self.bias, self._u, self._v,
            mode=self.gradient_mode, constraint=self.constraint, target=self.target, keep=self._keep(weight),
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return sizes and options."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}"


class SpectralEmbedding(_Matrix):
    """Rows of ``W c / sigma(W)``: indices ``(...)`` of int64 or int32 to ``(..., embedding_dim)``.

    Sigma is the norm of the map from weights on the entries (a one-hot row is one entry) to vectors, so two entries are at most
    ``sqrt(2) c`` apart. Every entry's gradient reaches sigma, so the gradient of the weight is dense.

    Args:
        num_embeddings: entries.
        embedding_dim: size of a vector.
        padding_idx: an entry that starts at zero and is not trained.
        **options: as in :class:`SpectralLayer`; the two norms are one for a matrix.
    """

    kind = "embedding"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        gradient_mode: GradientMode = "full",
        constraint: Constraint = "unit",
        target: float = 1.0,
        norm: Norm = "operator",
    ) -> None:
        super().__init__(gradient_mode=gradient_mode, constraint=constraint, target=target, norm=norm)
        plain = nn.Embedding(num_embeddings, embedding_dim, padding_idx)
        self._take(plain.weight, None)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, plain.padding_idx
        self.rederive()

    def forward(self, indices: Tensor) -> Tensor:
        """Return the vectors of ``indices``."""
        self._follow()
        return self.scaled(F.embedding(indices, self.weight, self.padding_idx))

    def extra_repr(self) -> str:
        """Return sizes and options."""
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, {super().extra_repr()}"
