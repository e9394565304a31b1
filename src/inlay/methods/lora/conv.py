"""LoRA on convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from inlay.core.host import Site
from inlay.errors import ConfigError
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.lowrank import LowRank
from inlay.registry import adapter

CONVS = ("conv1d", "conv2d", "conv3d")


@adapter(LoraConfig, *CONVS)
@adapter(LoraConfig, *CONVS, variant="bias")
class LoraConv(LowRank):
    r"""W' = W + s B A with A a convolution of the host's shape to r channels and B a pointwise one.

    y = W * x + s B * (A * x)   W: (out, in/g, *k)   A: (r, in/g, *k)   B: (out, r/g, 1...)   g: groups, a divisor of r
    (B A)[o, i] = sum over the r/g channels c of o's group of B[o, c] A[c, i], for every point of the kernel.

    With `lora_bias`, b' = b + s c.   c: (out,)
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
        spread = (1,) * (len(kernel) - 1)
        self.make(config, site, (self.r, *kernel), (site.out_features, self.r // self.groups, *spread))

    def reset(self, host: nn.Module) -> None:
        if self.init == "orthogonal":
            raise ConfigError.of("init_lora_weights", self.init, "True, False or 'gaussian' on convolutions")
        super().reset(host)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        spread = [1] * (self.A.dim() - 2)
        pointwise = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(spread) - 1]
        for inputs, down, up in self.parts(x):
            h = host._conv_forward(inputs.to(y.dtype), down.to(y.dtype), None)
            y = y + self.scale * pointwise(h, up.to(y.dtype), groups=self.groups)
        return self.shifted(y, host, *spread)
