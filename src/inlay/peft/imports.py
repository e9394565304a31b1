"""`peft.import_utils`: which optional libraries are there."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch


def _there(*names: str) -> Callable[[], bool]:
    def is_available() -> bool:
        return all(find_spec(name) is not None for name in names)

    return is_available


is_aqlm_available = _there("aqlm")
is_bnb_available = is_bnb_4bit_available = _there("bitsandbytes")
is_diffusers_available = _there("diffusers")
is_eetq_available = _there("eetq")
is_gptqmodel_available = _there("gptqmodel")
is_hqq_available = _there("hqq")
is_inc_available = _there("neural_compressor")
is_optimum_available = _there("optimum")
is_te_available = is_te_pytorch_available = _there("transformer_engine")
is_torchao_available = _there("torchao")


def is_torch_tpu_available(check_device: bool = True) -> bool:
    """Whether torch_xla is there."""
    return find_spec("torch_xla") is not None


def is_xpu_available(check_device: bool = False) -> bool:
    """Whether torch sees an Intel GPU."""
    return bool(torch.xpu.is_available())
