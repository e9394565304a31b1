"""Whole tensors of parameters that are cut up over processes. All processes have to take part, in the same order.

kind                       a process holds              whole
DTensor (FSDP2)            its shard                    `full_tensor()`
ZeRO-3 (DeepSpeed)         nothing between two calls    `deepspeed.zero.GatheredParameters`
FSDP1 (`use_orig_params`)  a flat piece, or nothing     only from a state dict that the caller gathered
anything else              all of it                    itself
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import StateError


def whole(tensor: Any) -> Tensor:
    """`tensor` in full; what is not cut up comes back as it is.

    Raises StateError if it cannot be had: nothing partial is ever returned.
    """
    if hasattr(tensor, "full_tensor"):
        full: Tensor = tensor.full_tensor()
        return full
    if hasattr(tensor, "ds_id"):
        with gathered([tensor]):
            return torch.clone(tensor.detach())
    check_not_flat([tensor])
    own: Tensor = tensor
    return own


@contextmanager
def gathered(tensors: Iterable[Any]) -> Iterator[None]:
    """Those of `tensors` that ZeRO-3 partitioned are whole until the block ends, for reading.

    Raises StateError if DeepSpeed cannot gather them.
    """
    away = [t for t in tensors if hasattr(t, "ds_id") and t.numel() != t.ds_numel]
    if not away:
        yield
        return
    zero: Any = getattr(sys.modules.get("deepspeed"), "zero", None)
    if zero is None:
        raise StateError(
            "A parameter is partitioned by DeepSpeed ZeRO-3, and deepspeed is not imported in this process to gather "
            "it. Nothing was written. Run this where the model is trained, in every process."
        )
    with zero.GatheredParameters(away):
        lost = [t for t in away if t.numel() != t.ds_numel]
        if lost:
            raise StateError(
                f"DeepSpeed did not gather {len(lost)} of {len(away)} partitioned parameters (the first has "
                f"{lost[0].numel()} of {lost[0].ds_numel} numbers). Nothing was written. Call this in every process, "
                "outside of forward and backward."
            )
        yield


def is_sharded(tensor: Any) -> bool:
    """True if this process may hold a part of `tensor` only."""
    return any(hasattr(tensor, mark) for mark in ("full_tensor", "ds_id", "_fsdp_flattened"))


def check_cut_alike(placements: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Raises StateError if FSDP cut a host up but not the adapter in it: nobody would average its gradients."""
    for host, adapter in placements:
        own = list(adapter.parameters())
        cut = [p for p in host._parameters.values() if p is not None and is_sharded(p) and not hasattr(p, "ds_id")]
        if cut and own and not any(map(is_sharded, own)):
            raise StateError(
                "The model was sharded (FSDP) before this adapter was added: its gradients would not be averaged over "
                "processes. Add adapters that are to be trained first, and shard then. To use it as it is, load it "
                "with is_trainable=False and call set_adapter(name, inference_mode=True)."
            )


def check_not_flat(tensors: Iterable[Any]) -> None:
    """Raises StateError if one may be a sharded parameter of FSDP1: those are flat, whatever their shape, or empty."""
    if any(hasattr(t, "_fsdp_flattened") and t.dim() < 2 for t in tensors):
        raise StateError(
            "A parameter is sharded by FSDP1, which gathers only a whole state dict: pass "
            "save_pretrained(..., state_dict=accelerator.get_state_dict(model)), as Trainer does, or use FSDP2."
        )


def check_not_kept(tensors: Iterable[Any]) -> None:
    """Raises StateError if a DeepSpeed engine has one, whose optimizer keeps a copy of what it trains."""
    if any(hasattr(t, "ds_id") or hasattr(t, "_hp_mapping") for t in tensors):
        raise StateError(
            "The adapter belongs to a DeepSpeed engine, whose optimizer keeps a copy that would overwrite what is "
            "loaded: load before deepspeed.initialize (accelerator.prepare), or resume from the engine's checkpoint, "
            "as Trainer does."
        )
