"""BOFT, butterfly orthogonal fine-tuning: W' = diag(s) W R^T with R a product of sparse rotations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_int, check_number
from inlay.core.adapter import Adapter
from inlay.core.host import Site
from inlay.errors import ConfigError
from inlay.methods.targets import AttentionConfig
from inlay.registry import adapter


@dataclass
class BOFTConfig(AttentionConfig, peft_type="BOFT"):
    r"""W' = diag(s) W R^T with R = B_m ... B_1 of m butterfly factors.

    Args:
        boft_block_size: inputs b per block, if `boft_block_num` is 0; it has to divide a layer's inputs.
        boft_block_num: number n of blocks, if `boft_block_size` is 0; it has to divide a layer's inputs.
        boft_n_butterfly_factor: m; with more than one factor, b is even and n a multiple of 2^(m-1). (peft computes
            more than one only where its CUDA extension is built, and else silently takes one.)
        boft_dropout: share of the blocks of one factor, drawn anew, that are the identity in training.
        init_weights: True: R = I and s = 1. False: random, so that the adapter is not the identity (for tests).

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    boft_block_size: int = 4
    boft_block_num: int = 0
    boft_n_butterfly_factor: int = 1
    boft_dropout: float = 0.0
    init_weights: bool = True

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none", "fan_in_fan_out": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("boft_block_size", self.boft_block_size, 0)
        check_int("boft_block_num", self.boft_block_num, 0)
        if (self.boft_block_size == 0) == (self.boft_block_num == 0):
            raise ConfigError.of(
                *("boft_block_num", self.boft_block_num, "one of boft_block_num and boft_block_size to be 0"),
                f"boft_block_size is {self.boft_block_size}.",
            )
        check_int("boft_n_butterfly_factor", self.boft_n_butterfly_factor, 1)
        check_number("boft_dropout", self.boft_dropout, 0.0, 1.0)
        check_bool("init_weights", self.init_weights)

    def blocks(self, features: int, path: str) -> int:
        """The number of blocks for a layer at `path` that rotates `features`. Raises ConfigError if none fits."""
        name = "boft_block_num" if self.boft_block_num else "boft_block_size"
        given: int = getattr(self, name)
        if features % given:
            raise ConfigError.of(name, given, f"a divisor of {features}, the inputs of {path!r}")
        n = given if self.boft_block_num else features // given
        m = self.boft_n_butterfly_factor
        if m > 1 and (n % 2 ** (m - 1) or features // n % 2):
            raise ConfigError.of(
                "boft_n_butterfly_factor",
                m,
                f"1, or m with blocks of even size whose number is a multiple of 2^(m-1); {path!r} has {n} blocks of "
                f"{features // n} inputs",
            )
        return n


class Butterfly(Adapter):
    """R = B_m ... B_1 and s.

    B_i = P_i diag(R_i1, ..., R_in) P_i^T. Seen as 2^i half-blocks per segment of 2^(i-1) blocks, P_i^T puts a segment's
    half-blocks of even number before those of odd number, so that a factor's blocks pair inputs ever further apart.
    """

    def __init__(self, config: BOFTConfig, site: Site, features: int, *scale: int):
        super().__init__(config, site)
        self.blocks = config.blocks(features, site.path)
        self.size, self.factors = features // self.blocks, config.boft_n_butterfly_factor
        self.R = self.parameter(site, self.factors, self.blocks, self.size, self.size)
        self.s = self.parameter(site, *scale)
        self.init, self.dropout = config.init_weights, config.boft_dropout

    def reset(self, host: nn.Module) -> None:
        if self.init:
            nn.init.zeros_(self.R)
            nn.init.ones_(self.s)
        else:
            nn.init.normal_(self.R, std=0.1)
            nn.init.normal_(self.s, mean=1.0, std=0.1)

    def rotations(self, dtype: torch.dtype) -> Tensor:
        """The R_ij: (m, n, b, b) in `dtype`, computed in at least float32."""
        with torch.autocast(self.R.device.type, enabled=False):
            a = self.R.to(torch.promote_types(torch.promote_types(self.R.dtype, torch.float32), dtype))
            q, one = (a - a.mT) / 2, torch.eye(self.size, dtype=a.dtype, device=a.device)
            r = torch.linalg.solve(one + q, one - q, left=False)
            if self.training and self.dropout:
                off = torch.randperm(self.blocks, device=r.device) < int(self.dropout * self.blocks)
                chosen = torch.arange(self.factors, device=r.device) == torch.randint(self.factors, (), device=r.device)
                r = torch.where((chosen[:, None] & off)[:, :, None, None], one, r)
        rotations: Tensor = r.to(dtype)
        return rotations

    def turned(self, v: Tensor, back: bool = False) -> Tensor:
        """v R, or v R^T if `back`.   v: (..., in)"""
        r = self.rotations(v.dtype)
        for i in range(self.factors) if back else reversed(range(self.factors)):
            blocks = self.interleaved(v, i, 2, 2**i).reshape(*v.shape[:-1], self.blocks, self.size)
            u = torch.einsum("...nb,nbc->...nc", blocks, r[i].mT if back else r[i]).reshape(v.shape)
            v = self.interleaved(u, i, 2**i, 2)
        return v

    def interleaved(self, v: Tensor, i: int, rows: int, columns: int) -> Tensor:
        """v with the half-blocks of each segment, as a matrix of so many rows and columns, transposed."""
        if i == 0:
            return v
        segments = self.blocks // 2**i
        parts = v.reshape(*v.shape[:-1], segments, rows, columns, self.size // 2)
        return parts.transpose(-3, -2).reshape(v.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"boft_R": self.R, "boft_s": self.s}


@adapter(BOFTConfig, "linear")
class BOFTLinear(Butterfly):
    r"""W' = diag(s) W R^T,  y = s * ((x R) W^T) + b.   Liu et al. 2024, arXiv 2311.06243.

    x: (..., in)   W: (out, in)   s: (out, 1)   R = B_m ... B_1: (in, in), see `Butterfly`
    Blocks are Cayley's transform (I - Q)(I + Q)^-1 of Q = (A - A^T) / 2, A: (b, b) trained.

    The input is rotated and the output scaled, without the bias, so any host will do, quantised ones included.
    """

    reads_weight = True  # it does not, but takes the host's bias for that of what it wraps: so it has to be innermost

    def __init__(self, config: BOFTConfig, site: Site):
        super().__init__(config, site, site.in_features, site.out_features, 1)

    def weight(self, w: Tensor) -> Tensor:
        return self.s.to(w.dtype) * self.turned(w, back=True)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        y = base(self.turned(x), *args, **kwargs)
        s, b = self.s.squeeze(1).to(y.dtype), getattr(host, "bias", None)
        return s * y if b is None else s * y + (1 - s) * b.to(y.dtype)


@adapter(BOFTConfig, "conv1d", "conv2d", "conv3d")
class BOFTConv(Butterfly):
    r"""W' = diag(s) W R^T with W as a matrix of one row per output.   Liu et al. 2024, arXiv 2311.06243.

    W: (out, in/groups times the points of the kernel)   s: (1, out)   R: see `BOFTLinear`
    """

    reads_weight = True

    def __init__(self, config: BOFTConfig, site: Site):
        host: Any = site.module
        super().__init__(config, site, math.prod(host.weight.shape[1:]), 1, site.out_features)

    def weight(self, w: Tensor) -> Tensor:
        return (self.s.T.to(w.dtype) * self.turned(w.flatten(1), back=True)).reshape(w.shape)
