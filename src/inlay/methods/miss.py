"""MiSS, matrix shard sharing (once Bone): W' = W + D with D one small block over and over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.checks import check_choice, check_int, check_number
from inlay.core.adapter import Adapter
from inlay.core.host import Site, product, weight_of
from inlay.errors import ConfigError
from inlay.methods.additive import Additive
from inlay.methods.targets import AttentionConfig
from inlay.registry import adapter


@dataclass
class MissConfig(AttentionConfig, peft_type="MISS"):
    r"""W' = W + [M^T M^T ...], a block M: (r, out) shared by all shards of r inputs.

    Args:
        r: inputs per shard.
        miss_dropout: probability of zeroing an input of the change in training. (peft leaves it out with "bat".)
        mini_r: columns of M that are trained with "mini"; a divisor of the layer's outputs.
        init_weights: which form, and its start. True: the one above, at zero. "mini": M repeats its first `mini_r`
            columns, at zero. "bat": shards are multiplied too, see `MissBat`, at zero. False: random (for tests).

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 64
    miss_dropout: float = 0.0
    mini_r: int = 1
    init_weights: bool | str = True

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("r", self.r, 1)
        check_int("mini_r", self.mini_r, 1)
        check_number("miss_dropout", self.miss_dropout, 0.0, 1.0)
        check_choice("init_weights", self.init_weights, (True, False, "bat", "mini"))

    @property
    def variant(self) -> str:
        return "bat" if self.init_weights == "bat" else ""


@adapter(MissConfig, "linear")
class Miss(Additive):
    r"""W' = W + D with D[o, i] = M[i mod r, o],  y = x W^T + (x_1 + ... + x_n) M + b.   Kang et al. 2024, arXiv 2409.15371.

    x: (..., in), in shards x_j: (..., r), the last filled up with zeros   W: (out, in)   M: (r, out)
    "mini": M[:, o] = m[:, o mod mini_r]   m: (r, mini_r)
    """  # noqa: E501

    def __init__(self, config: MissConfig, site: Site):
        super().__init__(config, site)
        self.r, self.features, self.out = config.r, site.in_features, site.out_features
        self.init, self.dropout = config.init_weights, config.miss_dropout
        if self.r > self.features:
            raise ConfigError.of("r", self.r, f"at most {self.features}, the inputs of {site.path!r}")
        columns = config.mini_r if self.init == "mini" else self.out
        if self.out % columns:
            raise ConfigError.of("mini_r", columns, f"a divisor of {self.out}, the outputs of {site.path!r}")
        self.m = self.parameter(site, self.r, columns)

    def reset(self, host: nn.Module) -> None:
        if self.init:
            nn.init.zeros_(self.m)
        else:
            nn.init.kaiming_uniform_(self.m, a=math.sqrt(5))

    def block(self) -> Tensor:
        """M: (r, out)."""
        return self.m.repeat(1, self.out // self.m.shape[1])

    def change(self, dtype: torch.dtype) -> Tensor:
        return self.block().T.repeat(1, -(-self.features // self.r))[:, : self.features]

    def added(self, x: Tensor, host: nn.Module) -> Tensor:
        x = F.dropout(x, self.dropout) if self.dropout and self.training else x
        shards = -(-self.features // self.r)
        filled = F.pad(x, (0, shards * self.r - self.features))
        total = filled.reshape(*x.shape[:-1], shards, self.r).sum(-2)
        return F.linear(total, self.block().T.to(x.dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {"miss_block": self.m}


@adapter(MissConfig, "linear", variant="bat")
class MissBat(Adapter):
    r"""W' = W + D with D_pq = W_pq M_p + M_p in (r, r) blocks.   Kang et al. 2024, arXiv 2409.15371.

    W: (out, in), W_pq: (r, r) its block of the p-th r outputs and the q-th r inputs   M: (out / r, r, r)
    """

    reads_weight = True

    def __init__(self, config: MissConfig, site: Site):
        super().__init__(config, site)
        self.r, self.dropout = config.r, config.miss_dropout
        if site.in_features % self.r or site.out_features % self.r:
            sides = f"{site.in_features} inputs and {site.out_features} outputs"
            raise ConfigError.of("r", self.r, f"a divisor of the {sides} of {site.path!r} with init_weights='bat'")
        self.m = self.parameter(site, site.out_features // self.r, self.r, self.r)

    def reset(self, host: nn.Module) -> None:
        nn.init.zeros_(self.m)

    def change(self, w: Tensor) -> Tensor:
        """W' - W."""
        blocks = w.reshape(len(self.m), self.r, -1, self.r).transpose(1, 2)  # (out / r, in / r, r, r)
        m = self.m.to(torch.promote_types(self.m.dtype, w.dtype)).unsqueeze(1)
        changed: Tensor = (blocks.to(m.dtype) @ m + m).transpose(1, 2).reshape(w.shape).to(w.dtype)
        return changed

    def weight(self, w: Tensor) -> Tensor:
        return w + self.change(w)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        if not (self.training and self.dropout):
            return super().forward(base, x, *args, host=host, **kwargs)
        y = base(x, *args, **kwargs)
        change = self.change(weight_of(host))
        return y + product(host, F.dropout(x.to(y.dtype), self.dropout), change, None)

    def tensors(self) -> dict[str, Tensor]:
        return {"miss_block": self.m}
