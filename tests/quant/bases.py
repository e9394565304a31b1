"""Tiny quantised models through transformers' own loading, and what the tests of quantised bases share."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import VOCAB, llama, scramble

TARGETS = ["q_proj", "v_proj", "down_proj"]
# 4-bit layers need inputs of at least a block
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}

LIBRARY = {"nf4": "bitsandbytes", "nf4 double": "bitsandbytes", "fp4": "bitsandbytes", "int8": "bitsandbytes"}
LIBRARY |= {"torchao int8": "torchao", "torchao intx": "torchao", "torchao float8": "torchao"}
KINDS = list(LIBRARY)
EVERY = [*KINDS, "hqq"]

# what these libraries say when they are imported, or used on a CPU: not about us
FOREIGN = [
    "ignore:`torch.jit.script:DeprecationWarning",  # hqq, when it is imported
    "ignore:.*torch.jit.script_method.*:DeprecationWarning",
]


def need(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")


def quantisation(kind: str, **changes: Any) -> Any:
    """transformers' config of a kind of quantisation."""
    import transformers

    need(LIBRARY[kind])
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, **changes)
    if LIBRARY[kind] == "bitsandbytes":
        own = {"bnb_4bit_quant_type": kind.split()[0], "bnb_4bit_use_double_quant": kind.endswith("double"), **changes}
        return transformers.BitsAndBytesConfig(load_in_4bit=True, **own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # import noise
        from torchao import quantization as ao
    made = {
        "torchao int8": lambda: ao.Int8WeightOnlyConfig(),
        "torchao intx": lambda: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32)),
        "torchao float8": lambda: ao.Float8WeightOnlyConfig(),
    }
    return transformers.TorchAoConfig(made[kind]())


def folder(tmp: Path, **changes: Any) -> Path:
    """A tiny Llama in `tmp`, saved by transformers."""
    if not (tmp / "config.json").exists():
        model = llama(**{**SIZES, **changes})
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(4.0 if p.dim() > 1 else 1.0)  # transformers' initial weights are tiny
        model.save_pretrained(tmp)
    return tmp


def load(where: Path, kind: str | None, dtype: torch.dtype = torch.float32, device: str = "cpu", **changes: Any) -> Any:
    """The model in `where`, quantised as `kind` says (None: dense)."""
    import transformers

    if kind == "hqq":
        return hqq(load(where, None, dtype, device), dtype)
    options = {} if kind is None else {"quantization_config": quantisation(kind, **changes)}
    return transformers.AutoModelForCausalLM.from_pretrained(where, dtype=dtype, device_map=device, **options).eval()


def hqq(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """`model` with HQQ's layers for its linear ones: transformers 5.23 does not load them."""
    need("hqq")
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not name.endswith("lm_head"):
            config = BaseQuantizeConfig(nbits=4, group_size=32, axis=1)
            with torch.no_grad():
                made = HQQLinear(layer, config, compute_dtype=dtype, device=str(model.device), del_orig=False)
            del made.linear_layer
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, made.train(layer.training))
    return model


def ids(rows: int = 2, length: int = 6) -> torch.Tensor:
    return torch.arange(rows * length).view(rows, length) * 5 % (VOCAB - 3) + 3


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids().to(model.device)).logits
    return found


def with_adapter(base: Any, **fields: Any) -> Any:
    """A view of `base` with a LoRA adapter that changes something."""
    from inlay import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": TARGETS, **fields})
    return scramble(get_peft_model(base, config), 0.05)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a model, those inside of its quantised weights too."""
    from inlay.quant import dequantised, is_quantised

    found = {}
    for path, module in model.named_modules():
        if is_quantised(module):
            found[path] = dequantised(module)
        else:
            found.update({f"{path}.{k}": p.detach().clone() for k, p in module._parameters.items() if p is not None})
    return found
