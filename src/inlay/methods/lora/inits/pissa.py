"""PiSSA (Meng et al. 2024, arXiv 2404.02948): the adapter starts as W's principal part.

    W = U S V^T,  A0 = sqrt(S_r / s) V_r^T,  B0 = U_r sqrt(S_r / s),  so that s B0 A0 is the best of rank r for W

`"pissa_niter_N"` finds that part by N steps of subspace iteration (Halko et al. 2009) instead of a full decomposition,
from a fixed start: the anchor of a loaded file must be that of the training.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor


def pissa_iterations(init: object) -> int | None:
    """N of `"pissa_niter_N"`, 0 for `"pissa"`, None for anything else."""
    found = re.fullmatch(r"pissa(?:_niter_(\d{1,4}))?", init) if isinstance(init, str) else None
    return None if found is None else int(found.group(1) or 0)


def pissa(w: Tensor, r: int, scale: float, iterations: int | None = 0) -> tuple[Tensor, Tensor]:
    """(A0, B0).   W: (rows, columns)   A0: (r, columns)   B0: (rows, r)"""
    u, s, vh = low_rank_svd(w, r, iterations) if iterations else torch.linalg.svd(w, full_matrices=False)
    root = (s[:r] / scale).sqrt()
    return root[:, None] * vh[:r], u[:, :r] * root


def low_rank_svd(w: Tensor, r: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """U: (rows, r), S: (r), V^T: (r, columns) of the principal part, nearly; the same whenever it is asked for."""
    start = torch.randn(w.shape[1], r, generator=torch.Generator().manual_seed(0), dtype=w.dtype).to(w.device)
    q = torch.linalg.qr(w @ start)[0]
    for _ in range(iterations):
        q = torch.linalg.qr(w @ torch.linalg.qr(w.T @ q)[0])[0]
    u, s, vh = torch.linalg.svd(q.T @ w, full_matrices=False)
    return q @ u, s, vh
