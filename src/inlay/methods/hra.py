"""HRA, Householder reflection adaptation: W' = W H_1 ... H_r."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_int
from inlay.core.adapter import Adapter
from inlay.core.host import Site
from inlay.errors import ConfigError, InlayWarning
from inlay.methods.targets import AttentionConfig
from inlay.registry import adapter


@dataclass
class HRAConfig(AttentionConfig, peft_type="HRA"):
    r"""W' = W H_1 ... H_r with reflections H_i = I - 2 u_i u_i^T / |u_i|^2.

    Args:
        r: number of reflections; even, or the adapter does not start as the identity.
        apply_GS: make the u_i orthogonal (Gram-Schmidt). The product of r reflections along orthogonal directions is
            never the identity, at the start neither.
        init_weights: True: u_2 = u_1, u_4 = u_3, ..., so that the reflections cancel (with `apply_GS`, which has no use
            for equal directions, all are random). False: all random.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 8
    apply_GS: bool = False
    init_weights: bool = True

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("r", self.r, 1)
        check_bool("apply_GS", self.apply_GS)
        check_bool("init_weights", self.init_weights)


class Reflections(Adapter):
    r"""H = H_1 ... H_r = I - U S^-1 U^T with the unit vectors u_i in U: (in, r).

    S: (r, r) is upper triangular with S_ii = 1/2 and S_ij = u_i . u_j above. With orthonormal columns S = I / 2.
    """

    def __init__(self, config: HRAConfig, site: Site, features: int):
        super().__init__(config, site)
        self.orthogonal, self.init, self.r = config.apply_GS, config.init_weights, config.r
        if self.orthogonal and self.r > features:
            raise ConfigError.of("r", self.r, f"at most {features} with apply_GS, the inputs of {site.path!r}")
        self.u = self.parameter(site, features, self.r)

    def reset(self, host: nn.Module) -> None:
        if not self.init or self.orthogonal:
            nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        elif self.r % 2:
            warnings.warn(f"r={self.r} is odd: HRA does not start as the identity.", InlayWarning, stacklevel=2)
            nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        else:
            half = self.u.new_empty(len(self.u), self.r // 2)
            nn.init.kaiming_uniform_(half, a=math.sqrt(5))
            self.u.copy_(half.repeat_interleave(2, dim=1))

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """U and S^-1 in `dtype`, computed in at least float32."""
        with torch.autocast(self.u.device.type, enabled=False):
            u = self.u.to(torch.promote_types(torch.promote_types(self.u.dtype, torch.float32), dtype))
            one = torch.eye(self.r, dtype=u.dtype, device=u.device)
            if self.orthogonal:
                u, inverse = torch.linalg.qr(u).Q, 2 * one
            else:
                u = u / u.norm(dim=0)
                inverse = torch.linalg.solve_triangular((u.T @ u).triu(1) + one / 2, one, upper=True)
        return u.to(dtype), inverse.to(dtype)

    def reflected(self, v: Tensor, back: bool = False) -> Tensor:
        """v H, or v H^T if `back`.   v: (..., in)"""
        u, inverse = self.factors(v.dtype)
        return v - v @ u @ (inverse.T if back else inverse) @ u.T

    def tensors(self) -> dict[str, Tensor]:
        return {"hra_u": self.u}


@adapter(HRAConfig, "linear")
class HRALinear(Reflections):
    r"""W' = W H,  y = (x H^T) W^T + b,  H = H_1 ... H_r.   Yuan et al. 2024, arXiv 2405.17484.

    x: (..., in)   W: (out, in)   H_i = I - 2 u_i u_i^T / |u_i|^2   u_i: (in,)

    The input is reflected, by two products with U: (in, r), not the weight, so any host will do.
    """

    def __init__(self, config: HRAConfig, site: Site):
        super().__init__(config, site, site.in_features)

    def weight(self, w: Tensor) -> Tensor:
        return self.reflected(w)

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        return base(self.reflected(x, back=True), *args, **kwargs)


@adapter(HRAConfig, "conv1d", "conv2d", "conv3d")
class HRAConv(Reflections):
    r"""W' = W H with W as a matrix of one row per output.   Yuan et al. 2024, arXiv 2405.17484.

    W: (out, in/groups times the points of the kernel)   H: see `HRALinear`
    """

    reads_weight = True

    def __init__(self, config: HRAConfig, site: Site):
        host: Any = site.module
        super().__init__(config, site, math.prod(host.weight.shape[1:]))

    def weight(self, w: Tensor) -> Tensor:
        return self.reflected(w.flatten(1)).reshape(w.shape)
