r"""Combining tensors that several tasks changed, T_1 ... T_n, with weights w_1 ... w_n: the elementary operations.

linear           D = sum over i of w_i T_i                     task arithmetic, Ilharco et al. 2022, arXiv 2212.04089
magnitude_prune  the same of the largest entries of each T_i   `keep_largest`
dare_linear      the same of random entries, rescaled          DARE, Yu et al. 2023, arXiv 2311.03099; `drop_random`
ties             the largest entries of each T_i, of these at every place only those with the sign that most have
                 there, their mean                             TIES, Yadav et al. 2023, arXiv 2306.01708
dare_ties        the same with `drop_random` for `keep_largest`

In the last two, with t_i what is left of T_i and sigma the elected sign, at every place

    D = sum over {i: sgn t_i = sigma} of w_i t_i / max(1, |{i: sgn t_i = sigma}|)

so that weights of 1 give the paper's mean. (The sign is elected, and the terms are counted, without the weights.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Thin = Callable[[Tensor, float, torch.Generator | None], Tensor]


def keep_largest(t: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
    """`t` with its floor(density * numel) entries of the largest magnitude, and zeros. Nothing in it is random."""
    kept = t.abs().flatten().topk(int(density * t.numel())).indices
    return torch.zeros_like(t).flatten().index_copy(0, kept, t.flatten()[kept]).view(t.shape)


def drop_random(t: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
    """m t / density, where each entry of m is 1 with probability `density` and else 0: t in the mean.

    `generator`: of the masks; torch's global one by default.
    """
    return t if density == 1 else t * torch.bernoulli(torch.full_like(t, density), generator=generator) / density


def elect_sign(tasks: Tensor, method: str = "total") -> Tensor:
    """1 or -1 at every place, 1 if undecided: the sign of the sum of the entries, or ("frequency") of that of signs.

    tasks: (n, ...)
    """
    total = tasks.sum(0) if method == "total" else tasks.sign().sum(0)
    return torch.where(total >= 0, 1.0, -1.0).to(tasks.dtype)


def disjoint_sum(tasks: Tensor, weights: Tensor, sign: Tensor) -> Tensor:
    """sum of w_i t_i over the entries whose sign is `sign`, by their number (at least 1).   tasks: (n, ...)"""
    agrees = tasks.sign() == sign
    return weighted_sum(tasks * agrees, weights) / agrees.sum(0).clamp_min(1)


def weighted_sum(tasks: Tensor, weights: Tensor) -> Tensor:
    """sum of w_i T_i.   tasks: (n, ...)   weights: (n,)"""
    return (weights.view(-1, *[1] * (tasks.dim() - 1)) * tasks).sum(0)


_METHODS: dict[str, tuple[Thin | None, bool]] = {
    "linear": (None, False),
    "magnitude_prune": (keep_largest, False),
    "dare_linear": (drop_random, False),
    "ties": (keep_largest, True),
    "dare_ties": (drop_random, True),
}
"""Name -> how entries are left out, and whether signs are elected."""

METHODS = tuple(_METHODS)
MAJORITIES = ("total", "frequency")


def needs_density(method: str) -> bool:
    """Whether `method` leaves out entries."""
    return _METHODS[method][0] is not None


def combine(
    method: str,
    tasks: Sequence[Tensor],
    weights: Sequence[float],
    density: float = 1.0,
    majority_sign_method: str = "total",
    generator: torch.Generator | None = None,
) -> Tensor:
    """D of tensors of one shape, computed in their dtype, by one of `METHODS`.

    Args:
        density: the share of the entries that is kept, from 0 to 1; above 0 for DARE.
        majority_sign_method: see `elect_sign`.
        generator: see `drop_random`; it is drawn from for one tensor after the other.
    """
    thin, elects = _METHODS[method]
    left = torch.stack([t if thin is None else thin(t, density, generator) for t in tasks])
    w = torch.tensor(weights, dtype=left.dtype, device=left.device)
    return disjoint_sum(left, w, elect_sign(left, majority_sign_method)) if elects else weighted_sum(left, w)
