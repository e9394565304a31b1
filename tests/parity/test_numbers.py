"""From the same adapter weights: logits, adapter gradients, losses_of, and the losses of 20 AdamW steps.

In float32 to 1e-5, and in float64 to 1e-9, the weights after training included. Those are not compared in float32:
where a gradient is zero in exact arithmetic (a bias before a softmax), AdamW makes steps of full size of its rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay

from .both import agree, compare, gradients, into_inlay, losses_of, of_peft, peft, same_tensors
from .models import FAMILIES, HEADED, SCALED, convs, language

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@DTYPES
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], FAMILIES[name].config(), tmp_path, dtype)


@DTYPES
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 2, "rank_pattern": {"q_proj": 2}}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
        ("opt", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("gemma3", {"target_modules": ["embed_tokens"]}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"trainable_token_indices": [3, 9, 4]}),
        ("gpt2", {"trainable_token_indices": [3, 9, 4]}),
        ("opt", {"bias": "lora_only"}),
        ("bert", {"bias": "all"}),
        ("bert-seq-cls", {}),
        ("bert-token-cls", {}),
        ("bert-qa", {}),
        ("gpt2-seq-cls", {}),
    ],
    ids=str,
)
def test_options(name: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    family = {**FAMILIES, **HEADED, **SCALED}[name]
    if name == "opt":  # with padding among the tokens, which an embedding treats apart
        family = dataclasses.replace(family, batch=functools.partial(language, low=0))
    compare(family, family.config(**fields), tmp_path, dtype)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(dims: int, tmp_path: Path) -> None:
    model, x = convs(dims, kernel_size=3, stride=2, padding=1)
    config = {"target_modules": ["conv", "point"], "bias": "lora_only", "init_lora_weights": False}
    theirs = of_peft(model, config, tmp_path)
    mine = into_inlay(model, tmp_path, is_trainable=True)
    for adapted in (mine, theirs):
        adapted(x).square().mean().backward()
    same_tensors(gradients(inlay, mine), gradients(peft, theirs))
    found = [losses_of(adapted, x) for adapted in (mine, theirs)]
    assert found[0][-1] < found[0][0]
    agree(*found, "losses")
