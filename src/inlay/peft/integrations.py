"""`peft.utils.integrations`: weights that are packed, spread over processes, or not there yet."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from inlay.core.gather import gathered
from inlay.core.host import canonical, weight_of


def dequantize_module_weight(module: nn.Module) -> nn.Parameter:
    """The layer's weight as numbers, laid out as the layer stores it."""
    return nn.Parameter(canonical(module, weight_of(module)), requires_grad=False)


def get_bnb_param_type(param: Any) -> Literal[False, "4bit", "8bit"]:
    """How bitsandbytes packed this parameter, if it did."""
    names = [cls.__name__ for cls in type(param).__mro__]
    return "4bit" if "Params4bit" in names else "8bit" if "Int8Params" in names else False


def gather_params_ctx(param: Any, modifier_rank: int = 0, fwd_module: Any = None) -> AbstractContextManager[None]:
    """Has parameters that ZeRO-3 spread over processes whole until the block ends, to be read."""
    return gathered([param] if isinstance(param, torch.Tensor) else list(param))


def init_empty_weights(include_buffers: bool | None = None) -> AbstractContextManager[Any]:
    """Makes modules without memory (on meta) until the block ends."""
    return torch.device("meta") if include_buffers is not False else nullcontext()
