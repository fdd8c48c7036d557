"""Activations with a proved Lipschitz constant of 1 in L2."""

from torch import Tensor, nn


class GroupSort(nn.Module):
    """Sort the features (axis 1) within groups of ``size``, largest first: a permutation, hence 1-Lipschitz and norm-preserving.

    Anil, Lucas, Grosse 2019 (Sorting out Lipschitz function approximation); ``size = 2`` is MaxMin.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"size must be at least 2, got {size}")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x (B, C, ...)`` with every group of ``size`` features sorted.

        Raises:
            ValueError: ``size`` does not divide C.
        """
        if x.shape[1] % self.size:
            raise ValueError(f"{x.shape[1]} features do not split into groups of {self.size}")
        pairs: Tensor = x.unflatten(1, (-1, self.size))
        return pairs.sort(dim=2, descending=True).values.flatten(1, 2)

    def extra_repr(self) -> str:
        """Return the size."""
        return f"size={self.size}"
