"""Small functions of peft's that scripts import."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.targets import matches_name
from inlay.errors import ConfigError


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts what is trained to float32 and everything else to `dtype`, for mixed-precision training."""
    for p in model.parameters():
        p.data = p.data.to(torch.float32 if p.requires_grad else dtype)


def shift_tokens_right(input_ids: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    """Decoder inputs for the labels `input_ids`, (batch, length): y_1 = start, y_t = x_{t-1}; -100 becomes padding."""
    if pad_token_id is None:
        raise ConfigError.of("pad_token_id", None, "the id of the padding token")
    start = torch.full_like(input_ids[:, :1], decoder_start_token_id)
    shifted = torch.cat([start, input_ids[:, :-1]], 1)
    return shifted.where(shifted != -100, pad_token_id)


def _get_submodules(model: nn.Module, key: str) -> tuple[nn.Module, nn.Module, str]:
    """(parent, module, name in the parent) of the module at path `key`."""
    parent, _, name = key.rpartition(".")
    return model.get_submodule(parent), model.get_submodule(key), name


def transpose(weight: Tensor, fan_in_fan_out: bool) -> Tensor:
    """`weight`, transposed if `fan_in_fan_out`."""
    if not fan_in_fan_out:
        return weight
    return nn.Parameter(weight.T) if isinstance(weight, nn.Parameter) else weight.T


def infer_device() -> str:
    """`"cuda"`, or whatever accelerator is there, else `"cpu"`."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def get_pattern_key(pattern_keys: Iterable[str], key_to_match: str) -> str:
    """The first key of a `rank_pattern` that the module's path matches; the path itself if none does."""
    return next((k for k in pattern_keys if re.fullmatch(rf"(.*\.)?({k})", key_to_match)), key_to_match)


def check_target_module_exists(config: Any, key: str) -> bool:
    """Whether a config's `target_modules` mean the module at path `key`."""
    targets = config.target_modules
    if isinstance(targets, str):
        return re.fullmatch(targets, key) is not None
    return any(matches_name(key, name) for name in targets or ())


@contextmanager
def onload_layer(layer: nn.Module) -> Iterator[None]:
    """Has an offloaded layer's weight where it computes until the block ends. Others are there already."""
    hook: Any = getattr(layer, "_hf_hook", None)
    if hook is None or not getattr(hook, "offload", False):
        yield
        return
    hook.pre_forward(layer)
    try:
        yield
    finally:
        hook.post_forward(layer, None)
