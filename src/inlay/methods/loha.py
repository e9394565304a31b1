"""LoHa: W' = W + s (A1 B1) * (A2 B2), an elementwise product of two low-rank matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inlay.checks import check_bool
from inlay.core.host import Site
from inlay.methods.lycoris import Lycoris, LycorisConfig, rebuilt
from inlay.registry import adapter


@dataclass
class LoHaConfig(LycorisConfig, peft_type="LOHA"):
    r"""W' = W + s (A1 B1) * (A2 B2), elementwise, with s = alpha / r.

    Args:
        init_weights: True: B2 zero, the others Kaiming-uniform with a = sqrt(5). False: B2 too, so that the adapter is
            not the identity (for tests).
        r, alpha, rank_dropout, module_dropout, use_effective_conv2d, rank_pattern, alpha_pattern: see `LycorisConfig`.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("init_weights", self.init_weights)


@adapter(LoHaConfig, "linear", "conv1d", "conv2d", "conv3d")
class LoHa(Lycoris):
    r"""W' = W + s (A1 B1) * (A2 B2), elementwise.   Hyeon-Woo et al. 2022, FedPara, arXiv 2108.06098.

    W: (out, in)   A1, A2: (out, r)   B1, B2: (r, in)   s = alpha / r

    On convolutions `in` is in/groups times the points of the kernel. With `use_effective_conv2d`, each factor is
    T x_1 A x_2 B = sum over p, q of T[p, q, :] A[p, o] B[q, i] instead, T: (r, r, *k), A: (r, out), B: (r, in/groups).

    The product of two matrices of rank r has rank r^2, with factors that need no matrix of W's size:
    (A1 B1) * (A2 B2) = A B with A[o] = A1[o] kron A2[o] and B[:, i] = B1[:, i] kron B2[:, i]. Linear layers use them
    where that is less work.
    """

    def __init__(self, config: LoHaConfig, site: Site):
        super().__init__(config, site)
        self.init = config.init_weights
        out, fan_in = self.shape[0], math.prod(self.shape[1:])
        a, b = ((self.r, out), (self.r, self.shape[1])) if self.core else ((out, self.r), (self.r, fan_in))
        self.a1, self.b1 = self.parameter(site, *a), self.parameter(site, *b)
        self.a2, self.b2 = self.parameter(site, *a), self.parameter(site, *b)
        self.t1 = self.parameter(site, *self.core) if self.core else None
        self.t2 = self.parameter(site, *self.core) if self.core else None
        self.split = site.kind == "linear" and self.r**2 * (out + fan_in) < out * fan_in

    def reset(self, host: nn.Module) -> None:
        for p in (self.a1, self.b1, self.a2, self.b2, self.t1, self.t2):
            if p is self.b2 and self.init:
                nn.init.zeros_(p)
            elif p is not None:
                nn.init.kaiming_uniform_(p, a=math.sqrt(5))

    def change(self, dtype: torch.dtype) -> Tensor:
        to = torch.promote_types(self.a1.dtype, dtype)
        a1, b1, a2, b2 = (p.to(to) for p in (self.a1, self.b1, self.a2, self.b2))
        if self.t1 is None or self.t2 is None:
            d = (a1 @ b1) * (a2 @ b2)
        else:
            d = rebuilt(self.t1.to(to), a1, b1) * rebuilt(self.t2.to(to), a2, b2)
        return (self.scale * d).reshape(self.shape)

    def added(self, x: Tensor, host: nn.Module) -> Tensor:
        if not self.split:
            return super().added(x, host)
        a = (self.a1.unsqueeze(2) * self.a2.unsqueeze(1)).flatten(1)  # (out, r^2)
        b = (self.b1.unsqueeze(1) * self.b2.unsqueeze(0)).flatten(0, 1)  # (r^2, in)
        return self.scale * (x @ b.to(x.dtype).T @ a.to(x.dtype).T)

    def tensors(self) -> dict[str, Tensor]:
        own = {"w1_a": self.a1, "w1_b": self.b1, "w2_a": self.a2, "w2_b": self.b2, "t1": self.t1, "t2": self.t2}
        return {f"hada_{key}": p for key, p in own.items() if p is not None}
