"""GPTQ and AWQ layers: whole numbers of b bits, 32 / b of them in an int32, in buffers.

GPTQ   qweight: (in b/32, out)   qzeros: (groups, out b/32)   scales: (groups, out)   g_idx: (in,)
       W[o, i] = scales[g, o] (q[i, o] - z[g, o] - 1),  g = g_idx[i]        format 2 stores z + 1 instead of z
AWQ    qweight: (in, out b/32)   qzeros: (groups, out b/32)   scales: (groups, out)       four bits, format "GEMM"
       W[o, i] = scales[g, o] (q[i, o] - z[g, o]),  g = i // group_size;  eight columns in the order 0 2 4 6 1 3 5 7

They cannot be quantised again without data to calibrate on. Kernels that rearrange the buffers when they are first used
(Marlin, ExLlama, ...) leave nothing that these formulas hold for: such layers are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inlay.errors import StateError
from inlay.quant.backend import Backend, register

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """The numbers of `bits` bits in each int32 of `packed`: (..., n) -> (..., n, 32 / bits), lowest bits first."""
    shifts = torch.arange(0, 32, bits, device=packed.device, dtype=torch.int32)
    found: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return found


def _check(layer: Any, bits: int, allowed: tuple[int, ...], shape: tuple[int, int]) -> None:
    own = getattr(layer, "qweight", None)
    if bits not in allowed or own is None or own.dtype != torch.int32 or tuple(own.shape) != shape:
        has = "none" if own is None else f"{own.dtype} {tuple(own.shape)}"
        raise StateError(
            f"The weight of this {type(layer).__name__} cannot be read: expected {' or '.join(map(str, allowed))} bits "
            f"in an int32 qweight of shape {shape}, it has {bits} bits, qweight {has}. Load the model with a kernel "
            "that keeps the buffers as they are on disk (gptqmodel: backend 'torch')."
        )


def _dequantise_gptq(layer: Any) -> Tensor:
    bits, rows, out = int(layer.bits), int(layer.in_features), int(layer.out_features)
    _check(layer, bits, (2, 4, 8), (rows * bits // 32, out))
    q = unpacked(layer.qweight.T, bits).flatten(1)  # (out, in)
    z = unpacked(layer.qzeros, bits).flatten(1)  # (groups, out)
    stored = layer.qzero_format() if hasattr(layer, "qzero_format") else 1
    z = z if stored == 2 else (z + 1) & (2**bits - 1)
    groups = layer.g_idx.long()
    w: Tensor = layer.scales.float()[groups] * (q.T - z[groups])
    return w.T


def _dequantise_awq(layer: Any) -> Tensor:
    bits, rows, out = int(getattr(layer, "w_bit", None) or layer.bits), int(layer.in_features), int(layer.out_features)
    _check(layer, bits, (4,), (rows, out * bits // 32))
    order = torch.tensor(_AWQ_ORDER, device=layer.qweight.device).argsort()
    q, z = (unpacked(t, bits)[..., order].flatten(1) for t in (layer.qweight, layer.qzeros))
    size = rows if layer.group_size in (-1, None) else int(layer.group_size)
    groups = torch.arange(rows, device=q.device) // size
    w: Tensor = layer.scales.float()[groups] * (q - z[groups])
    return w.T


register(Backend("GPTQ", _dequantise_gptq), "gptqmodel.nn_modules.qlinear.BaseQuantLinear")
register(
    Backend("AWQ", _dequantise_awq),
    "gptqmodel.nn_modules.qlinear.AWQuantLinear",
    "awq.modules.linear.gemm.WQLinear_GEMM",
)
