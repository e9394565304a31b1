"""The directions in which a stream of rows varies most (incremental principal components, Ross et al. 2008)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inlay.methods.lora.inits.pissa import low_rank_svd


class Variance:
    """The k directions in which rows vary most, kept up to date batch by batch."""

    def __init__(self, k: int):
        self.k, self.n, self.total = k, 0, 0.0
        self.s: Tensor | None = None
        self.v: Tensor
        self.mean: Tensor
        self.settled = torch.zeros(k, dtype=torch.bool)

    def add(self, x: Tensor, tau: float) -> None:
        """Takes in rows x: (n, in); too few to tell k directions apart are left out."""
        if len(x) < self.k:
            return
        x = x.float()
        mean = x.mean(0)
        rows = [x - mean]
        self.total += float(rows[0].square().sum(dtype=torch.float64))
        before = None
        if self.s is not None:
            shift = (self.n * len(x) / (self.n + len(x))) ** 0.5 * (self.mean - mean)
            self.total += float(shift.square().sum(dtype=torch.float64))
            rows = [self.s[:, None] * self.v, *rows, shift[None]]
            before, mean = self.v, (self.n * self.mean + len(x) * mean) / (self.n + len(x))
        _, s, v = low_rank_svd(torch.cat(rows), min(2 * self.k, x.shape[1], sum(map(len, rows))), 4)
        self.n, self.mean, self.s, self.v = self.n + len(x), mean, s[: self.k], v[: self.k]
        if before is not None:
            self.settled = (F.cosine_similarity(before, self.v).abs() >= tau).cpu()

    @property
    def ratios(self) -> list[float]:
        """The share of each direction in all the variance."""
        found = self.s
        return [] if found is None else (found.double().square() / max(self.total, 1e-30)).tolist()
