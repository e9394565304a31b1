"""A tiny language model with the tokenizer of tests/data, and views of it."""

from __future__ import annotations

from typing import Any

from inlay import LoraConfig, get_peft_model
from tests import tiny
from tests.data.tokenizers import gpt2_like

TOKENIZER = gpt2_like()
TARGETS = ["q_proj", "v_proj", "down_proj"]


def base(**changes: Any) -> Any:
    return tiny.llama(vocab_size=len(TOKENIZER), max_position_embeddings=512, initializer_range=0.2, **changes)


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **changes})


def view(model: Any = None, **changes: Any) -> Any:
    made = get_peft_model(base() if model is None else model, lora(**changes))
    return tiny.scramble(made, 0.3).eval()
