"""`peft.helpers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from inlay.config import PeftConfig
from inlay.errors import ConfigError, InlayError, StateError
from inlay.peft.layers import LoraLayer


def check_if_peft_model(model_name_or_path: str) -> bool:
    """Whether there is an adapter in this folder, or under this name on the Hub."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except (InlayError, OSError, ValueError):
        return False
    return True


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiplies the scale of every LoRA adapter until the block ends."""
    if isinstance(multiplier, bool) or not isinstance(multiplier, (int, float)):
        raise ConfigError.of("multiplier", multiplier, "a number")
    before = [(m.scaling, dict(m.scaling)) for m in model.modules() if isinstance(m, LoraLayer)]
    if not before:
        raise StateError("There is no LoRA adapter whose scale could be changed.")
    try:
        for scaling, values in before:
            scaling.update({name: value * multiplier for name, value in values.items()})
        yield
    finally:
        for scaling, values in before:
            scaling.update(values)


@contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Does nothing: here an adapter computes in its input's dtype, and no input is cast."""
    yield


def update_signature(model: Any, method: str = "all") -> None:
    """Does nothing: a view's `forward` and `generate` have the signatures of its base's."""


def update_forward_signature(model: Any) -> None:
    """See `update_signature`."""


def update_generate_signature(model: Any) -> None:
    """See `update_signature`."""
