"""`peft.utils.other.fsdp_auto_wrap_policy`: what FSDP1 shards together."""

from __future__ import annotations

import functools
import os
from typing import Any

from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from inlay.core.classes import original_class
from inlay.errors import ConfigError


def fsdp_auto_wrap_policy(model: nn.Module) -> Any:
    """A policy that wraps the model's blocks, each with the adapters in it.

    The blocks are those of `FSDP_TRANSFORMER_CLS_TO_WRAP` (class names, separated by commas), as accelerate sets it,
    else those that the model says are not to be split. Trained and frozen parameters share a block's flat one, so that
    `use_orig_params=True` is needed, which is the default.

    Raises ConfigError if a class is not in the model.
    """
    own: Any = getattr(model, "_no_split_modules", None) or ()
    names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", ",".join(own)).split(",")
    classes = {original_class(m).__name__: type(m) for m in model.modules()}
    missing = [name for name in names if name and name not in classes]
    if missing and "FSDP_TRANSFORMER_CLS_TO_WRAP" in os.environ:
        raise ConfigError.of("FSDP_TRANSFORMER_CLS_TO_WRAP", missing, "classes of modules in the model")
    found = {classes[name] for name in names if name in classes}
    return functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=found)
