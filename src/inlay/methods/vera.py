"""VeRA (Kopiczko et al. 2023, arXiv 2310.11454): random projections that layers share, scaled by trained vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.checks import check_bool, check_int, check_number
from inlay.core.host import Site
from inlay.methods.factored import Factored, device_of
from inlay.methods.layout import LayoutConfig
from inlay.methods.targets import ATTENTION
from inlay.registry import adapter


@dataclass
class VeraConfig(LayoutConfig, peft_type="VERA"):
    r"""W' = W + diag(b) B diag(d) A; A and B are random, frozen, and shared by all layers; d and b are trained.

    A: (r, in)   B: (out, r)   d: (r,), starts at `d_initial`   b: (out,), starts at 0

    Layers of different sizes take the first columns of A and the first rows of B.

    Args:
        r: rank of the update. It costs r numbers per layer, so it is chosen larger than LoRA's.
        projection_prng_key: seed of A and B, which are then the same on every machine with the same torch.
        save_projection: write A and B to the file. Without them it is smaller, and they are made again from the seed.
        vera_dropout: probability of zeroing an input of A in training.
        d_initial: the initial value of d.
        init_weights: False: b starts at 1 and d normal, so that the adapter is not the identity (for tests).

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 256
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    init_weights: bool = True

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("r", self.r, 1)
        check_int("projection_prng_key", self.projection_prng_key, 0)
        check_number("vera_dropout", self.vera_dropout, 0.0, 1.0)
        check_number("d_initial", self.d_initial)
        for name in ("save_projection", "init_weights"):
            check_bool(name, getattr(self, name))

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        return ["q_proj", "v_proj"] if model_type == "phi" else ATTENTION.get(model_type or "")

    def bank(self, sites: Sequence[Site]) -> Projections:
        return Projections(self, sites)


class Projections(nn.Module):
    """A and B, large enough for every site, from the seed: buffers of the sites' dtype."""

    A: Tensor
    B: Tensor

    def __init__(self, config: VeraConfig, sites: Sequence[Site]):
        super().__init__()
        generator = torch.Generator().manual_seed(config.projection_prng_key)
        widest, tallest = max(s.in_features for s in sites), max(s.out_features for s in sites)
        for name, shape in (("A", (config.r, widest)), ("B", (tallest, config.r))):
            bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))  # Kaiming's for a ReLU
            drawn = torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, drawn.to(device_of(sites[0]), sites[0].dtype))


@adapter(VeraConfig, "linear")
class Vera(Factored):
    r"""W' = W + diag(b) B diag(d) A,  y = x W^T + ((x A^T) * d) B^T * b.   Kopiczko et al. 2023, arXiv 2310.11454.

    x: (..., in)   W: (out, in)   A: (r, in)   B: (out, r)   d: (r,)   b: (out,)
    """

    def __init__(self, config: VeraConfig, site: Site):
        super().__init__(config, site)
        self.dropout, self.d_initial, self.init = config.vera_dropout, config.d_initial, config.init_weights
        self.saves_bank, self.shape = config.save_projection, (site.out_features, site.in_features)
        self.bank: Projections = site.bank
        self.d = self.parameter(site, config.r)
        self.b = self.parameter(site, site.out_features)

    def reset(self, host: nn.Module) -> None:
        if self.init:
            nn.init.constant_(self.d, self.d_initial)
            nn.init.zeros_(self.b)
        else:
            nn.init.normal_(self.d)
            nn.init.ones_(self.b)

    def projections(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of this layer's size, where `like` is and in its dtype."""
        rows, columns = self.shape
        return self.bank.A[:, :columns].to(like), self.bank.B[:rows].to(like)

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = self.projections(self.d)
        return self.d.unsqueeze(1) * a, self.b.unsqueeze(1) * b

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        a, b = self.projections(y)
        low = F.linear(self.dropped(x).to(y.dtype), a) * self.d.to(y.dtype)
        return y + (F.linear(low, b) * self.b.to(y.dtype)).to(y.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"vera_lambda_b": self.b, "vera_lambda_d": self.d}

    def shared_tensors(self) -> dict[str, Tensor]:
        return {"base_model.vera_A": self.bank.A, "base_model.vera_B": self.bank.B} if self.saves_bank else {}
