"""HQQ, half-quadratic quantisation (Badri & Shaji 2023): W = (W_q - zero) * scale in groups.

`HQQLinear` is no `nn.Linear`: it holds the packed `W_q`, its `meta` (scale, zero, shape, packing), and a bias that is a
plain attribute.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from inlay.quant.backend import Backend, Replacement, register


def _dequantise(layer: Any) -> Tensor:
    return type(layer).dequantize(layer)  # type: ignore[no-any-return]


def _requantise(layer: Any, w: Tensor) -> Replacement:
    from hqq.core.quantize import Quantizer

    options = copy.deepcopy(layer.quant_config["weight_quant_params"])
    packed, meta = Quantizer.quantize(w, device=layer.device, compute_dtype=layer.compute_dtype, **options)
    meta |= {name: meta[name].to(layer.compute_dtype) for name in ("scale", "zero")}
    for flag in ("compute_dtype", "quant_scale", "quant_zero"):  # what HQQLinear itself adds
        meta[flag] = layer.meta[flag]
    return Replacement({"W_q": nn.Parameter(packed, requires_grad=False)}, {"meta": meta})


register(Backend("HQQ", _dequantise, _requantise), "hqq.core.quantize.HQQLinear")
