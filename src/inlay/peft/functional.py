"""`peft.functional`: adapters of a model that `inject_adapter_in_model` changed, or of a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from inlay.core.index import index_of


def _names(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def set_adapter(
    model: nn.Module, adapter_name: str | Sequence[str], inference_mode: bool = False, layer_cls: Any = None
) -> None:
    """Activates adapters and makes exactly those trainable (none in `inference_mode`)."""
    index, names = index_of(model), _names(adapter_name)
    index.check_train([] if inference_mode else names)
    index.activate(names)
    index.train([] if inference_mode else names)


def delete_adapter(model: nn.Module, adapter_name: str, prefix: str = "", layer_cls: Any = None) -> list[str] | None:
    """Removes an adapter. Returns the active ones that remain, or None if none does."""
    index = index_of(model)
    index.remove(adapter_name)
    return list(index.active.names) or None


def set_requires_grad(model: nn.Module, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
    """Makes adapters trainable, or not, without activating them."""
    index = index_of(model)
    for name in _names(adapter_names):
        index.require_grad(name, requires_grad)


def cast_adapter_dtype(model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
    """Casts an adapter's 16-bit parameters to float32, unless `autocast_adapter_dtype` is False."""
    index = index_of(model)
    index.require(adapter_name)
    for adapter in index.placed[adapter_name].values() if autocast_adapter_dtype else ():
        for p in adapter.parameters():
            if p.dtype in (torch.float16, torch.bfloat16):
                p.data = p.data.float()
