"""AdaLoRA (Zhang et al. 2023, openreview lq62uWRJjiY): LoRA that gives its rank to the layers which need it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_int, check_number
from inlay.core.adapter import alias
from inlay.core.gather import is_sharded
from inlay.core.host import Site
from inlay.core.stored import StoredProduct
from inlay.errors import ConfigError, InlayWarning, MismatchError, StateError
from inlay.methods.factored import Factored, device_of
from inlay.methods.layout import LayoutConfig
from inlay.methods.lora.config import LoraConfig
from inlay.methods.targets import WIDER
from inlay.registry import adapter

_FACTORS = ("A", "B", "E")


@dataclass
class AdaLoraConfig(LayoutConfig, peft_type="ADALORA"):
    r"""W' = W + s B diag(E) A with s = alpha / (init_r + 1e-5), where training sets ever more entries of E to zero.

    A: (r, in)   B: (out, r)   E: (r, 1), starts at 0

    `PeftModel.update_and_allocate(step)`, called after every optimizer step (with Trainer by
    `inlay.hf.callbacks.AdapterSchedule`), keeps the b entries of all layers' E that matter most. b falls from n init_r
    (until step `tinit`) to n target_r (from step total_step - tfinal on) as a cubic, n being the number of layers.
    How much a number w matters is |w dL/dw|, averaged over steps, times how much that varies.

    Args:
        init_r, target_r: rank of every layer at the start, and on average at the end.
        tinit, tfinal, total_step: see above. `total_step` must be given.
        deltaT: E is masked every so many steps.
        beta1, beta2: decay of the averages of importance and of its variation.
        orth_reg_weight: weight of the penalty, mean of |A A^T - I| and |B^T B - I| (Frobenius) over all layers. It is
            added to the loss in training only; peft adds it in evaluation too.
        lora_alpha: alpha.
        lora_dropout: probability of zeroing an input of A in training.
        init_lora_weights: False: E starts random too, so that the adapter is not the identity (for tests).
        rank_pattern: which entries of E are kept, `{path + ".lora_E": [True, ...]}`; training writes it. Files hold the
            kept ones only, whose number is fixed once such a file is loaded for inference.
        r: has no effect, as in peft: the ranks are `init_r` and `target_r`.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    init_lora_weights: bool = True
    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    rank_pattern: dict[str, list[bool]] | None = None

    progress: ClassVar[tuple[str, ...]] = ("rank_pattern",)
    unsupported: ClassVar[Mapping[str, object]] = {
        **LoraConfig.unsupported,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": False,
        "alpha_pattern": {},
        **dict.fromkeys(("trainable_token_indices", "eva_config", "corda_config", "lora_ga_config")),
        "alora_invocation_tokens": None,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("init_r", 1), ("target_r", 1), ("tinit", 0), ("tfinal", 0), ("deltaT", 1)):
            check_int(name, getattr(self, name), low)
        if self.total_step is None:
            raise ConfigError.of("total_step", None, "the number of optimizer steps of the run, which plans the budget")
        check_int("total_step", self.total_step, 1)
        if self.target_r > self.init_r:
            raise ConfigError.of("target_r", self.target_r, f"at most init_r={self.init_r}", "Ranks only fall.")
        if self.tinit >= self.total_step - self.tfinal:
            raise ConfigError.of(
                "tinit",
                self.tinit,
                f"less than total_step - tfinal = {self.total_step - self.tfinal}",
                "There has to be a time in which the budget falls.",
            )
        check_number("lora_alpha", self.lora_alpha)
        check_number("lora_dropout", self.lora_dropout, 0.0, 1.0)
        check_number("orth_reg_weight", self.orth_reg_weight, 0.0)
        for name in ("beta1", "beta2"):
            check_number(name, getattr(self, name), 0.0, 1.0)
            if getattr(self, name) in (0, 1):
                raise ConfigError.of(name, getattr(self, name), "a number between 0 and 1")
        check_bool("init_lora_weights", self.init_lora_weights)
        if self.r != 8:
            warnings.warn(
                f"r={self.r} has no effect on AdaLoRA: the ranks are init_r={self.init_r} and "
                f"target_r={self.target_r}.",
                InlayWarning,
                stacklevel=3,
            )
        self._check_pattern()

    def _check_pattern(self) -> None:
        self.rank_pattern = self.rank_pattern or None
        pattern = self.rank_pattern or {}
        for path, kept in pattern.items() if isinstance(pattern, dict) else [("", None)]:
            wrong = not isinstance(kept, list) or len(kept) != self.init_r
            if wrong or not isinstance(path, str) or not all(isinstance(k, bool) for k in kept):
                raise ConfigError.of(
                    "rank_pattern",
                    pattern,
                    f"a dict from path + '.lora_E' to {self.init_r} (init_r) times True or False",
                )

    def kept(self, path: str) -> list[bool] | None:
        """Which entries of E are kept at `path`; None as long as all are."""
        return None if self.rank_pattern is None else self.rank_pattern.get(f"{path}.lora_E")

    def scale(self, path: str) -> float:
        """The scale s of the adapter at `path`."""
        alpha = self.lora_alpha if self.lora_alpha > 0 else self.init_r
        return alpha / (self.init_r + 1e-5)

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        return ["query", "key", "value", "dense"] if model_type == "roberta" else WIDER.get(model_type or "")

    def budget(self, step: int, start: int, target: int) -> int | None:
        """How many entries of E are kept after `step`, of `start` at first and `target` at last; None: no masking."""
        total: Any = self.total_step
        end = total - self.tfinal
        if step <= self.tinit or (step < end and step % self.deltaT):
            return None
        left = 1 - (step - self.tinit) / (end - self.tinit)
        return int((start - target) * left**3 + target)

    @torch.no_grad()
    def after_step(self, placed: Mapping[str, Any], step: int) -> None:
        """The allocation after optimizer step `step`: importance before the last phase, then masking."""
        total: Any = self.total_step
        own = {path: a for path, a in placed.items() if isinstance(a, AdaLora)}
        _check_whole(own.values())
        if any(a.closed for a in own.values()):
            raise StateError(
                "This AdaLoRA adapter was made for inference: its ranks are fixed. To go on allocating, load it with "
                "is_trainable=True from a folder that has its training state; to train it as it is, do not call "
                "update_and_allocate."
            )
        if step < total - self.tfinal:
            if all(p.grad is None for a in own.values() for p in a.parameters()):
                raise StateError(
                    "update_and_allocate needs the gradients of the step: call it after optimizer.step() and before "
                    "zero_grad()."
                )
            for a in own.values():
                a.observe(self.beta1, self.beta2)
        if step <= total - self.tfinal:
            self._allocate(own, step)
        else:
            for path, a in own.items():
                if (kept := self.kept(path)) is not None:
                    a.keep(kept)

    def _allocate(self, own: Mapping[str, AdaLora], step: int) -> None:
        start, target = self.init_r * len(own), self.target_r * len(own)
        budget = self.budget(step, start, target)
        if budget is None or budget >= start:
            return
        scores = {path: a.scores() for path, a in own.items()}
        device = next(iter(scores.values())).device
        every = torch.cat([s.to(device) for s in scores.values()])
        threshold = torch.kthvalue(every, start - budget).values.item()
        self.rank_pattern = {f"{path}.lora_E": (s > threshold).tolist() for path, s in scores.items()}
        for path, a in own.items():
            a.keep(self.rank_pattern[f"{path}.lora_E"])

    def penalty(self, placed: Mapping[str, Any]) -> Any:
        own = [a for a in placed.values() if isinstance(a, AdaLora)]
        _check_whole(own)
        products = [p for a in own for p in (a.A @ a.A.T, a.B.T @ a.B)]
        if not self.orth_reg_weight or not products:
            return None
        norms = [(p - torch.eye(len(p), dtype=p.dtype, device=p.device)).norm() for p in products]
        return self.orth_reg_weight * torch.stack([n.to(norms[0].device) for n in norms]).mean()


def _check_whole(adapters: Iterable[AdaLora]) -> None:
    """Raises StateError if the factors are sharded: allocation and penalty need all of them at once."""
    if any(is_sharded(p) for a in adapters for p in a.parameters()):
        raise StateError(
            "AdaLoRA compares and orthogonalises the factors of all layers, which sharding (FSDP, ZeRO-3) cuts up: "
            "train it under DDP, where every process allocates the same ranks."
        )


@adapter(AdaLoraConfig, "linear")
class AdaLora(Factored):
    r"""W' = W + s B diag(E) A,  y = x W^T + s ((x A^T) * E^T) B^T.   Zhang et al. 2023, openreview lq62uWRJjiY.

    x: (..., in)   W: (out, in)   A: (r, in)   B: (out, r)   E: (r, 1)   s = alpha / (init_r + 1e-5)

    r is `init_r` in training; an adapter made for inference (`closed`) has the rows that `rank_pattern` keeps.
    """

    A: Tensor = alias("lora_A")
    B: Tensor = alias("lora_B")
    E: Tensor = alias("lora_E")

    def __init__(self, config: AdaLoraConfig, site: Site):
        super().__init__(config, site)
        self.config, self.path, self.closed = config, site.path, config.inference_mode
        self.scale, self.dropout = config.scale(site.path), config.lora_dropout
        kept = config.kept(site.path)
        r = config.init_r if kept is None or not self.closed else sum(kept)
        self.lora_A = self.parameter(site, r, self.columns(site))
        self.lora_B = self.parameter(site, site.out_features, r)
        self.lora_E = self.parameter(site, r, 1)
        if not self.closed:  # the averages of importance and of its variation
            for name in _FACTORS:
                zeros = torch.zeros(getattr(self, name).shape, dtype=site.dtype, device=device_of(site))
                self.register_buffer(f"importance_{name}", zeros, persistent=False)
                self.register_buffer(f"variation_{name}", zeros.clone(), persistent=False)

    def columns(self, site: Site) -> int:
        """Columns of the weight as a matrix."""
        return site.in_features

    def reset(self, host: nn.Module) -> None:
        for p in (self.A, self.E, self.B, torch.empty(1)):  # so peft draws, down to the one number it does not need
            nn.init.normal_(p)
        if self.config.init_lora_weights:
            nn.init.zeros_(self.E)
            for p in (self.A, self.B):
                nn.init.normal_(p, std=0.02)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.E * self.A, self.B

    # ------------------------------------------------------------------ allocation

    def observe(self, beta1: float, beta2: float) -> None:
        """Takes the gradients of this step into the averages."""
        for name in _FACTORS:
            p, importance, variation = self.tracked(name)
            now = (p * p.grad).abs() if p.grad is not None else torch.zeros_like(p)
            importance.copy_(beta1 * importance + (1 - beta1) * now)
            variation.copy_(beta2 * variation + (1 - beta2) * (now - importance).abs())

    def scores(self) -> Tensor:
        """How much each entry of E matters, with its row of A and column of B: (r,)"""
        score = {name: importance * variation for name in _FACTORS for _, importance, variation in [self.tracked(name)]}
        return score["E"].view(-1) + (score["A"].mean(1) + score["B"].mean(0))

    def keep(self, kept: list[bool]) -> None:
        """Sets the other entries of E to zero."""
        self.E.masked_fill_(~torch.tensor(kept, device=self.E.device).unsqueeze(1), 0.0)

    def tracked(self, name: str) -> tuple[Any, Tensor, Tensor]:
        """A factor, its importance, and the variation of that."""
        return getattr(self, name), getattr(self, f"importance_{name}"), getattr(self, f"variation_{name}")

    # ------------------------------------------------------------------ files

    def tensors(self) -> dict[str, Tensor]:
        a, b, e = self.A, self.B, self.E
        kept = None if self.closed else self.config.kept(self.path)
        if kept is None:
            return {"lora_A": a, "lora_B": b, "lora_E": e}
        rows = [i for i, row in enumerate(kept) if row]
        return {"lora_A": a[rows], "lora_B": b[:, rows], "lora_E": e[rows]}

    @classmethod
    def stored_product(cls, config: AdaLoraConfig, path: str, stored: Mapping[str, Tensor]) -> StoredProduct | None:
        keys = [f"lora_{name}" for name in _FACTORS]
        missing = [key for key in keys if key not in stored]
        if len(missing) == len(keys):
            return None
        if missing:
            raise MismatchError(f"{path!r} has no {missing[0]}, only its counterparts.", missing=missing)
        a, b, e = (stored[f"lora_{name}"] for name in "ABE")
        kept = config.kept(path)
        r = config.init_r if kept is None else sum(kept)
        if a.dim() != 2 or b.dim() != 2 or [len(a), b.shape[1], *e.shape] != [r, r, r, 1]:
            shapes = ", ".join(f"{key} {tuple(stored[key].shape)}" for key in keys)
            raise MismatchError(f"{path!r} has {shapes}, but its rank is {r}.")
        return StoredProduct((e * a)[None], b[None], config.scale(path))

    def training_state(self) -> dict[str, Tensor]:
        if self.closed:
            return {}
        parts = {name: self.tracked(name) for name in _FACTORS}
        return {
            **{f"lora_{name}": p for name, (p, _, _) in parts.items()},
            **{f"lora_{name}.importance": importance for name, (_, importance, _) in parts.items()},
            **{f"lora_{name}.variation": variation for name, (_, _, variation) in parts.items()},
        }


@adapter(AdaLoraConfig, "conv1d", "conv2d", "conv3d")
class AdaLoraConv(AdaLora):
    r"""W' = W + s B diag(E) A, the weight seen as a matrix.   W: (out, in/g, *k)   A: (r, in/g * k)   B: (out, r)"""

    def columns(self, site: Site) -> int:
        weight: Any = site.module.weight
        return int(weight[0].numel())

    def forward(self, base: Callable[..., Any], x: Tensor, *args: Any, host: Any, **kwargs: Any) -> Any:
        y = base(x, *args, **kwargs)
        a, b = self.factors()
        change = (self.scale * (b @ a)).reshape(host.weight.shape).to(y.dtype)
        return y + host._conv_forward(self.dropped(x).to(y.dtype), change, None)
