"""Configs of adapters that are made, not trained: exactly these layers, each of its own rank, with a scale of 1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from inlay.core.plan import shortest_names, walk
from inlay.core.targets import matches_name
from inlay.methods.lora.config import LoraConfig


def targets(model: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    """`target_modules` and `exclude_modules` that mean just `paths`, given in the model's order."""
    modules = walk(model)
    names = shortest_names(list(paths), modules)
    others = [p for p in modules if p not in paths and any(matches_name(p, name) for name in names)]
    return {"target_modules": names, "exclude_modules": others or None}


def lora_of(ranks: Mapping[str, int], **fields: Any) -> LoraConfig:
    """A LoRA of s = 1 with these ranks, by path; `fields`: the others."""
    most = max(ranks.values())
    others = {f"^{re.escape(path)}": r for path, r in ranks.items() if r != most}  # these alone: no suffix of others
    alphas = {key: float(r) for key, r in others.items()}
    return LoraConfig(**fields, r=most, lora_alpha=most, rank_pattern=others, alpha_pattern=alphas)
