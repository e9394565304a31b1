"""Random starts with B A = 0 (or, for tests, any B A).

Numbers are drawn in the order in which peft draws them, whose A and B are modules of torch that start with values of
their own: the same seed gives the same adapter in both, and losses can be compared from the first step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from inlay.errors import ConfigError


def reset_random(a: Tensor, b: Tensor, c: Tensor | None, r: int, init: bool | str) -> None:
    """Initialises A: (r, ...), B: (..., r) and c: (out,) in place, see `LoraConfig.init_lora_weights`."""
    for matrix in (a, b):
        nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
    if c is not None:
        nn.init.uniform_(c, -(r**-0.5), r**-0.5)
    if init is False:
        return
    if init == "orthogonal":
        reset_orthogonal(a, b, r)
    elif init == "gaussian":
        nn.init.normal_(a, std=1 / r)
        nn.init.zeros_(b)
    else:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        nn.init.zeros_(b)
    if c is not None:
        nn.init.zeros_(c)


def reset_orthogonal(a: Tensor, b: Tensor, r: int) -> None:
    """A = (Q_odd^T N_A) / 10, B = (N_B Q_even) / 10 with normal N and the rows Q_odd, Q_even of an orthogonal (r, r) Q.

    Their row spaces are orthogonal, so BA = 0 while neither factor is.
    """
    if r % 2:
        raise ConfigError.of("r", r, "an even rank with init_lora_weights='orthogonal'")
    q, _ = torch.linalg.qr(torch.randn(r, r, device=a.device))
    a.copy_((torch.randn(a[0].numel(), r // 2, device=a.device) @ q[0::2]).T / 10)
    b.copy_(torch.randn(r // 2, b.shape[0], device=a.device).T @ q[1::2] / 10)
