"""LoRA on convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.host import Site
from inlay.errors import ConfigError
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.linear import LowRank, reset_low_rank
from inlay.registry import adapter


@adapter(LoraConfig, "conv1d", "conv2d", "conv3d")
class LoraConv(LowRank):
    r"""W' = W + s B A with A a convolution of the host's shape to r channels and B a pointwise one.

    y = W * x + s B * (A * x)   W: (out, in/g, *k)   A: (r, in/g, *k)   B: (out, r/g, 1...)   g: groups, a divisor of r
    (B A)[o, i] = sum over the r/g channels c of o's group of B[o, c] A[c, i], for every point of the kernel.
    """

    def __init__(self, config: LoraConfig, site: Site):
        super().__init__(config, site)
        host: Any = site.module
        self.groups = host.groups
        if self.r % self.groups:
            raise ConfigError.of(
                "r", self.r, f"a multiple of the {self.groups} groups of the convolution {site.path!r}"
            )
        kernel = tuple(host.weight.shape[1:])
        self.A = self.parameter(site, self.r, *kernel)
        self.B = self.parameter(site, site.out_features, self.r // self.groups, *([1] * (len(kernel) - 1)))

    def reset(self, host: nn.Module) -> None:
        if self.init == "orthogonal":
            raise ConfigError.of("init_lora_weights", self.init, "True, False or 'gaussian' on convolutions")
        reset_low_rank(self.A, self.B, self.r, self.init)

    def weight(self, w: Tensor) -> Tensor:
        g, (a, b) = self.groups, self.factors(w)
        a = a.reshape(g, self.r // g, -1)  # (g, r/g, in/g * k)
        b = b.reshape(g, -1, self.r // g)  # (g, out/g, r/g)
        return w + (self.scale * torch.bmm(b, a)).reshape(w.shape).to(w.dtype)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        spread = [1] * (self.A.dim() - 2)
        h = host._conv_forward(self.dropped(x).to(y.dtype), self.A.to(y.dtype), None)
        pointwise = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(spread) - 1]
        low = pointwise(h, self.B.to(y.dtype), groups=self.groups)
        return self.shifted(y + self.scale * low, host, *spread)
