"""torchao: plain modules whose weight is a tensor subclass that knows how to `dequantize()`.

W is quantised again by the subclass's `from_hp`, with what the old weight says of itself: block size, dtype, what is
quantised of the activations. Classes other than those in `_AGAIN` can be read but not written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.host import ancestry
from inlay.errors import StateError
from inlay.quant.backend import Backend, Replacement, register

_PLACE = "torchao.quantization.quantize_.workflows"


def _dequantise(layer: Any) -> Tensor:
    return layer.weight.dequantize()  # type: ignore[no-any-return]


def _requantise(layer: Any, w: Tensor) -> Replacement:
    old = layer.weight
    again = next((_AGAIN[name] for name in ancestry(type(old)) if name in _AGAIN), None)
    if again is None:
        raise StateError(
            f"torchao's {type(old).__name__} cannot be made anew from numbers: call "
            "merge_and_unload(dequantize=True) for a dense model."
        )
    return Replacement({"weight": nn.Parameter(again(old, w.to(old.dtype).contiguous()), requires_grad=False)})


def _granularity(old: Any) -> Any:
    """The granularity that gives blocks of the old weight's size."""
    from torchao.quantization import PerGroup, PerRow, PerTensor

    block, shape = list(old.block_size), list(old.shape)
    if block == shape:
        return PerTensor()
    return PerRow() if block[-1] == shape[-1] else PerGroup(block[-1])


def _mapping(old: Any) -> Any:
    """Symmetric where there are no zero points but 0."""
    from torchao.quantization.quant_primitives import MappingType

    shifted = old.zero_point is not None and bool(old.zero_point.any())
    return MappingType.ASYMMETRIC if shifted else MappingType.SYMMETRIC


def _int8(old: Any, w: Tensor) -> Tensor:
    kept = ("act_quant_kwargs", "act_quant_scale", "act_quant_zero_point", "act_pre_scale", "reduce_range")
    own = {name: getattr(old, name) for name in kept if hasattr(old, name)}
    return type(old).from_hp(w, _granularity(old), mapping_type=_mapping(old), **own)  # type: ignore[no-any-return]


def _intx(old: Any, w: Tensor) -> Tensor:
    return type(old).from_hp(  # type: ignore[no-any-return]
        w,
        tuple(old.block_size),
        old.target_dtype,
        mapping_type=_mapping(old),
        activation_quantization=old.activation_quantization,
    )


def _float8(old: Any, w: Tensor) -> Tensor:
    return type(old).from_hp(  # type: ignore[no-any-return]
        w,
        float8_dtype=old.qdata.dtype,
        granularity=_granularity(old),
        mm_config=old.mm_config,
        kernel_preference=old.kernel_preference,
        act_quant_kwargs=old.act_quant_kwargs,
    )


def _int4(old: Any, w: Tensor) -> Tensor:
    own = {"activation_dtype": old.activation_dtype} if getattr(old, "activation_dtype", None) is not None else {}
    return type(old).from_hp(w.to(torch.bfloat16), list(old.block_size), **own)  # type: ignore[no-any-return]


_AGAIN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    f"{_PLACE}.int8.int8_tensor.Int8Tensor": _int8,
    f"{_PLACE}.intx.intx_unpacked_to_int8_tensor.IntxUnpackedToInt8Tensor": _intx,
    f"{_PLACE}.float8.float8_tensor.Float8Tensor": _float8,
    f"{_PLACE}.int4.int4_tensor.Int4Tensor": _int4,
    "torchao.quantization.Int8Tensor": _int8,  # torchao sets its classes' __module__ to where they are exported
    "torchao.quantization.IntxUnpackedToInt8Tensor": _intx,
    "torchao.quantization.Float8Tensor": _float8,
    "torchao.quantization.Int4Tensor": _int4,
}

register(Backend("torchao", _dequantise, _requantise), "torchao.utils.TorchAOBaseTensor")
