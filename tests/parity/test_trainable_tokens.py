"""Trainable tokens as a method of its own, beside peft: numbers and files, tied heads included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import compare, swap
from .models import FAMILIES, SCALED, Family, llama

TIED = {"llama-tied": Family(lambda: llama(tie_word_embeddings=True), FAMILIES["llama"].batch, "CAUSAL_LM")}
ALL = {**FAMILIES, **SCALED, **TIED}

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


def config(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "method": "TrainableTokensConfig",
        "task_type": ALL[name].task_type,
        "token_indices": [3, 40, 9],
        **fields,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
def test_numbers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    compare(ALL[name], config(name), tmp_path, dtype)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("llama", {"init_weights": False}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
        ("llama-tied", {}),
        ("gpt2", {}),
        ("gpt2", {"target_modules": ["wpe"], "token_indices": [1, 0]}),
        ("bart", {}),
        ("t5", {}),
        ("gemma3", {}),
    ],
    ids=str,
)
def test_files(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    # peft writes the whole path of the default
    swap(ALL[name].base(), config(name, **fields), ALL[name].batch(0), tmp_path, but=["target_modules"])
