"""What the scripts share: tiny models that are the same in every process, and how to report. Nothing of Inlay's."""

from __future__ import annotations

import json
from typing import Any

import torch

VOCAB = 48


def report(**found: Any) -> None:
    """Prints what was found, as the last line of the output; tensors as nested lists."""
    print(json.dumps(found, default=lambda value: value.tolist()), flush=True)


def llama(cls: Any = None, seed: int = 1234, **changes: Any) -> Any:
    """A tiny Llama with fixed weights, evaluating."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    return (cls or LlamaForCausalLM)(LlamaConfig(**{**sizes, **changes})).eval()


def ids(rows: int = 2, length: int = 6) -> torch.Tensor:
    """Token ids, none of them padding."""
    return torch.arange(rows * length).view(rows, length) * 7 % (VOCAB - 3) + 3


def vit(**changes: Any) -> Any:
    """A tiny ViT that sorts images of 8 by 8 pixels into 3 classes, with fixed weights."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(1234)
    config = ViTConfig(
        **{**sizes, "image_size": 8, "patch_size": 4, "num_labels": 3, "initializer_range": 0.2}, **changes
    )
    return ViTForImageClassification(config).eval()


def filled(model: Any, scale: float = 0.3, seed: int = 7, adapter_name: str = "default") -> Any:
    """`model` with other values in its adapter, which depend only on the shapes in the order of the sorted keys.

    So adapters made by Inlay and by peft are the same, and not zero.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    made = get_peft_model_state_dict(model, adapter_name=adapter_name)
    generator = torch.Generator().manual_seed(seed)
    keys = sorted(key for key in made if ".base_layer." not in key)
    values = {key: torch.randn(made[key].shape, generator=generator) * scale for key in keys}
    set_peft_model_state_dict(model, values, adapter_name=adapter_name)
    return model
