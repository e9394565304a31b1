"""C3A, circular convolution adaptation: W' = W + D with D of circulant blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from inlay.checks import check_choice, check_int, check_patterns
from inlay.config import AdapterConfig
from inlay.core.host import Site
from inlay.core.targets import pattern_value
from inlay.errors import ConfigError
from inlay.methods.additive import Additive
from inlay.methods.targets import ATTENTION
from inlay.registry import adapter


@dataclass
class C3AConfig(AdapterConfig, peft_type="C3A"):
    r"""W' = W + D, D in circulant blocks of size b, each given by its first row.

    Args:
        block_size: b, a common divisor of a layer's inputs and outputs.
        block_size_pattern: module name or regex -> its own b.
        init_weights: "xavier_uniform" or False, "kaiming_uniform", "gaussian" (normal): random, so that the adapter
            does not start as the identity. True: zero.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    block_size: int = 256
    block_size_pattern: dict[str, int] = field(default_factory=dict)
    init_weights: bool | str | None = "xavier_uniform"

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("block_size", self.block_size)
        check_patterns("block_size_pattern", self.block_size_pattern, check_size)
        check_choice("init_weights", self.init_weights, (True, False, "xavier_uniform", "kaiming_uniform", "gaussian"))

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        own = {"gpt2": ["mlp.c_proj"], "gpt_bigcode": ["mlp.c_proj"]}
        return own.get(model_type or "", ATTENTION.get(model_type or ""))


def check_size(name: str, value: object) -> None:
    """Raises ConfigError unless `value` is an integer of at least 1."""
    check_int(name, value, 1)


@adapter(C3AConfig, "linear")
class C3A(Additive):
    r"""W' = W + D / in with D[m b + k, n b + j] = K[m, n, (j - k) mod b].   Chen et al. 2024, arXiv 2407.19342.

    W: (out, in)   K: (out / b, in / b, b)

    D x is a sum of circular correlations, which are products after a Fourier transform.
    """

    def __init__(self, config: C3AConfig, site: Site):
        super().__init__(config, site)
        b = int(pattern_value(config.block_size_pattern, site.path, config.block_size, "block_size_pattern"))
        if site.in_features % b or site.out_features % b:
            sides = f"{site.in_features} inputs and {site.out_features} outputs"
            raise ConfigError.of("block_size", b, f"a divisor of the {sides} of {site.path!r}")
        self.K = self.parameter(site, site.out_features // b, site.in_features // b, b)
        self.init, self.shape = config.init_weights, (site.out_features, site.in_features)

    def reset(self, host: nn.Module) -> None:
        rows, columns = self.shape
        if self.init is True:
            nn.init.zeros_(self.K)
        elif self.init == "gaussian":
            nn.init.normal_(self.K)
        else:
            bound = 1 / math.sqrt(columns) if self.init == "kaiming_uniform" else math.sqrt(6 / (rows + columns))
            nn.init.uniform_(self.K, -bound, bound)

    def change(self, dtype: torch.dtype) -> Tensor:
        k = self.K.to(torch.promote_types(self.K.dtype, dtype))
        steps = torch.arange(k.shape[2], device=k.device)
        blocks = k[:, :, (steps[None] - steps[:, None]) % len(steps)]  # (out / b, in / b, b, b)
        change: Tensor = blocks.transpose(1, 2).reshape(self.shape) / self.shape[1]
        return change

    def added(self, x: Tensor, host: nn.Module) -> Tensor:
        if x.numel() == 0:  # which FFT libraries refuse
            return super().added(x, host)
        wide = torch.promote_types(torch.promote_types(x.dtype, self.K.dtype), torch.float32)  # what FFTs come in
        n, b = self.K.shape[1:]
        seen = torch.fft.rfft(x.to(wide).reshape(*x.shape[:-1], n, b))
        kernel = torch.fft.rfft(self.K.to(wide)).conj()
        found = torch.fft.irfft(torch.einsum("...nf,mnf->...mf", seen, kernel), n=b)
        added: Tensor = (found.flatten(-2) / self.shape[1]).to(x.dtype)
        return added

    def tensors(self) -> dict[str, Tensor]:
        return {"c3a_kernel": self.K}
