"""OFT, orthogonal fine-tuning: W' = W R^T with R a block-diagonal rotation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_int, check_number
from inlay.core.adapter import Adapter
from inlay.core.host import Site
from inlay.errors import ConfigError, InlayWarning
from inlay.methods.targets import AttentionConfig
from inlay.registry import adapter


@dataclass
class OFTConfig(AttentionConfig, peft_type="OFT"):
    r"""W' = W R^T with R = diag(R_1, ..., R_n), n = in / b rotations of b inputs each.

    Args:
        r: number n of blocks, if `oft_block_size` is 0.
        oft_block_size: inputs b per block, if `r` is 0. Where b or n does not divide a layer's inputs, the nearest
            divisor is taken, with a warning.
        module_dropout: probability of taking the identity for a block, in training. (peft reads this and has no use
            for it.)
        coft: keep every block's Q within a distance of 0, see `eps` (constrained OFT).
        eps: that distance, in the Frobenius norm, times the square root of the number of Qs.
        block_share: one rotation for all blocks.
        use_cayley_neumann: compute R by a truncated series instead of a linear solve: faster, not quite orthogonal.
        num_cayley_neumann_terms: of that series.
        init_weights: True: R = I. False: random, so that the adapter is not the identity (for tests).

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 0
    oft_block_size: int = 32
    module_dropout: float = 0.0
    init_weights: bool = True
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none", "fan_in_fan_out": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("r", self.r, 0)
        check_int("oft_block_size", self.oft_block_size, 0)
        if (self.r == 0) == (self.oft_block_size == 0):
            raise ConfigError.of(
                "r", self.r, "one of r and oft_block_size to be 0", f"oft_block_size is {self.oft_block_size}."
            )
        check_number("module_dropout", self.module_dropout, 0.0, 1.0)
        for name in ("init_weights", "coft", "block_share", "use_cayley_neumann"):
            check_bool(name, getattr(self, name))
        check_number("eps", self.eps, 1e-12)
        check_int("num_cayley_neumann_terms", self.num_cayley_neumann_terms, 2)

    def blocks(self, features: int, path: str) -> int:
        """The number of blocks for a layer at `path` that rotates `features`."""
        name = "r" if self.r else "oft_block_size"
        given = getattr(self, name)
        taken = min((d for d in range(1, features + 1) if features % d == 0), key=lambda d: (abs(d - given), d))
        if taken != given:
            warnings.warn(
                f"{name}={given} does not divide the {features} inputs of {path!r}: {name}={taken} is taken there.",
                InlayWarning,
                stacklevel=2,
            )
        return taken if self.r else features // taken


class Rotation(Adapter):
    """R = diag(R_1, ..., R_n), each R_i made of the upper triangle of a skew-symmetric Q_i: (b, b)."""

    key = "oft_R.weight"

    def __init__(self, config: OFTConfig, site: Site, features: int):
        super().__init__(config, site)
        self.blocks = config.blocks(features, site.path)
        self.size = features // self.blocks
        self.R = self.parameter(site, 1 if config.block_share else self.blocks, self.size * (self.size - 1) // 2)
        self.init, self.dropout = config.init_weights, config.module_dropout
        self.eps = config.eps / math.sqrt(len(self.R)) if config.coft else None
        self.terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else None

    def reset(self, host: nn.Module) -> None:
        if self.init:
            nn.init.zeros_(self.R)
        else:
            nn.init.normal_(self.R, std=0.1)

    def bounded(self) -> Tensor:
        """The Qs' upper triangles, moved to where their norm is at most eps. In training the parameter itself is moved.

        The gradient passes as if nothing had been moved.
        """
        if self.eps is None:
            return self.R
        own = self.R.detach()
        norm = math.sqrt(2) * own.norm(dim=1, keepdim=True)  # of the whole Q
        inside = own * (self.eps / norm).clamp(max=1)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.R.copy_(inside)
            return self.R
        moved: Tensor = inside + (self.R - own)
        return moved

    def rotations(self, dtype: torch.dtype) -> Tensor:
        """The R_i: (n, b, b), or (1, b, b) if they are one, in `dtype`, computed in at least float32."""
        with torch.autocast(self.R.device.type, enabled=False):
            vector = self.bounded()
            vector = vector.to(torch.promote_types(torch.promote_types(vector.dtype, torch.float32), dtype))
            rows, columns = torch.triu_indices(self.size, self.size, 1, device=vector.device)
            q = vector.new_zeros(len(vector), self.size, self.size)
            q[:, rows, columns] = vector
            q = q - q.mT
            one = torch.eye(self.size, dtype=q.dtype, device=q.device)
            if self.terms is None:
                r = torch.linalg.solve(one + q, one - q, left=False)
            elif self.terms == 2:
                r = one + 2 * q
            else:
                series = one.expand_as(q)
                for _ in range(max(self.terms - 2, 2)):
                    series = one + q @ series
                r = series + q @ series
            if self.training and self.dropout:
                kept = torch.rand(self.blocks, 1, 1, device=r.device) >= self.dropout
                r = torch.where(kept, r, one)
        rotations: Tensor = r.to(dtype)
        return rotations

    def turned(self, v: Tensor, back: bool = False) -> Tensor:
        """v R, or v R^T if `back`.   v: (..., in)"""
        r = self.rotations(v.dtype)
        r = (r.mT if back else r).expand(self.blocks, -1, -1)
        parts = v.reshape(*v.shape[:-1], self.blocks, self.size)
        turned: Tensor = torch.einsum("...nb,nbc->...nc", parts, r).reshape(v.shape)
        return turned

    def tensors(self) -> dict[str, Tensor]:
        return {self.key: self.R}


@adapter(OFTConfig, "linear")
class OFTLinear(Rotation):
    r"""W' = W R^T,  y = (x R) W^T + b.   Qiu et al. 2023, arXiv 2306.07280; Qiu et al. 2025, arXiv 2506.19847.

    x: (..., in)   W: (out, in)   R = diag(R_1, ..., R_n), R_i: (b, b), n b = in

    R_i is Cayley's transform of a skew-symmetric Q_i, whose upper triangle is trained: (I - Q)(I + Q)^-1, or with
    `use_cayley_neumann` its inverse's series (I + Q)(I + Q + ... + Q^(t-2)), t terms but at least 4; I + 2 Q for two.
    (That the two turn in opposite directions is peft's choice; files say which is meant.)

    The input is rotated, not the weight, so any host will do, quantised ones included.
    """

    def __init__(self, config: OFTConfig, site: Site):
        super().__init__(config, site, site.in_features)

    def weight(self, w: Tensor) -> Tensor:
        return self.turned(w, back=True)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        return base(self.turned(x), *args, **kwargs)


@adapter(OFTConfig, "conv1d", "conv2d", "conv3d")
class OFTConv(Rotation):
    r"""W' = W R^T with W as a matrix of one row per output.   Qiu et al. 2023, arXiv 2306.07280.

    W: (out, in/groups times the points of the kernel)   R: see `OFTLinear`

    peft rotates the input's patches instead and adds overlapping ones up again, which for kernels of more than one
    point is not this, nor the identity for R = I; what it merges is this. Any dilation and groups are right here.
    """

    reads_weight = True

    def __init__(self, config: OFTConfig, site: Site):
        host: Any = site.module
        super().__init__(config, site, math.prod(host.weight.shape[1:]))

    def weight(self, w: Tensor) -> Tensor:
        return self.turned(w.flatten(1), back=True).reshape(w.shape)


@adapter(OFTConfig, "embedding")
class OFTEmbedding(Rotation):
    r"""W' = W R,  y = W[x] R.   x: (...) token ids   W: (num, dim)   R: (dim, dim), see `OFTLinear`"""

    key = "oft_embedding_R.weight"

    def __init__(self, config: OFTConfig, site: Site):
        super().__init__(config, site, site.out_features)

    def weight(self, w: Tensor) -> Tensor:
        return self.turned(w)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        return self.turned(base(x, *args, **kwargs))
