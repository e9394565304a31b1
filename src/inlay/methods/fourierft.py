"""FourierFT: W' = W + s Re(F^-1(S)) with S a sparse spectrum."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_int, check_number, check_patterns, check_positive
from inlay.core.host import Site
from inlay.core.targets import pattern_value
from inlay.errors import ConfigError
from inlay.methods.additive import Additive
from inlay.methods.layout import LayoutConfig
from inlay.methods.targets import ATTENTION
from inlay.registry import adapter


@dataclass
class FourierFTConfig(LayoutConfig, peft_type="FOURIERFT"):
    r"""W' = W + s Re(F^-1(S)), F^-1 the two-dimensional inverse discrete Fourier transform.

    Args:
        n_frequency: trained entries of the spectrum S, at random places.
        scaling: s.
        random_loc_seed: of the places, which are not saved: layers of one shape share them.
        init_weights: True: S starts at zero. False (the paper's choice): normal, so that the adapter does not start as
            the identity.
        n_frequency_pattern: module name or regex -> its own n_frequency.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    n_frequency: int = 1000
    scaling: float = 150.0
    random_loc_seed: int | None = 777
    n_frequency_pattern: dict[str, int] = field(default_factory=dict)
    init_weights: bool = False

    unsupported: ClassVar[Mapping[str, object]] = {"bias": "none"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("n_frequency", self.n_frequency)
        check_number("scaling", self.scaling)
        check_int("random_loc_seed", self.random_loc_seed, 0)
        check_bool("init_weights", self.init_weights)
        check_patterns("n_frequency_pattern", self.n_frequency_pattern, check_positive)

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        own = {"gpt2": ["mlp.c_proj"], "gpt_bigcode": ["mlp.c_proj"]}  # square layers of one shape only
        return own.get(model_type or "", ATTENTION.get(model_type or ""))


def places(rows: int, columns: int, n: int, seed: int) -> Tensor:
    """(2, n): rows and columns of n different entries of a matrix, the first n of a permutation of all."""
    kept = type(torch.empty(0, device="cpu")) is Tensor  # not what is drawn under a mode without memory
    return (_places if kept else _places.__wrapped__)(rows, columns, n, seed)


@functools.lru_cache(maxsize=64)
def _places(rows: int, columns: int, n: int, seed: int) -> Tensor:
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed), device="cpu")[:n]
    return torch.stack([order // columns, order % columns])


@adapter(FourierFTConfig, "linear")
class FourierFT(Additive):
    r"""W' = W + s Re(F^-1(S)).   Gao et al. 2024, arXiv 2405.03003.

    W: (out, in)   S: (out, in), zero but for n trained entries   s: `scaling`
    F^-1(S)[a, b] = sum over j, k of S[j, k] exp(2 pi i (j a / out + k b / in)) / (out in)
    """

    where: Tensor

    def __init__(self, config: FourierFTConfig, site: Site):
        super().__init__(config, site)
        self.shape, self.scale, self.init = (site.out_features, site.in_features), config.scaling, config.init_weights
        n = int(pattern_value(config.n_frequency_pattern, site.path, config.n_frequency, "n_frequency_pattern"))
        if n > site.out_features * site.in_features:
            entries = site.out_features * site.in_features
            raise ConfigError.of("n_frequency", n, f"at most {entries}, the entries of the weight of {site.path!r}")
        self.spectrum = self.parameter(site, n)
        seed: Any = config.random_loc_seed
        found, device = places(*self.shape, n, seed), getattr(site.module, "weight").device  # noqa: B009
        self.register_buffer("where", found if device.type == "meta" else found.to(device), persistent=False)

    def reset(self, host: nn.Module) -> None:
        if self.init:
            nn.init.zeros_(self.spectrum)
        else:
            nn.init.normal_(self.spectrum)

    def change(self, dtype: torch.dtype) -> Tensor:
        entries = self.spectrum.to(torch.promote_types(torch.promote_types(self.spectrum.dtype, torch.float32), dtype))
        rows, columns = self.where.to(entries.device)
        s = entries.new_zeros(self.shape)
        s[rows, columns] = entries
        change: Tensor = self.scale * torch.fft.ifft2(s).real
        return change

    def tensors(self) -> dict[str, Tensor]:
        return {"fourierft_spectrum": self.spectrum}
