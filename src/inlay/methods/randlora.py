"""RandLoRA (Albert et al. 2025, arXiv 2502.00987): full-rank updates, as weighted sums of random low-rank bases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_int, check_number
from inlay.core.host import Site
from inlay.methods.factored import Factored, device_of
from inlay.methods.layout import LayoutConfig
from inlay.registry import adapter


@dataclass
class RandLoraConfig(LayoutConfig, peft_type="RANDLORA"):
    r"""W' = W + s sum over j of B_j diag(l_j) A diag(g_j) with s = alpha / r and n = ceil(min(in, out) / r) bases.

    A: (r, min(in, out))   B_j: (max(in, out), r)   l_j: (r,), starts at 0   g_j: (min(in, out),)

    A and the B_j are random, frozen and shared by all layers; a layer that is wider than high takes the transpose.

    Args:
        r: rank of one basis. The smaller, the more bases there are, and the more is trained.
        randlora_alpha: alpha; the update's strength.
        projection_prng_key: seed of the bases.
        sparse: bases of -1, 0 and 1, of which a third is not 0.
        very_sparse: the same with one in sqrt(min(in, out)) of them not 0.
        save_projection: write the bases to the file. peft, whose files these are, writes them once for every layer and
            once more; without them the file is small, and they are made again from the seed.
        randlora_dropout: probability of zeroing an input in training.
        init_weights: False: l starts normal, so that the adapter is not the identity (for tests).

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 32
    projection_prng_key: int = 0
    save_projection: bool = True
    sparse: bool = False
    very_sparse: bool = False
    randlora_dropout: float = 0.0
    randlora_alpha: float = 640
    init_weights: bool = True

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("r", self.r, 1)
        check_int("projection_prng_key", self.projection_prng_key, 0)
        check_number("randlora_dropout", self.randlora_dropout, 0.0, 1.0)
        check_number("randlora_alpha", self.randlora_alpha)
        for name in ("save_projection", "sparse", "very_sparse", "init_weights"):
            check_bool(name, getattr(self, name))

    def scale(self, path: str) -> float:
        """The scale s of the adapter at `path`."""
        return self.randlora_alpha / self.r

    def bank(self, sites: Sequence[Site]) -> Bases:
        return Bases(self, sites)


class Bases(nn.Module):
    """A: (r, 1, short) and B: (long, n, r), large enough for every site, from the seed: buffers of the sites' dtype."""

    A: Tensor
    B: Tensor

    def __init__(self, config: RandLoraConfig, sites: Sequence[Site]):
        super().__init__()
        sizes = max(s.in_features for s in sites), max(s.out_features for s in sites)
        long, short = max(sizes), min(sizes)
        generator = torch.Generator().manual_seed(config.projection_prng_key)
        shapes = {"A": [(config.r, 1, short)], "B": [(long, 1, config.r)] * math.ceil(short / config.r)}
        for name, parts in shapes.items():
            if config.sparse or config.very_sparse:
                one_in = math.sqrt(short) if config.very_sparse else 3
                drawn = torch.rand(parts[0][0], len(parts), parts[0][2], dtype=torch.float32, generator=generator)
                basis = (drawn > 1 - 1 / (2 * one_in)).float() - (drawn < 1 / (2 * one_in)).float()
            else:  # bfloat16 throughout, as peft draws them wherever the hardware has it
                empty = [torch.empty(shape, dtype=torch.bfloat16) for shape in parts]
                basis = torch.cat([nn.init.kaiming_uniform_(e, math.sqrt(5), generator=generator) for e in empty], 1)
            self.register_buffer(name, (basis / basis.std()).to(device_of(sites[0]), sites[0].dtype))


@adapter(RandLoraConfig, "linear")
class RandLora(Factored):
    r"""W' = W + s sum over j of B_j diag(l_j) A diag(g_j), or its transpose where in > out.   s = alpha / r

    W: (out, in)   A: (r, short)   B_j: (long, r)   l: (r, n)   g: (n, short)   short, long: of in and out

    Albert et al. 2025, arXiv 2502.00987. As in peft, the n r rows of all diag(l_j) A diag(g_j) are counted by basis
    fastest and the columns of all B_j by rank fastest: row (k, j) of the one meets the column of the same number.
    """

    def __init__(self, config: RandLoraConfig, site: Site):
        super().__init__(config, site)
        self.dropout, self.scale = config.randlora_dropout, config.scale(site.path)
        self.saves_bank, self.init = config.save_projection, config.init_weights
        sizes = site.in_features, site.out_features
        self.long, self.short, self.wide = max(sizes), min(sizes), site.in_features > site.out_features
        self.n = math.ceil(self.short / config.r)
        self.bank: Bases = site.bank
        self.l = self.parameter(site, config.r, self.n)
        self.g = self.parameter(site, self.n, self.short)

    def reset(self, host: nn.Module) -> None:
        if self.init:
            nn.init.zeros_(self.l)
            nn.init.constant_(self.g, 1 / max(self.g.shape))
        else:
            nn.init.normal_(self.l)
            nn.init.constant_(self.g, 1 / self.long)

    def factors(self) -> tuple[Tensor, Tensor]:
        a = self.l.unsqueeze(-1) * self.bank.A[:, :, : self.short].to(self.l) * self.g
        b = self.bank.B[: self.long, : self.n].to(self.l)
        a, b = a.flatten(0, 1), b.flatten(1)  # (n r, short), (long, n r)
        return (b.T, a.T) if self.wide else (a, b)

    def tensors(self) -> dict[str, Tensor]:
        bases = {"randlora_A": self.bank.A, "randlora_B": self.bank.B} if self.saves_bank else {}
        return {"randlora_lambda": self.l, "randlora_gamma": self.g, **bases}

    def shared_tensors(self) -> dict[str, Tensor]:
        return {"base_model.randlora_A": self.bank.A, "base_model.randlora_B": self.bank.B} if self.saves_bank else {}
