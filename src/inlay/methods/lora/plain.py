"""Anchored adapters as LoRA that loads anywhere."""

from __future__ import annotations

from typing import Any

import torch

from inlay.core.index import index_of, task_heads
from inlay.core.plan import check_adapter_name, plan
from inlay.errors import ConfigError
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.lowrank import FACTORS


@torch.no_grad()
def as_plain_lora(model: Any, adapter_name: str, new_name: str) -> None:
    """Adds, under a new name, the LoRA adapter of rank 2r that is the same as an anchored one (PiSSA, OLoRA, ...).

    W' = W + s (B A - B0 A0) = W + s [B, B - B0] [A - A0; A0]

    A file of PiSSA's or OLoRA's A and B is of use only to a reader that decomposes the same base again; this one's is
    an ordinary adapter. (Adapters of CorDA and LoRA-GA are saved so in any case.)

    Raises:
        StateError: there is no adapter of that name. ConfigError: it is no LoRA adapter, or `new_name` is taken.
    """
    index = index_of(model)
    index.require(adapter_name)
    config = index.configs[adapter_name]
    if not isinstance(config, LoraConfig):
        raise ConfigError(f"Adapter {adapter_name!r} is {config.peft_type}; as_plain_lora takes LoRA adapters.")
    check_adapter_name(new_name, index.configs)
    placed: Any = index.placed[adapter_name]
    narrow = all(a.A.dtype.itemsize == 2 for a in placed.values() if hasattr(a, "with_anchor"))
    placements, kept = plan(model, config.plain(), heads=task_heads(model), keep_base_dtype=narrow)
    for p in placements:
        source, target = placed[p.path], p.adapter
        own = dict(target.named_parameters())
        for name, value in source.named_parameters():
            if own[name].shape == value.shape:
                own[name].copy_(value)
        if hasattr(source, "with_anchor"):
            for name, value in zip(FACTORS, source.plain_factors(), strict=True):
                own[name].copy_(value)
    index.add(new_name, kept, placements)
