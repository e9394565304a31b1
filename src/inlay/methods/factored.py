"""Methods whose update is a product of two thin matrices, made of what the layers share: W' = W + s B A."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.core.adapter import Adapter
from inlay.core.host import Site, offloaded_to
from inlay.kernels.lora import lora_add


class Factored(Adapter):
    r"""W' = W + s B A,  y = x W^T + s (x A^T) B^T, on linear layers; a method says what A and B are.

    x: (..., in)   W: (out, in)   A: (r, in)   B: (out, r)   s: `scale`
    """

    scale = 1.0
    dropout = 0.0  # probability of zeroing an input of A in training

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B, in the parameters' dtype."""
        raise NotImplementedError

    def dropped(self, x: Tensor) -> Tensor:
        """Dropout on the adapter's input, in training."""
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def weight(self, w: Tensor) -> Tensor:
        a, b = self.factors()
        dtype = torch.promote_types(a.dtype, w.dtype)
        return w + (self.scale * (b.to(dtype) @ a.to(dtype))).reshape(w.shape).to(w.dtype)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        a, b = self.factors()
        return lora_add(y, self.dropped(x), a, b, self.scale)


def device_of(site: Site) -> torch.device:
    """Where tensors go that are not loaded: the host's device, also while its parameters are on meta to be loaded."""
    weight: Any = getattr(site.module, "weight", None)  # HQQ's and GPTQ's layers have none
    held = next(iter(site.module.state_dict().values())) if weight is None else weight
    return offloaded_to(site.module) or held.device if site.device.type == "meta" else site.device
