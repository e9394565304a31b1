"""What the file of an adapter tells of a layer's change without the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ZERO = 1e-6  # relative to what would be added up if nothing cancelled out


@dataclass(frozen=True)
class StoredProduct:
    r"""s B A of one layer, for each of its g groups.   A: (g, r, columns)   B: (g, rows, r)

    Attributes:
        whole: whether W' - W = s B A; False where the method does more with the product.
    """

    a: Tensor
    b: Tensor
    scale: float
    whole: bool = True

    @property
    def rank(self) -> int:
        """The number of products of a column and a row."""
        return self.a.shape[0] * self.a.shape[1]

    def norm(self) -> float:
        r"""||s B A|| = |s| sqrt(sum of <B^T B, A A^T>), in float64: no matrix larger than A, B and (r, r) is made.

        0 where nothing but rounding is left.
        """
        a, b = self.a.double(), self.b.double()
        square = float((b.mT @ b * (a @ a.mT)).sum())
        norm = abs(self.scale) * max(square, 0.0) ** 0.5
        return norm if norm > _ZERO * float(self.sizes().sum()) else 0.0

    def sizes(self) -> Tensor:
        """|s| ||B_i|| ||A_i|| of every rank: (g r,)"""
        a, b = torch.linalg.vector_norm(self.a.double(), dim=2), torch.linalg.vector_norm(self.b.double(), dim=1)
        found: Tensor = abs(self.scale) * (a * b).flatten()
        return found

    def dead(self) -> int:
        """How many ranks do nothing: those of a size of 0 beside the largest."""
        sizes = self.sizes()
        return int((sizes <= _ZERO * sizes.max()).sum())
