"""What LoHa and LoKr have in common: LyCORIS's ranks, strengths and dropouts (Yeh et al. 2023, arXiv 2309.14859)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_number, check_patterns, check_positive
from inlay.core.host import Site
from inlay.core.targets import pattern_value
from inlay.methods.additive import Additive
from inlay.methods.targets import AttentionConfig


@dataclass
class LycorisConfig(AttentionConfig):
    r"""W' = W + s D with s = alpha / r.

    Args:
        r: rank of D's factors.
        alpha: the update's strength, independent of the rank.
        rank_dropout: probability of zeroing a row of D in training.
        module_dropout: probability of leaving D out altogether in training.
        use_effective_conv2d: on convolutions (of any dimension) whose kernel is more than one point, factors that share
            a core tensor over the kernel (FedPara, arXiv 2108.06098, proposition 3), not those of the flattened kernel.
        rank_pattern, alpha_pattern: module name or regex -> its own r, alpha.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 8
    alpha: float = 8
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    use_effective_conv2d: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("r", self.r)
        check_number("alpha", self.alpha)
        check_number("rank_dropout", self.rank_dropout, 0.0, 1.0)
        check_number("module_dropout", self.module_dropout, 0.0, 1.0)
        check_bool("use_effective_conv2d", self.use_effective_conv2d)
        check_patterns("rank_pattern", self.rank_pattern, check_positive)
        check_patterns("alpha_pattern", self.alpha_pattern, check_number)

    def rank(self, path: str) -> int:
        """The rank r of the adapter at `path`."""
        return int(pattern_value(self.rank_pattern, path, self.r, "rank_pattern"))

    def scale(self, path: str) -> float:
        """The scale s of the adapter at `path`."""
        return pattern_value(self.alpha_pattern, path, self.alpha, "alpha_pattern") / self.rank(path)


class Lycoris(Additive):
    """D of the config's rank r and strength s, for a canonical weight of `shape`, with the dropouts in training."""

    rescaled = True  # whether dropping rows scales the others up, to keep D's mean

    def __init__(self, config: LycorisConfig, site: Site):
        super().__init__(config, site)
        self.r = config.rank(site.path)
        self.scale = config.scale(site.path)
        self.rank_dropout, self.module_dropout = config.rank_dropout, config.module_dropout
        module: Any = site.module
        linear = site.kind == "linear"
        self.shape = (site.out_features, site.in_features) if linear else tuple(module.weight.shape)
        kernel = self.shape[2:]
        # a core tensor over the kernel, if there is one; a one-dimensional kernel is stored as a two-dimensional one
        effective = config.use_effective_conv2d and any(k != 1 for k in kernel)
        self.core = (self.r, self.r, *kernel, *([1] if len(kernel) == 1 else [])) if effective else None

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        return y + self.dropped(self.added(x.to(y.dtype), host))

    def dropped(self, added: Tensor) -> Tensor:
        """`added`, D x, with rows of D at zero, or all of it: the dropouts, in training."""
        if self.training and self.rank_dropout:
            kept = (torch.rand(self.shape[0], device=added.device) > self.rank_dropout).to(added.dtype)
            if self.rescaled:
                kept = kept / kept.mean().clamp_min(1 / self.shape[0])
            added = added * kept.view(-1, *[1] * len(self.shape[2:]))
        if self.training and self.module_dropout:
            added = added * (torch.rand((), device=added.device) > self.module_dropout)
        return added


def rebuilt(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """D[o, i, k] = sum over p, q of T[p, q, k] A[p, o] B[q, i].   T: (r, r, *k)   A: (r, out)   B: (r, in)"""
    return torch.einsum("pq...,po,qi->oi...", t, a, b)
