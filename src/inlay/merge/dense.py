"""Quantised layers of a merged model as dense ones, and the model's marks of being quantised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.host import kind_of
from inlay.core.plan import walk
from inlay.errors import StateError
from inlay.quant import dequantised, is_quantised

# what transformers sets on a model that it has loaded quantised
_MARKS = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized")


def make_dense(model: Any, merged: Mapping[int, Tensor], dtype: torch.dtype | None = None) -> None:
    """Makes every quantised layer of `model` a dense one, and `model` one that is saved and loaded as such.

    Args:
        model: a model of its own module objects; no tensor that it shares is changed.
        merged: id of a module -> its weight, where that is not the one that it holds.
        dtype: of all floating-point parameters; by default the dense layers take that of most numbers that are dense.
    """
    modules = list(walk(model).values())
    made = {id(m): m for m in modules if is_quantised(m)}
    wide = dtype or _usual_dtype(model, made)
    dense = {key: _dense(m, merged.get(key), wide) for key, m in made.items()}
    for parent in modules:
        for name, child in parent._modules.items():
            if id(child) in dense:
                parent._modules[name] = dense[id(child)]
    if dtype is not None:
        _cast(model, dtype)
    for m in walk(model).values():
        for mark in _MARKS:
            m.__dict__.pop(mark, None)
        getattr(m.__dict__.get("config"), "__dict__", {}).pop("quantization_config", None)


def _dense(layer: Any, weight: Tensor | None, dtype: torch.dtype) -> nn.Module:
    """A dense layer that computes what a quantised one does, with its own or another weight."""
    kind = kind_of(layer)
    w = (dequantised(layer) if weight is None else weight).to(dtype)
    made: nn.Module
    if kind == "linear":
        made = nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta")
        bias = getattr(layer, "bias", None)
        own = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        made.register_parameter("bias", own)
    elif kind == "embedding":
        made = nn.Embedding(w.shape[0], w.shape[1], padding_idx=layer.padding_idx, device="meta")
    else:
        raise StateError(f"A quantised {type(layer).__name__} cannot be made dense: only linear layers and embeddings.")
    made.weight = nn.Parameter(w, requires_grad=False)
    return made.train(layer.training)


def _usual_dtype(model: nn.Module, quantised: Mapping[int, nn.Module]) -> torch.dtype:
    """The dtype of most dense numbers: what passes between the layers has it, so that the new ones have to."""
    count: Counter[torch.dtype] = Counter()
    for m in walk(model).values():
        for p in m._parameters.values():
            if id(m) not in quantised and p is not None and p.is_floating_point():
                count[p.dtype] += p.numel()
    return count.most_common(1)[0][0] if count else torch.float32


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Gives `model` parameters of `dtype` where it has others. Tied ones stay tied."""
    memo: dict[int, Any] = {}

    def cast(p: Any) -> Any:
        if p is None or not p.is_floating_point() or p.dtype == dtype:
            return p
        return memo.setdefault(id(p), nn.Parameter(p.detach().to(dtype), requires_grad=False))

    for m in walk(model).values():
        m._parameters = {k: cast(p) for k, p in m._parameters.items()}
