"""LoRA on linear layers (`nn.Linear`, transformers' `Conv1D`, and any subclass)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.core.adapter import Adapter
from inlay.core.host import Site
from inlay.errors import ConfigError
from inlay.kernels.lora import is_traced, lora_add, lora_linear
from inlay.methods.lora.config import LoraConfig
from inlay.registry import adapter


class LowRank(Adapter):
    """What LoRA's layers have in common: A, B, the scale s, dropout, and the bias if it is trained."""

    a_key, b_key = "lora_A.weight", "lora_B.weight"

    def __init__(self, config: LoraConfig, site: Site):
        super().__init__(config, site)
        self.r, self.scale = config.rank(site.path), config.scale(site.path)
        self.dropout, self.init = config.lora_dropout, config.init_lora_weights
        own = getattr(site.module, "bias", None)
        trained = config.bias != "none" and isinstance(own, Tensor)
        self.b = nn.Parameter(own.detach().clone(), requires_grad=False) if trained else None  # type: ignore[union-attr]

    def bias(self, b: Tensor | None) -> Tensor | None:
        return b if self.b is None or b is None else self.b.to(b.dtype)

    def shifted(self, y: Tensor, host: Any, *spread: int) -> Tensor:
        """`y`, computed with the host's bias, with the trained one instead; `spread`: shape the bias takes in y."""
        if self.b is None:
            return y
        shift: Tensor = self.b.to(y.dtype) - host.bias.to(y.dtype)
        return y + shift.view(-1, *spread)

    def dropped(self, x: Tensor) -> Tensor:
        """Dropout on the adapter's input, in training."""
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """A and B in their dtype or w's, whichever is wider: merging rounds once."""
        dtype = torch.promote_types(self.A.dtype, w.dtype)
        return self.A.to(dtype), self.B.to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        own: dict[str, Tensor] = {self.a_key: self.A, self.b_key: self.B}
        return own if self.b is None else {**own, "base_layer.bias": self.b}

    def replaces(self, host: nn.Module) -> list[nn.Parameter]:
        return [] if self.b is None else [host.bias]  # type: ignore[list-item]

    A: nn.Parameter
    B: nn.Parameter


@adapter(LoraConfig, "linear")
class LoraLinear(LowRank):
    r"""W' = W + s B A,  y = x W^T + s (x A^T) B^T + b.   Hu et al. 2021, arXiv 2106.09685.

    x: (..., in)   W: (out, in)   A: (r, in)   B: (out, r)   s = alpha / r, or alpha / sqrt(r)
    """

    def __init__(self, config: LoraConfig, site: Site):
        super().__init__(config, site)
        self.A = self.parameter(site, self.r, site.in_features)
        self.B = self.parameter(site, site.out_features, self.r)

    def reset(self, host: nn.Module) -> None:
        reset_low_rank(self.A, self.B, self.r, self.init)

    def weight(self, w: Tensor) -> Tensor:
        a, b = self.factors(w)
        return w + (self.scale * (b @ a)).to(w.dtype)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        inputs = self.dropped(x)
        if inputs is x and _is_plain(base, host, x):
            return lora_linear(x, host.weight, self.bias(host.bias), self.A, self.B, self.scale)  # type: ignore[arg-type]
        y = base(x, *args, **kwargs)
        return self.shifted(lora_add(y, inputs, self.A, self.B, self.scale), host)


def _is_plain(base: Any, host: Any, x: Tensor) -> bool:
    """True if `base` is just x W^T + b on a frozen, dense W of x's dtype, so that one kernel can do it all."""
    if is_traced() or getattr(base, "__func__", None) is not nn.Linear.forward:
        return False
    w = host.weight
    return w.dtype == x.dtype and not w.requires_grad and not torch.is_autocast_enabled(x.device.type) and x.numel() > 0


def reset_low_rank(a: Tensor, b: Tensor, r: int, init: bool | str) -> None:
    """Initialises A: (r, ...) and B: (..., r) in place, see `LoraConfig.init_lora_weights`."""
    if init == "gaussian":
        nn.init.normal_(a, std=1 / r)
        nn.init.zeros_(b)
    elif init == "orthogonal":
        reset_orthogonal(a, b, r)
    else:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        if init:
            nn.init.zeros_(b)
        else:
            nn.init.kaiming_uniform_(b, a=math.sqrt(5))


def reset_orthogonal(a: Tensor, b: Tensor, r: int) -> None:
    """A = (Q_odd^T N_A) / 10, B = (N_B Q_even) / 10 with normal N and the rows Q_odd, Q_even of an orthogonal (r, r) Q.

    Their row spaces are orthogonal, so BA = 0 while neither factor is.
    """
    if r % 2:
        raise ConfigError.of("r", r, "an even rank with init_lora_weights='orthogonal'")
    q, _ = torch.linalg.qr(torch.randn(r, r, device=a.device))
    a.copy_(q[0::2].T @ torch.randn(r // 2, a[0].numel(), device=a.device) / 10)
    b.copy_(torch.randn(b.shape[0], r // 2, device=a.device) @ q[1::2] / 10)
