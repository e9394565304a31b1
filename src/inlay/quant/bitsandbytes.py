"""bitsandbytes: 4 bits (NF4, FP4) in blocks, 8 bits in rows.

4-bit   W[i] = level[q[i]] * absmax[i // blocksize], over the flat W; absmax may be quantised itself
8-bit   W[o, i] = CB[o, i] * SCB[o] / 127

In 4 bits all is in the parameter: the packed q, and absmax and levels in its `quant_state`. In 8 bits SCB is in the
parameter until the layer's first forward pass, which moves it to the module's `state`.

On a CPU that has AVX512-BF16, the first forward pass in evaluation mode rearranges a 4-bit weight in place, and rounds
absmax to bfloat16. Such a layer has no backward any more: the gradient of its input is silently missing (0.50.2).
A view undoes that arrangement and turns it off, for itself and its base, when it is made (`settle`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from inlay.quant.backend import Backend, Replacement, register


def _state_of(layer: Any) -> Any:
    """The weight's `quant_state`; FSDP leaves only the module's reference to it. None if it is not quantised (yet)."""
    own = getattr(layer.weight, "quant_state", None)
    return getattr(layer, "quant_state", None) if own is None else own


def _is_packed_for_cpu(state: Any) -> bool:
    return bool(getattr(state, "packing_format_for_cpu", False))


def _arranged(layer: Any) -> tuple[Tensor, Any]:
    """(q, quant_state) in the usual arrangement; the layer's own if it has that."""
    from bitsandbytes import functional

    packed, state = layer.weight.data, _state_of(layer)
    if not _is_packed_for_cpu(state):
        return packed, state
    state = copy.copy(state)
    state.original_nested = False  # or absmax would be quantised again
    packed, state = functional._convert_weight_packed_for_cpu_inverse(packed, state)
    state.absmax = state.absmax.T.reshape(-1).float()
    return packed, state


def _dequantise_4bit(layer: Any) -> Tensor:
    from bitsandbytes import functional

    packed, state = _arranged(layer)
    w: Tensor = functional.dequantize_4bit(packed.reshape(-1, 1), state)
    return w


def _requantise_4bit(layer: Any, w: Tensor) -> Replacement:
    from bitsandbytes import functional, nn

    before, old = _state_of(layer), layer.weight
    rearranged = _is_packed_for_cpu(before)
    # what pickling keeps of the parameter is its attributes, not its class
    nested = getattr(old, "compress_statistics", before.nested)
    storage = getattr(old, "quant_storage", old.dtype)
    packed, state = functional.quantize_4bit(
        w.float().contiguous(),
        blocksize=before.blocksize,
        compress_statistics=nested,
        quant_type=before.quant_type,
        quant_storage=storage,
    )
    state.dtype = before.original_dtype if rearranged else before.dtype
    new = nn.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=nested,
        quant_type=state.quant_type,
        quant_storage=storage,
        bnb_quantized=True,
    )
    return Replacement({"weight": new}, {"quant_state": state})


def _settle_4bit(layer: Any) -> None:
    if getattr(layer, "support_avx512bf16_for_cpu", False):
        layer.support_avx512bf16_for_cpu = False
    state = _state_of(layer)
    if _is_packed_for_cpu(state):
        layer.weight.data, usual = _arranged(layer)
        state.__dict__.update(usual.__dict__)  # in place: every module over this weight refers to it


def _scales(layer: Any) -> Tensor:
    """SCB: (out,)"""
    own = getattr(layer.weight, "SCB", None)
    found: Tensor = layer.state.SCB if own is None else own
    return found


def _dequantise_8bit(layer: Any) -> Tensor:
    scaled: Tensor = layer.weight.data.float() * (_scales(layer).float() / 127)[:, None]
    return scaled


def _requantise_8bit(layer: Any, w: Tensor) -> Replacement:
    from bitsandbytes import functional, nn

    rows, scales, _ = functional.int8_vectorwise_quant(w.to(torch.float16).contiguous())
    state = copy.copy(layer.state)
    state.CB = state.SCB = state.idx = None  # the layer's next forward pass takes them from the parameter
    new = nn.Int8Params(rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales)
    return Replacement({"weight": new}, {"state": state})


register(
    Backend(
        "bitsandbytes 4-bit",
        _dequantise_4bit,
        _requantise_4bit,
        applies=lambda layer: _state_of(layer) is not None,
        settle=_settle_4bit,
        takes_float32=True,
    ),
    "bitsandbytes.nn.modules.Linear4bit",
    "bitsandbytes.nn.modules.Embedding4bit",
)
register(
    Backend(
        "bitsandbytes 8-bit",
        _dequantise_8bit,
        _requantise_8bit,
        applies=lambda layer: layer.weight.dtype == torch.int8,
        takes_float32=True,
    ),
    "bitsandbytes.nn.modules.Linear8bitLt",
)
