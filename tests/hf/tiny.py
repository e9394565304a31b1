"""Tiny models with fixed weights, views of them, and training arguments: what the tests of `inlay.hf` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from inlay import LoraConfig, get_peft_model

VOCAB = 48
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "bloom": ["query_key_value", "dense_4h_to_h"],
    "t5": ["q", "v", "wo"],
    "vit": ["q_proj", "v_proj"],
    "mamba": ["in_proj", "out_proj"],
}


def base(family: str, cls: Any = None, **changes: Any) -> Any:
    """A model of `family`, the same at every call, in evaluation mode."""
    torch.manual_seed(1234)
    wide: dict[str, Any] = {"initializer_range": 0.2}
    if family == "llama":
        wide |= {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        wide |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
        wide |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config, default = LlamaConfig(**wide, **changes), LlamaForCausalLM
    elif family == "bloom":
        config = BloomConfig(**wide, vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2, pad_token_id=3, **changes)
        default = BloomForCausalLM
    elif family == "t5":
        sizes = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        config = T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **changes)
        default = T5ForConditionalGeneration
    elif family == "vit":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        config = ViTConfig(**wide, **sizes, image_size=8, patch_size=4, num_labels=3, **changes)
        default = ViTForImageClassification
    elif family == "mamba":
        config = MambaConfig(**wide, vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4, **changes)
        default = MambaForCausalLM
    else:
        raise KeyError(family)
    model = (cls or default)(config).eval()
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = 0
    return model


def classifier(**changes: Any) -> Any:
    return base("llama", LlamaForSequenceClassification, num_labels=3, **changes)


def backbone(**changes: Any) -> Any:
    return base("llama", LlamaModel, **changes)


def lora(family: str = "llama", **changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 8, "target_modules": TARGETS[family], **changes})


def fill(view: Any, seed: int = 5, name: str | None = None) -> Any:
    """Gives the adapters (or one) values, the same for the same seed: fresh ones would be zero. Returns the view."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(adapter_parameters(view, name).items()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return view


def view_of(model: Any, family: str = "llama", seed: int = 5, **changes: Any) -> Any:
    return fill(get_peft_model(model, lora(family, **changes)), seed)


def adapter_parameters(view: Any, name: str | None = None) -> dict[str, torch.nn.Parameter]:
    mark = ".adapters." if name is None else f".adapters.{name}."
    return {k: p for k, p in view.named_parameters() if mark in k}


def copied(view: Any, name: str | None = None) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in adapter_parameters(view, name).items()}


def gradients(view: Any) -> dict[str, torch.Tensor]:
    return {k: p.grad.clone() for k, p in view.named_parameters() if p.grad is not None}


def batch(family: str = "llama", rows: int = 2, length: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """One batch of inputs with labels."""
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        pixels = torch.randn(rows, 3, 8, 8, generator=generator)
        return {"pixel_values": pixels, "labels": torch.arange(rows) % 3}
    ids = torch.randint(4, VOCAB, (rows, length), generator=generator)
    labels = ids if family != "t5" else torch.randint(4, VOCAB, (rows, length - 2), generator=generator)
    return {"input_ids": ids, "labels": labels.clone()}


def rows(count: int = 16, length: int = 6, seed: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """A data set for Trainer; `columns` are added to every row."""
    data = batch(rows=count, length=length, seed=seed)
    return [{**{k: v[i] for k, v in data.items()}, **columns} for i in range(count)]


def logits(model: Any, family: str = "llama") -> torch.Tensor:
    with torch.no_grad():
        return model(**batch(family)).logits


def arguments(folder: Path | str, cls: Any = TrainingArguments, **changes: Any) -> Any:
    """Quiet training arguments: 6 steps of 2 rows on the CPU."""
    common: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return cls(**{**common, **changes})


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words `w0` ... , with padding on the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = special + [f"w{i}" for i in range(VOCAB - len(special))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", model_max_length=64, **names)
