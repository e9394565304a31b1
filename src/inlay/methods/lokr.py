"""LoKr: W' = W + s W1 kron W2, a Kronecker product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.checks import check_bool, check_choice, check_int
from inlay.core.host import Site
from inlay.errors import ConfigError
from inlay.methods.lycoris import Lycoris, LycorisConfig, rebuilt
from inlay.registry import adapter


@dataclass
class LoKrConfig(LycorisConfig, peft_type="LOKR"):
    r"""W' = W + s W1 kron W2 with s = alpha / r.

    Args:
        decompose_both: W1 = A1 B1 of rank r too, where that has fewer numbers (W2 always is).
        decompose_factor: number of rows and of columns of W1, where it divides those of W; else the largest divisor
            that is at most this and at most their square root. -1: no limit but the square root.
        rank_dropout_scale: scale the rows that `rank_dropout` keeps up, by the inverse of their share.
        init_weights: True: W1 zero. "lycoris": W2 zero, as LyCORIS has it. False: neither, so that the adapter is not
            the identity (for tests).
        r, alpha, rank_dropout, module_dropout, use_effective_conv2d, rank_pattern, alpha_pattern: see `LycorisConfig`.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    decompose_both: bool = False
    decompose_factor: int = -1
    rank_dropout_scale: bool = False
    init_weights: bool | str = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("decompose_both", self.decompose_both)
        check_int("decompose_factor", self.decompose_factor, -1)
        if self.decompose_factor == 0:
            raise ConfigError.of("decompose_factor", 0, "-1 or a positive integer")
        check_bool("rank_dropout_scale", self.rank_dropout_scale)
        check_choice("init_weights", self.init_weights, (True, False, "lycoris"))


def divided(size: int, factor: int = -1) -> tuple[int, int]:
    """(m, size / m): m = factor if it divides size, else the largest divisor up to it and the root of size."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    m = next(d for d in range(limit, 0, -1) if size % d == 0)
    return m, size // m


@adapter(LoKrConfig, "linear", "conv1d", "conv2d", "conv3d")
class LoKr(Lycoris):
    r"""W' = W + s W1 kron W2.   Yeh et al. 2023, LyCORIS, arXiv 2309.14859; Edalati et al. 2022, arXiv 2212.10650.

    W: (out, in)   W1: (l, m)   W2: (k, n)   l k = out, m n = in   s = alpha / r
    (W1 kron W2)[a k + b, c n + d] = W1[a, c] W2[b, d],  so that with x as a matrix X: (m, n), the update is W1 X W2^T.

    W2 = A2 B2 of rank r, A2: (k, r), B2: (r, n), if r < max(k, n) / 2, and W1 likewise with `decompose_both`. On
    convolutions in/groups stands for `in` and W2: (k, n, *kernel), whose factors are those of the flattened kernel, or
    with `use_effective_conv2d` share a core tensor, see `lycoris.rebuilt`. A whole W2 on a conv1d is multiplied as peft
    does, with W1 on the last two of its three axes, and the result read as (out, in/groups, kernel).
    """

    w1: Any  # each a parameter, or None where the other form is used
    a1: Any
    b1: Any
    w2: Any
    a2: Any
    b2: Any
    t2: Any

    def __init__(self, config: LoKrConfig, site: Site):
        super().__init__(config, site)
        self.init, self.rescaled = config.init_weights, config.rank_dropout_scale
        (l1, k), (m, n) = (divided(size, config.decompose_factor) for size in self.shape[:2])
        kernel, r = self.shape[2:], self.r
        self.inner = (k, n, *kernel)
        self.w1 = self.a1 = self.b1 = self.w2 = self.a2 = self.b2 = self.t2 = None
        if config.decompose_both and r < max(l1, m) / 2:
            self.a1, self.b1 = self.parameter(site, l1, r), self.parameter(site, r, m)
        else:
            self.w1 = self.parameter(site, l1, m)
        if r >= max(k, n) / 2:
            self.w2 = self.parameter(site, k, n, *kernel)
        elif self.core:
            self.a2, self.b2 = self.parameter(site, r, k), self.parameter(site, r, n)
            self.t2 = self.parameter(site, *self.core)
        else:
            self.a2, self.b2 = self.parameter(site, k, r), self.parameter(site, r, n * math.prod(kernel))

    def reset(self, host: nn.Module) -> None:
        zero = {True: (self.w1, self.a1), "lycoris": (self.w2, self.b2), False: ()}[self.init]
        for p in (self.w1, self.a1, self.b1, self.w2, self.a2, self.b2, self.t2):
            if p is None:
                continue
            if any(p is z for z in zero):
                nn.init.zeros_(p)
            else:
                nn.init.kaiming_uniform_(p, a=math.sqrt(5))

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """W1: (l, m) and W2: (k, n, *kernel) in `dtype`."""
        w1 = self.a1.to(dtype) @ self.b1.to(dtype) if self.w1 is None else self.w1.to(dtype)
        if self.w2 is not None:
            return w1, self.w2.to(dtype)
        a2, b2 = self.a2.to(dtype), self.b2.to(dtype)
        w2 = a2 @ b2 if self.t2 is None else rebuilt(self.t2.to(dtype), a2, b2)
        return w1, w2.reshape(self.inner)

    def change(self, dtype: torch.dtype) -> Tensor:
        w1, w2 = self.factors(torch.promote_types(next(self.parameters()).dtype, dtype))
        across = self.w2 is not None and w2.dim() == 3
        d = torch.einsum("ac,bde->badce" if across else "ac,bd...->abcd...", w1, w2)
        return (self.scale * d).reshape(self.shape)

    def added(self, x: Tensor, host: nn.Module) -> Tensor:
        if len(self.shape) > 2:
            return super().added(x, host)
        w1, w2 = self.factors(x.dtype)
        rows = x.reshape(*x.shape[:-1], w1.shape[1], w2.shape[1])  # X: (..., m, n)
        columns = F.linear(F.linear(rows, w2).transpose(-1, -2).contiguous(), w1)  # (..., k, l)
        return self.scale * columns.transpose(-1, -2).flatten(-2)

    def tensors(self) -> dict[str, Tensor]:
        own = {"w1": self.w1, "w1_a": self.a1, "w1_b": self.b1}
        own |= {"w2": self.w2, "w2_a": self.a2, "w2_b": self.b2, "t2": self.t2}
        return {f"lokr_{key}": p for key, p in own.items() if p is not None}
