"""Random starts with B A = 0 (or, for tests, any B A)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from inlay.errors import ConfigError


def reset_random(a: Tensor, b: Tensor, r: int, init: bool | str) -> None:
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
