"""Sums of low-rank updates s_i B_i A_i with weights w_i, as one product B A: what each combination type means.

cat      A = [w_1 s_1 A_1; ...], B = [B_1 ...]: sum of w_i s_i B_i A_i, exactly, of the sum of the ranks
svd      the best approximation of that sum of a given rank; the sum exactly, if that suffices
M_svd    the same of D = M(s_1 B_1 A_1, ...; w), for each method M of `task_arithmetic`
M        A = M(A_1, ...; sgn(w_i s_i) sqrt|w_i s_i|), B = M(B_1, ...; sqrt|w_i s_i|), for equal ranks

M is "linear" or another method of `task_arithmetic`. The last form is not the sum of updates: B A also has the cross
terms B_i A_j. (With a single adapter in a layer there are none.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_choice, check_number
from inlay.core.host import is_transposed, kind_of
from inlay.errors import ConfigError
from inlay.merge.task_arithmetic import MAJORITIES, METHODS, combine, needs_density
from inlay.methods.lora.config import check_rank
from inlay.methods.lora.lowrank import LowRank

Term = tuple[float, LowRank]  # w_i, and the adapter of s_i B_i A_i

TYPES = ("svd", "cat", *METHODS, *(f"{method}_svd" for method in METHODS if method != "linear"))
_DRIVERS = (None, "gesvd", "gesvdj", "gesvda")
_WIDE = torch.empty((), dtype=torch.float32)  # what is computed with at least


@dataclass(frozen=True)
class Combination:
    """A combination type and its arguments; see `inlay.merge.arithmetic.add_weighted_adapter`.

    Raises ConfigError for an argument that is not allowed.
    """

    combination_type: str = "svd"
    svd_rank: int | None = None
    svd_clamp: float | None = None
    svd_full_matrices: bool = True
    svd_driver: str | None = None
    density: float | None = None
    majority_sign_method: str = "total"
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_choice("combination_type", self.combination_type, TYPES)
        if self.svd_rank is not None:
            check_rank("svd_rank", self.svd_rank)
        if self.svd_clamp is not None:
            check_number("svd_clamp", self.svd_clamp, 0, 1)
        check_bool("svd_full_matrices", self.svd_full_matrices)
        check_choice("svd_driver", self.svd_driver, _DRIVERS)
        if self.density is not None:
            check_number("density", self.density, 0, 1)
        check_choice("majority_sign_method", self.majority_sign_method, MAJORITIES)
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise ConfigError.of("generator", self.generator, "a torch.Generator or None")

    @property
    def method(self) -> str:
        """The method of `task_arithmetic`."""
        return "linear" if self.combination_type in ("svd", "cat") else self.combination_type.removesuffix("_svd")

    def check_density(self) -> None:
        """Raises ConfigError if the method needs a density and has none that it can use."""
        random = self.method.startswith("dare")
        if needs_density(self.method) and (self.density is None or (random and self.density == 0)):
            raise ConfigError.of(
                "density",
                self.density,
                f"a number {'above 0 and at most' if random else 'from 0 to'} 1 with "
                f"combination_type={self.combination_type!r}",
                "It is the share of the entries that is kept.",
            )

    def mixed(self, tasks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """M(tasks; weights)."""
        density = 1.0 if self.density is None else self.density
        return combine(self.method, tasks, weights, density, self.majority_sign_method, self.generator)

    def rank(self, terms: Sequence[Term], wanted: int) -> int:
        """r of one layer; `wanted` where it is free, or less where that is exact: a multiple of the layer's groups."""
        total, first = sum(rank_of(adapter) for _, adapter in terms), terms[0][1]
        if not self.combination_type.endswith("svd"):
            return total if self.combination_type == "cat" else rank_of(first)
        g = first.groups
        enough = min(first.B.shape[0] // g, first.A[0].numel(), *([total // g] if self.method == "linear" else []))
        return g * min(-(-wanted // g), enough)

    def factors(self, terms: Sequence[Term], r: int, host: nn.Module) -> tuple[Tensor, Tensor]:
        """A: (g, r / g, columns) and B: (g, rows, r / g) of one layer, g being the groups of a convolution."""
        pairs = [adapter.factors(_WIDE) for _, adapter in terms]
        scales = [weight * adapter.scale for weight, adapter in terms]
        downs, ups = [a for a, _ in pairs], [b for _, b in pairs]
        if self.combination_type == "cat" or (self.combination_type == "svd" and self.svd_clamp is None):
            a, b = torch.cat([s * a for s, a in zip(scales, downs, strict=True)], 1), torch.cat(ups, 2)
            return (a, b) if self.combination_type == "cat" else _shortened(a, b, r // len(b))
        if self.combination_type.endswith("svd"):
            turned = is_transposed(host) or kind_of(host) == "embedding"
            changes = [adapter.scale * (b @ a) for (_, adapter), a, b in zip(terms, downs, ups, strict=True)]
            # in the order in which the host stores it, which that of random draws follows, as in peft
            d = self.mixed([d.mT if turned else d for d in changes], [weight for weight, _ in terms])
            return self._decomposed(d.mT if turned else d, r // len(d))
        roots = [math.sqrt(abs(s)) for s in scales]
        signed = [math.copysign(root, s) for root, s in zip(roots, scales, strict=True)]
        return self.mixed(downs, signed), self.mixed(ups, roots)

    def _decomposed(self, d: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """A = V_k, B = U_k S_k of D = U S V: (g, rows, columns), clamped to the quantile of all their entries."""
        u, s, v = torch.linalg.svd(d, full_matrices=False, driver=self.svd_driver if d.is_cuda else None)
        a, b = v[:, :k], u[..., :k] * s[:, None, :k]
        if self.svd_clamp is None:
            return a, b
        high = _quantile(torch.cat([b.flatten(), a.flatten()]), self.svd_clamp)
        return a.clamp(-high, high), b.clamp(-high, high)

    def shift(self, terms: Sequence[Term]) -> Tensor | None:
        """The change of the bias, M(s_1 c_1, ...; w), of adapters with `lora_bias`; None if there are none."""
        found = [
            (w, a.scale * a.c.to(torch.promote_types(a.c.dtype, _WIDE.dtype))) for w, a in terms if a.c is not None
        ]
        return self.mixed([c for _, c in found], [w for w, _ in found]) if found else None


def rank_of(adapter: LowRank) -> int:
    """The rank of the whole update, its anchor included."""
    return adapter.r if adapter.A0 is None else 2 * adapter.r


def _shortened(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """B A's best approximation of rank k, by the svd of its thin factors: B = Q_b R_b, A = R_a^T Q_a^T."""
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().mT)
    u, s, v = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    return (v[:, :k] @ q_a.mT).to(a.dtype), ((q_b @ u[..., :k]) * s[:, None, :k]).to(b.dtype)


def _quantile(x: Tensor, q: float) -> float:
    """torch.quantile, of as many numbers as there are."""
    x, at = x.sort().values, q * (x.numel() - 1)
    low = math.floor(at)
    return float(torch.lerp(x[low], x[min(low + 1, x.numel() - 1)], at - low))
