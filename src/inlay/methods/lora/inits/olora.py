"""OLoRA (Büyükakyüz 2024, arXiv 2406.01775): the adapter starts with orthonormal columns, from W's QR decomposition.

W = Q R,  A0 = R_r (the first r rows),  B0 = Q_r (the first r columns)
"""

from __future__ import annotations

import torch
from torch import Tensor


def olora(w: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """(A0, B0).   W: (rows, columns)   A0: (r, columns)   B0: (rows, r)"""
    q, upper = torch.linalg.qr(w)
    return upper[:r], q[:, :r]
