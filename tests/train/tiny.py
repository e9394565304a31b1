"""A tiny base with its tokenizer on disk, rows to train on, and recipes: what the tests of runs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inlay.recipe.recipe import Recipe
from tests.data.tokenizers import gpt2_like


def base(folder: Path) -> Path:
    """A Llama of two layers, the same at every call, saved with a tokenizer."""
    tokenizer = gpt2_like()
    torch.manual_seed(11)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        **sizes,
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        attention_dropout=0.1,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(path: Path, count: int = 30, start: int = 0) -> Path:
    """Alpaca rows."""
    made = [
        {"instruction": f"Count to {i}.", "input": "in words" if i % 3 else "", "output": f"one two {i}"}
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def recipe(folder: Path, out: str = "run", **changes: Any) -> Recipe:
    """A recipe of 15 steps over `base` and `rows`, which are made where they are missing."""
    if not (folder / "base").exists():
        base(folder / "base")
    if not (folder / "rows.jsonl").exists():
        rows(folder / "rows.jsonl")
    values = {
        "model.name": str(folder / "base"),
        "adapter.r": 2,
        "adapter.lora_dropout": 0.1,
        "data.train": str(folder / "rows.jsonl"),
        "data.max_length": 96,
        "train.batch": 2,
        "train.accumulation": 2,
        "train.epochs": 2,
        "train.lr": 0.01,
        "train.save_every": 3,
        "train.log_every": 2,
        "train.device": "cpu",
        "report.html": False,
        "out": str(folder / out),
    }
    if changes.get("adapter.method", "lora") != "lora":
        values = {k: v for k, v in values.items() if not k.startswith("adapter.")}
    return Recipe.make({**values, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a result."""
    from safetensors.torch import load_file

    (file,) = [p for p in folder.glob("*.safetensors") if "training" not in p.name]
    return load_file(file)
