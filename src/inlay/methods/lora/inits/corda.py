"""CorDA (Yang et al. 2024, arXiv 2406.05223): the adapter starts as the part of W that a task's inputs see most.

    C = mean of X^T X over batches (damped),  W C = U S V^T,  A0 = sqrt(S_r / s) V_r^T C^-1,  B0 = U_r sqrt(S_r / s)

`corda_method="ipm"` takes the r largest of S (to learn the task that the inputs are of), `"kpm"` the r smallest (to
keep what they are of while another task is learnt). X is divided by its largest entry, as in peft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inlay.checks import check_bool, check_choice
from inlay.core.host import canonical
from inlay.errors import ConfigError, NumericsError, StateError
from inlay.methods.lora.inits.part import Part
from inlay.methods.lora.inits.targets import hooked, linear_targets


@dataclass
class CordaConfig(Part):
    """How CorDA chooses the adapter's start.

    Args:
        corda_method: "ipm" or "kpm", see the module.
        use_float16_for_covariance: accumulate C in the inputs' own dtype instead of float32.
        cache_file, covariance_file: not supported; None.
        verbose, prune_temporary_fields: accepted for compatibility; nothing is printed or left on the model.
    """

    cache_file: str | None = None
    covariance_file: str | None = None
    corda_method: str = "ipm"
    verbose: bool = False
    use_float16_for_covariance: bool = False
    prune_temporary_fields: bool = True

    def __post_init__(self) -> None:
        check_choice("corda_method", self.corda_method, ("ipm", "kpm"))
        for name in ("verbose", "use_float16_for_covariance", "prune_temporary_fields"):
            check_bool(name, getattr(self, name))
        for name in ("cache_file", "covariance_file"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ConfigError.of(name, value, "a path or None")


def preprocess_corda(
    model: nn.Module,
    lora_config: Any,
    run_model: Callable[[], object] | None = None,
    hooked_model: nn.Module | None = None,
) -> None:
    """Runs `run_model()` and prepares `lora_config` for an adapter of `model` that starts from what its layers saw.

    What is found is kept in the config object (and shared by its copies), not in the model and not in files.

    Args:
        run_model: runs `model` on samples of the task, e.g. 256 of 2048 tokens.
        hooked_model: the model that `run_model` runs, if that is another with the same layers.

    Raises:
        ConfigError: the config is none of `init_lora_weights="corda"`, or asks for a file.
        StateError: `run_model` did not reach a target. NumericsError: an input is not finite.
    """
    part = lora_config.corda_config
    if lora_config.init_lora_weights != "corda":
        raise ConfigError.of("init_lora_weights", lora_config.init_lora_weights, "'corda' for preprocess_corda")
    for name in ("cache_file", "covariance_file"):
        if getattr(part, name) is not None:
            raise ConfigError.of(name, getattr(part, name), "None", "Files of statistics are not supported.")
    if run_model is None:
        raise ConfigError.of("run_model", None, "a function that runs the model on samples of the task")
    targets = linear_targets(model, lora_config)
    seen = linear_targets(hooked_model, lora_config) if hooked_model is not None else targets
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(path: str, args: Any) -> None:
        x: Tensor = args[0].detach().flatten(0, -2)
        x = x if part.use_float16_for_covariance else x.float()
        x = x / x.max().abs()
        if not bool(torch.isfinite(x).all()):
            raise NumericsError(f"preprocess_corda: an input of {path!r} is NaN, infinite, or has 0 as its largest.")
        sums[path] = sums.get(path, 0) + x.T @ x
        counts[path] = counts.get(path, 0) + 1

    training = (hooked_model or model).training
    (hooked_model or model).eval()
    try:
        with torch.no_grad():
            hooked(seen, note, run_model)
    finally:
        (hooked_model or model).train(training)
    missed = [path for path in targets if path not in sums]
    if missed:
        raise StateError(f"preprocess_corda: run_model() did not reach {missed[0]!r}, which is targeted.")
    for path, host in targets.items():
        w: Any = host.weight
        with torch.no_grad():
            lora_config.prepared[path] = corda(
                canonical(host, w).float(),
                (sums[path] / counts[path]).float(),
                lora_config.rank(path),
                lora_config.scale(path),
                largest=part.corda_method == "ipm",
            )


def corda(w: Tensor, c: Tensor, r: int, scale: float, largest: bool = True) -> tuple[Tensor, Tensor]:
    """(A0, B0).   W: (rows, columns)   C: (columns, columns)   A0: (r, columns)   B0: (rows, r)"""
    eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
    damp = 0.01
    while True:  # until C can be inverted
        damped = c + damp * c.diagonal().mean() * eye
        inverse = torch.linalg.inv(damped)
        if float(torch.dist(damped @ inverse, eye)) < 0.05:
            break
        damp *= 2
    u, s, vh = torch.linalg.svd(w @ damped, full_matrices=False)
    own = slice(0, r) if largest else slice(len(s) - r, None)
    root = (s[own] / scale).sqrt()
    return root[:, None] * (vh @ inverse)[own], u[:, own] * root
