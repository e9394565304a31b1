"""Adapters made of others: weighted sums of LoRA updates, as one new adapter.

D = sum over i of w_i s_i B_i A_i,  W' = W + D

cat   A = [w_1 s_1 A_1; ...], B = [B_1 ...]: D exactly, of the sum of the ranks
svd   D's best approximation of rank `svd_rank` (by default the largest rank): D exactly if that suffices
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.checks import check_choice, check_int, check_number
from inlay.core.plan import check_adapter_name
from inlay.errors import ConfigError
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.lowrank import LowRank

TYPES = ("cat", "svd")


def add_weighted_adapter(
    view: Any,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    svd_rank: int | None = None,
) -> None:
    """Adds the adapter `adapter_name` to a view: the sum of `adapters`, each times its weight. Inactive, frozen.

    Raises ConfigError for a name that is taken, for weights that do not fit, and for adapters whose sum is no LoRA
    (other methods, DoRA, trained biases, modules trained in full, convolutions with groups). Nothing has changed then.
    """
    index = view._inlay
    check_adapter_name(adapter_name, index.configs)
    check_choice("combination_type", combination_type, TYPES)
    if svd_rank is not None:
        check_int("svd_rank", svd_rank, 1)
    if not adapters or len(adapters) != len(weights):
        raise ConfigError.of("weights", list(weights), f"one number for each of the {len(adapters)} adapters")
    terms: dict[str, list[tuple[float, LowRank]]] = {}
    for name, weight in zip(adapters, weights, strict=True):
        index.require(name)
        check_number("weights", weight)
        for path, adapter in index.placed[name].items():
            terms.setdefault(path, []).append((weight, _plain(name, path, adapter)))
    with torch.no_grad():
        factors = {path: _combined(found, combination_type, svd_rank) for path, found in terms.items()}
    ranks = {path: a.shape[0] for path, (a, _) in factors.items()}
    most = max(ranks.values())
    others = {path: r for path, r in ranks.items() if r != most}
    config = LoraConfig(
        r=most,
        lora_alpha=most,  # s = 1
        target_modules=list(terms),
        rank_pattern=others,
        alpha_pattern={path: float(r) for path, r in others.items()},
        task_type=index.configs[adapters[0]].task_type,
        inference_mode=True,
    )
    view.add_adapter(adapter_name, config)
    with torch.no_grad():
        for path, (a, b) in factors.items():
            made = index.placed[adapter_name][path]
            made.A.copy_(a.reshape(made.A.shape))
            made.B.copy_(b.reshape(made.B.shape))


def _plain(name: str, path: str, adapter: Any) -> LowRank:
    """`adapter` if its update is s B A and nothing else."""
    plain = isinstance(adapter, LowRank) and adapter.mergeable and not adapter.reads_weight
    if not plain or adapter.b is not None or adapter.c is not None or adapter.groups != 1:
        raise ConfigError.of(
            "adapters",
            name,
            "plain LoRA adapters: their sum is a LoRA",
            f"At {path!r} it is {type(adapter).__name__}, or trains a bias, or has groups.",
        )
    found: LowRank = adapter
    return found


def _combined(terms: list[tuple[float, LowRank]], kind: str, rank: int | None) -> tuple[Tensor, Tensor]:
    """A: (r, columns) and B: (rows, r) of one layer."""
    scales = [weight * adapter.scale for weight, adapter in terms]
    pairs = [adapter.factors(adapter.A) for _, adapter in terms]
    a = torch.cat([s * down[0] for s, (down, _) in zip(scales, pairs, strict=True)])
    b = torch.cat([up[0] for _, up in pairs], 1)
    if kind == "cat":
        return a, b
    # the svd of B A by those of its thin factors: B = Q_b R_b, A = R_a^T Q_a^T
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    k = min(rank or max(adapter.r for _, adapter in terms), len(s))
    return (v[:k] @ q_a.T).to(a.dtype), (q_b @ u[:, :k] * s[:k]).to(b.dtype)
