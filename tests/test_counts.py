"""The parameter counts that the field's guides print, on models built from their public configs, without memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from inlay import LoraConfig, get_peft_model
from inlay.errors import InlayWarning


def bloomz_560m() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=250_880, hidden_size=1024, n_layer=24, n_head=16))


def mt0_large() -> Any:
    config = MT5Config(
        vocab_size=250_112,
        d_model=1024,
        d_kv=64,
        d_ff=2816,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=16,
        feed_forward_proj="gated-gelu",
    )
    model = MT5ForConditionalGeneration(config)
    # the checkpoint has an output head of its own; transformers 5 ties it in a model made from a config
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def vit_base() -> Any:
    return ViTForImageClassification(ViTConfig(num_labels=101))


@pytest.mark.parametrize(
    ("build", "fields", "trainable", "total"),
    [
        (
            bloomz_560m,
            {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["query_key_value"], "bias": "lora_only"},
            466_944,
            559_607_808,
        ),
        (mt0_large, {"task_type": "SEQ_2_SEQ_LM", "r": 8}, 2_359_296, 1_231_940_608),
        (
            vit_base,
            {"r": 16, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]},
            667_493,
            86_466_149,
        ),
    ],
)
@pytest.mark.filterwarnings(f"ignore:.*module names of an earlier transformers:{InlayWarning.__module__}.InlayWarning")
def test_counts(
    build: Callable[[], Any],
    fields: dict[str, Any],
    trainable: int,
    total: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with torch.device("meta"):
        base = build()
    view = get_peft_model(base, LoraConfig(**fields))
    assert view.get_nb_trainable_parameters() == (trainable, total)
    view.print_trainable_parameters()
    share = f"{100 * trainable / total:.4f}"
    assert capsys.readouterr().out == (
        f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share}\n"
    )
