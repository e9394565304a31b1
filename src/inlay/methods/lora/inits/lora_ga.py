"""LoRA-GA (Wang et al. 2024, arXiv 2407.05000): the adapter's first step is as near as can be to that of full training.

    G = mean gradient of W = U S V^T (2r largest),  A0 = r rows of V^T,  B0 = r columns of U S, which ones: `direction`

B0 is then scaled (`scale`): "stable" by out^(1/4) / sqrt(gamma), "weight_svd" to W's largest singular value, "gd_scale"
both by 1 / s, "unit" not at all. peft's B has S in it, which the paper's has not; Inlay does as peft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inlay.checks import check_choice, check_number
from inlay.core.host import canonical
from inlay.errors import ConfigError, StateError
from inlay.methods.lora.inits.part import Part
from inlay.methods.lora.inits.pissa import low_rank_svd
from inlay.methods.lora.inits.targets import linear_targets

DIRECTIONS = ("ArBr", "A2rBr", "ArB2r", "random")
SCALES = ("stable", "weight_svd", "gd_scale", "unit")


@dataclass
class LoraGAConfig(Part):
    """How LoRA-GA turns gradients into the adapter's start.

    Args:
        direction: which of the 2r largest singular vectors go to A and to B: "ArBr" every second, "A2rBr" the later r
            to A, "ArB2r" the later r to B, "random" the same random r to both.
        scale: see the module.
        stable_gamma: gamma of "stable".
    """

    direction: str = "ArB2r"
    scale: str = "stable"
    stable_gamma: float = 16

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, DIRECTIONS)
        check_choice("scale", self.scale, SCALES)
        check_number("stable_gamma", self.stable_gamma, 1e-6)


def preprocess_loraga(
    model: nn.Module, lora_config: Any, train_step: Callable[[], object], cache_file: str | None = None
) -> None:
    """Runs `train_step()` and prepares `lora_config` for an adapter of `model` that starts along the gradients.

    What is found is kept in the config object (and shared by its copies), not in the model and not in files.

    Args:
        train_step: runs `model` on some batches and calls `backward()` on their losses, without an optimizer.
        cache_file: not supported; None.

    Raises:
        ConfigError: the config is none of `init_lora_weights="lora_ga"`. StateError: a target got no gradient.
    """
    if lora_config.init_lora_weights != "lora_ga":
        raise ConfigError.of("init_lora_weights", lora_config.init_lora_weights, "'lora_ga' for preprocess_loraga")
    if cache_file is not None:
        raise ConfigError.of("cache_file", cache_file, "None", "Files of gradients are not supported.")
    targets = linear_targets(model, lora_config)
    gradients = _gradients(model, targets, train_step)
    for path, g in gradients.items():
        host: Any = targets[path]
        with torch.no_grad():
            lora_config.prepared[path] = lora_ga(
                canonical(host, host.weight).float(),
                canonical(host, g).float(),
                lora_config.rank(path),
                lora_config.scale(path),
                lora_config.lora_ga_config,
            )


def _gradients(model: nn.Module, targets: dict[str, nn.Module], train_step: Callable[[], object]) -> dict[str, Tensor]:
    """path -> mean gradient of the target's weight over the backward passes of `train_step`; all else as it was."""
    weights: dict[str, Any] = {path: host.weight for path, host in targets.items()}
    flags = {p: p.requires_grad for p in model.parameters()}
    kept = {path: w.grad for path, w in weights.items()}
    counts = dict.fromkeys(weights, 0)

    def count(path: str) -> None:
        counts[path] += 1

    training = model.training
    model.train()
    handles = []
    try:
        for p in flags:
            p.requires_grad_(False)
        for path, w in weights.items():
            w.requires_grad_(True)
            w.grad = None
            handles.append(w.register_post_accumulate_grad_hook(lambda _, path=path: count(path)))
        with torch.enable_grad():
            train_step()
        missed = [path for path, w in weights.items() if w.grad is None]
        if missed:
            raise StateError(f"preprocess_loraga: train_step() gave {missed[0]!r}, which is targeted, no gradient.")
        return {path: w.grad.detach() / counts[path] for path, w in weights.items()}
    finally:
        for handle in handles:
            handle.remove()
        for path, w in weights.items():
            w.grad = kept[path]
        for p, flag in flags.items():
            p.requires_grad_(flag)
        model.train(training)


def lora_ga(w: Tensor, g: Tensor, r: int, scale: float, config: LoraGAConfig) -> tuple[Tensor, Tensor]:
    """(A0, B0).   W, G: (rows, columns)   A0: (r, columns)   B0: (rows, r)"""
    if 2 * r > min(g.shape):
        raise ConfigError.of("r", r, f"at most {min(g.shape) // 2} for a layer of {tuple(g.shape)} with 'lora_ga'")
    u, s, vh = low_rank_svd(g, min(4 * r, *g.shape), 4)
    first, later = list(range(r)), list(range(r, 2 * r))
    odd, even = list(range(1, 2 * r, 2)), list(range(0, 2 * r, 2))
    some = torch.randperm(2 * r)[:r].tolist() if config.direction == "random" else []
    rows, columns = {"ArBr": (odd, even), "A2rBr": (later, first), "ArB2r": (first, later), "random": (some, some)}[
        config.direction
    ]
    a, b = vh[rows], u[:, columns] * s[columns]
    if config.scale == "stable":
        b = b * (len(w) ** 0.25 / config.stable_gamma**0.5)
    elif config.scale == "weight_svd" and s[columns[0]] > 0:
        b = b * (torch.linalg.matrix_norm(w, ord=2) / s[columns[0]])
    elif config.scale == "gd_scale":
        a, b = a / scale, b / scale
    return a, b
