"""LoRA on linear layers (`nn.Linear`, transformers' `Conv1D`, and any subclass)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.host import Site
from inlay.kernels.lora import is_traced, lora_add, lora_linear
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.lowrank import LowRank
from inlay.quant import is_quantised
from inlay.registry import adapter


@adapter(LoraConfig, "linear")
@adapter(LoraConfig, "linear", variant="bias")
class LoraLinear(LowRank):
    r"""W' = W + s B A,  y = x W^T + s (x A^T) B^T + b.   Hu et al. 2021, arXiv 2106.09685.

    x: (..., in)   W: (out, in)   A: (r, in)   B: (out, r)   s = alpha / r, or alpha / sqrt(r)

    With `lora_bias`, b' = b + s c.   c: (out,)
    """

    def __init__(self, config: LoraConfig, site: Site):
        super().__init__(config, site)
        self.make(config, site, (self.r, site.in_features), (site.out_features, self.r))

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        parts = self.parts(x)
        if len(parts) == 1 and parts[0][0] is x and _is_plain(base, host, x):
            b = self.bias(host.bias)  # type: ignore[arg-type]
            b = b if b is None else b.to(x.dtype)
            return lora_linear(x, host.weight, b, *parts[0][1:], self.scale)  # type: ignore[arg-type]
        y = base(x, *args, **kwargs)
        for inputs, down, up in parts:
            y = lora_add(y, inputs, down, up, self.scale)
        return self.shifted(y, host)


def _is_plain(base: Any, host: Any, x: Tensor) -> bool:
    """True if `base` is just x W^T + b on a frozen, dense W of x's dtype, so that one kernel can do it all."""
    if is_traced() or getattr(base, "__func__", None) is not nn.Linear.forward:
        return False
    w = host.weight
    fits = w.dtype == x.dtype and not w.requires_grad and not is_quantised(host)  # torchao's are plain nn.Linear
    return fits and not torch.is_autocast_enabled(x.device.type) and x.numel() > 0
