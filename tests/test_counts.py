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
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from inlay import LoraConfig, PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
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


def t5_large() -> Any:
    config = T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_decoder_layers=24, num_heads=16)
    return T5ForConditionalGeneration(config)


def roberta_large() -> Any:
    config = RobertaConfig(
        vocab_size=50_265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    return RobertaForSequenceClassification(config)


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


@pytest.mark.parametrize(
    ("build", "config", "trainable", "total"),
    [
        (bloomz_560m, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), 4_096, 559_218_688),
        (bloomz_560m, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8), 8_192, 559_222_784),
        (t5_large, PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=20), 983_040, 738_651_136),
        (
            roberta_large,
            PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128),
            1_351_938,
            355_662_082,
        ),
    ],
    ids=["bloomz-4", "bloomz-8", "t5-large", "roberta-large"],
)
def test_counts_of_prompts(build: Callable[[], Any], config: PeftConfig, trainable: int, total: int) -> None:
    with torch.device("meta"):
        base = build()
    assert get_peft_model(base, config).get_nb_trainable_parameters() == (trainable, total)
