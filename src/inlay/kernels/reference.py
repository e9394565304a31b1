"""Plain torch versions of the kernels: short, differentiable, and what the fast ones are compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    r"""y = x W^T + bias + s (x A^T) B^T.

    x: (..., in)   W: (out, in)   bias: (out,)   A: (r, in)   B: (out, r)   s: scale. A and B are cast to x's dtype.
    """
    return lora_add(F.linear(x, weight, bias), x, a, b, scale)


def lora_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    r"""y + s (x A^T) B^T, computed in y's dtype.   y: (..., out)   x: (..., in)   A: (r, in)   B: (out, r)"""
    x = x.to(y.dtype)
    return y + scale * F.linear(F.linear(x, a.to(y.dtype)), b.to(y.dtype))
