"""Poly, LoRA skills mixed by task (Ponti et al. 2022, arXiv 2202.13914; in splits: Caccia et al., arXiv 2211.03831)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.checks import check_bool, check_choice, check_int
from inlay.core.adapter import Adapter
from inlay.core.host import Site
from inlay.errors import ConfigError, StateError
from inlay.methods.targets import AttentionConfig
from inlay.registry import adapter

_EPS = 1e-12


@dataclass
class PolyConfig(AttentionConfig, peft_type="POLY"):
    r"""y = W x + B_t A_t x / r, where A_t and B_t are a mixture of `n_skills` skills that depends on a row's task t.

    Every call needs the tasks: `view(..., task_ids=ids)` and `view.generate(..., task_ids=ids)`, one per row.

    Args:
        r: rank of a skill.
        n_tasks: number of tasks.
        n_skills: number of skills, which the tasks share.
        n_splits: parts that inputs and outputs are cut into, with a mixture each; more than 1 is MHR. It must divide
            the inputs and outputs of every target.
        poly_type: "poly".
        init_weights: False: B starts random too, so that the adapter is not the identity (for tests).

    Raises:
        ConfigError: a field has a value that is not allowed, or `n_splits` does not divide a layer's size.
    """

    r: int = 8
    init_weights: bool = True
    poly_type: str = "poly"
    n_tasks: int = 1
    n_skills: int = 4
    n_splits: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("r", "n_tasks", "n_skills", "n_splits"):
            check_int(name, getattr(self, name), 1)
        check_choice("poly_type", self.poly_type, ("poly",))
        check_bool("init_weights", self.init_weights)


@adapter(PolyConfig, "linear")
class Poly(Adapter):
    r"""y = x W^T + x A_t B_t / r,  A_t = sum_s p(t, s) A[:, s],  p(t, s) = q(t, s) / sum_s' q(t, s'),  q = sigmoid(Z).

    x: (..., in)   W: (out, in)   A: (c, n, in/c, r)   B: (c, n, r, out/c)   Z: (tasks, c n)   c: splits   n: skills

    Ponti et al. 2022, arXiv 2202.13914. In training q is drawn: sigmoid(Z + log u - log(1 - u)) with uniform u.
    """

    mergeable = False  # it differs from row to row

    def __init__(self, config: PolyConfig, site: Site):
        super().__init__(config, site)
        c, n = config.n_splits, config.n_skills
        for size in (site.in_features, site.out_features):
            if size % c:
                raise ConfigError.of("n_splits", c, f"a divisor of the {size} inputs or outputs of {site.path!r}")
        self.init, self.r, self.splits = config.init_weights, config.r, c
        self.A = self.parameter(site, c, n, site.in_features // c, config.r)
        self.B = self.parameter(site, c, n, config.r, site.out_features // c)
        self.Z = self.parameter(site, config.n_tasks, c * n)

    def reset(self, host: nn.Module) -> None:
        nn.init.uniform_(self.A, -1 / math.sqrt(self.A.shape[2]), 1 / math.sqrt(self.A.shape[2]))
        bound = 0.0 if self.init else 1 / math.sqrt(self.r)
        nn.init.uniform_(self.B, -bound, bound)
        nn.init.uniform_(self.Z, -1e-3, 1e-3)

    def mixture(self, tasks: Tensor) -> Tensor:
        """p of each row, split and skill: (rows, c, n)"""
        z = F.embedding(tasks, self.Z).view(len(tasks), self.splits, -1)
        if self.training:
            u = torch.rand_like(z).clamp(torch.finfo(z.dtype).eps, 1 - torch.finfo(z.dtype).eps)
            z = z + u.log() - (-u).log1p()
        q = z.sigmoid()
        return q / (q.sum(-1, keepdim=True) + _EPS)

    def tasks_of(self, x: Tensor, given: Tensor | None) -> Tensor:
        """The task of each row of `x`, which may be several consecutive ones for each one given (beams)."""
        count = self.Z.shape[0]
        if given is None:
            raise StateError("Poly needs to know each row's task: call the model with task_ids, one per row.")
        if given.is_floating_point() or given.dim() != 1 or not len(given) or len(x) % len(given):
            raise StateError(
                f"task_ids: {tuple(given.shape)} of {given.dtype} does not fit a batch of {len(x)} rows: give one task "
                "index per row."
            )
        if not torch.compiler.is_compiling() and not 0 <= int(given.min()) <= int(given.max()) < count:
            raise StateError(
                f"task_ids={given.tolist()}: the adapter has the tasks 0 to {count - 1} (n_tasks={count})."
            )
        return given.to(x.device).repeat_interleave(len(x) // len(given))

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        p = self.mixture(self.tasks_of(x, host.active.facts.task_ids))
        a = torch.einsum("bcs,csdr->bcdr", p, self.A).flatten(1, 2)  # (rows, in, r)
        b = torch.einsum("bcs,csrd->brcd", p, self.B).flatten(2)  # (rows, r, out)
        low = x.to(y.dtype).reshape(len(x), -1, x.shape[-1]) @ a.to(y.dtype) @ b.to(y.dtype)
        return y + (low.view(y.shape) / self.r).to(y.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"poly_lora_A": self.A, "poly_lora_B": self.B, "poly_router.module_logits": self.Z}
