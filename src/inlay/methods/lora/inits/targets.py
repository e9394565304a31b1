"""The layers that an init takes data from, the linear ones that the config targets, and how they are watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from inlay.core.host import kind_of
from inlay.core.index import task_heads
from inlay.core.plan import plan
from inlay.errors import TargetError


def linear_targets(model: nn.Module, config: Any) -> dict[str, nn.Module]:
    """path -> module of the linear layers among `config`'s targets in `model`, which stays as it is."""
    heads = task_heads(model)  # a view's config names its task's heads, which the model may not have
    placements, _ = plan(model, config.replaced(init_lora_weights=True, use_dora=False), heads=heads, init=False)
    found = {p.path: p.host for p in placements if kind_of(p.host) == "linear" and hasattr(p.adapter, "A")}
    if not found:
        raise TargetError.of(
            "target_modules", config.target_modules, f"a linear layer with init {config.init_lora_weights!r}"
        )
    return found


def hooked(modules: Mapping[str, nn.Module], see: Callable[[str, Any], None], run: Callable[[], object]) -> None:
    """Runs the model with `see(path, arguments)` called before each module."""
    handles = [m.register_forward_pre_hook(lambda _, args, path=path: see(path, args)) for path, m in modules.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
