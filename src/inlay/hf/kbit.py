"""Readying a quantised model for training adapters on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from inlay.core.adapted import is_adapted
from inlay.core.plan import walk
from inlay.errors import ConfigError, StateError
from inlay.quant import backend_of, settle


def prepare_model_for_kbit_training(
    model: Any,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> Any:
    """Readies `model`, in place, for training adapters on it, and returns it.

    - Every parameter is frozen: quantised weights have no gradients, and the rest stays as it is too.
    - 16-bit parameters that are not quantised (norms, embeddings, the head) become float32, so that their small errors
      do not add to those of quantisation. Only bitsandbytes' layers take float32 inputs whatever they were loaded in:
      in a model that other libraries quantised, dtypes stay.
    - If the model is quantised, activations are recomputed in backward instead of kept (gradient checkpointing). With
      `use_reentrant=True` gradients come back through a segment only if its input has some, so embeddings' outputs are
      made to require them.
    - bitsandbytes' 4-bit layers on CPUs are kept differentiable, see `inlay.quant.bitsandbytes`.

    A view does not need this: without it, it trains in the dtypes and with the memory that the base has.

    Args:
        model: the model, before `get_peft_model`.
        gradient_checkpointing_kwargs: for `model.gradient_checkpointing_enable`.
        auto_clear_cache: give the memory of the 16-bit parameters back to the GPU.

    Raises:
        StateError: there are adapters in it already, which would be frozen. ConfigError: it has no gradient
        checkpointing. Nothing has changed then.
    """
    modules = list(walk(model).values())
    if any(map(is_adapted, modules)):
        raise StateError("There are adapters in this model, which would be frozen: prepare it before get_peft_model.")
    backends = {id(m): b for m in modules if (b := backend_of(m)) is not None}
    checkpointing = bool(backends) and use_gradient_checkpointing
    if checkpointing and not hasattr(model, "gradient_checkpointing_enable"):
        raise ConfigError.of(
            "use_gradient_checkpointing",
            True,
            "False",
            f"{type(model).__name__} has no gradient_checkpointing_enable().",
        )
    model.requires_grad_(False)
    settle(model)
    if all(backend.takes_float32 for backend in backends.values()):
        _widen([m for m in modules if id(m) not in backends])
        if auto_clear_cache and torch.cuda.is_available():
            torch.cuda.empty_cache()
    if checkpointing:
        options = dict(gradient_checkpointing_kwargs or {})
        if options.get("use_reentrant", True):
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    return model


def _widen(modules: list[nn.Module]) -> None:
    for module in modules:
        for p in module._parameters.values():
            if p is not None and p.dtype in (torch.float16, torch.bfloat16):
                p.data = p.data.float()
