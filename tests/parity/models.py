"""The bases of the parity tests: seven families from transformers, tiny, and one batch for each.

Weights are drawn wide (`initializer_range`), so that outputs are of order one and a tolerance of 1e-5 means something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCAB, WIDE = 61, 0.15


@dataclass(frozen=True)
class Family:
    """One architecture: how to build it, what to feed it, and what LoRA takes in it by default.

    Attributes:
        build: the model; call `base()` for a seeded one.
        batch: inputs with labels for a seed.
        task_type: of its `LoraConfig`.
        targets: None if both libraries have a default for the architecture.
        transposed: its layers are transformers' `Conv1D`, which peft wants said in the config.
    """

    build: Callable[[], Any]
    batch: Callable[[int], dict[str, torch.Tensor]]
    task_type: str | None
    targets: list[str] | None = None
    transposed: bool = False

    def base(self, seed: int = 0) -> Any:
        """The model, in evaluation mode (no dropout), with weights that depend on the seed only."""
        torch.manual_seed(seed)
        model = self.build()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("bias"):  # transformers starts them at zero, where a lost one would not show
                    p.normal_(std=0.1)
        return model.eval()

    def config(self, **fields: Any) -> dict[str, Any]:
        """The fields of a `LoraConfig`, of either library, whose A and B are both random."""
        given = {"task_type": self.task_type, "r": 4, "lora_alpha": 8, "init_lora_weights": False}
        if self.targets is not None:
            given["target_modules"] = list(self.targets)
        if self.transposed:
            given["fan_in_fan_out"] = True
        return {**given, **fields}


def text(seed: int, low: int = 3) -> torch.Tensor:
    """A batch of token ids."""
    return torch.randint(low, VOCAB, (2, 7), generator=torch.Generator().manual_seed(seed))


def language(seed: int, low: int = 3) -> dict[str, torch.Tensor]:
    ids = text(seed, low)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def seq2seq(seed: int) -> dict[str, torch.Tensor]:
    return {"input_ids": text(seed), "attention_mask": torch.ones(2, 7).long(), "labels": text(seed + 1000)}


def labelled(seed: int) -> dict[str, torch.Tensor]:
    return {"input_ids": text(seed), "labels": text(seed)[:, 0] % 3}


def tagged(seed: int) -> dict[str, torch.Tensor]:
    return {"input_ids": text(seed), "labels": text(seed) % 3}


def spans(seed: int) -> dict[str, torch.Tensor]:
    ids = text(seed)
    return {"input_ids": ids, "start_positions": ids[:, 0] % 7, "end_positions": ids[:, 1] % 7}


def images(seed: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(2, 3, 8, 8, generator=made),
        "labels": torch.randint(0, 3, (2,), generator=made),
    }


def llama(**fields: Any) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=WIDE,
            **fields,
        )
    )


def gpt2_config(**fields: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=16,
        initializer_range=WIDE,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **fields,
    )


def bloom(**fields: Any) -> Any:
    return BloomForCausalLM(
        BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2, initializer_range=WIDE, **fields)
    )


def opt(**fields: Any) -> Any:
    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        word_embed_proj_dim=32,
        init_std=WIDE,
        dropout=0.0,
        pad_token_id=1,
        **fields,
    )
    return OPTForCausalLM(config)


def t5(**fields: Any) -> Any:
    config = T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        **fields,
    )
    return T5ForConditionalGeneration(config)


def bert_config(**fields: Any) -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=WIDE,
        **{"num_labels": 3, **fields},
    )


def vit(**fields: Any) -> Any:
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        num_labels=3,
        initializer_range=WIDE,
        **fields,
    )
    return ViTForImageClassification(config)


FAMILIES = {
    "llama": Family(llama, language, "CAUSAL_LM"),
    "gpt2": Family(lambda: GPT2LMHeadModel(gpt2_config()), language, "CAUSAL_LM", transposed=True),
    "bloom": Family(bloom, language, "CAUSAL_LM"),
    "opt": Family(opt, language, "CAUSAL_LM"),
    "t5": Family(t5, seq2seq, "SEQ_2_SEQ_LM"),
    "bert": Family(lambda: BertForMaskedLM(bert_config()), tagged, None),
    "vit": Family(vit, images, None, ["q_proj", "v_proj"]),
}
HEADED = {
    "bert-seq-cls": Family(lambda: BertForSequenceClassification(bert_config()), labelled, "SEQ_CLS"),
    "bert-token-cls": Family(lambda: BertForTokenClassification(bert_config()), tagged, "TOKEN_CLS"),
    "bert-qa": Family(lambda: BertForQuestionAnswering(bert_config(num_labels=2)), spans, "QUESTION_ANS"),
    "gpt2-seq-cls": Family(
        lambda: GPT2ForSequenceClassification(gpt2_config(num_labels=3)), labelled, "SEQ_CLS", transposed=True
    ),
}


# embeddings that multiply their rows by a constant
SCALED = {
    "bart": Family(
        lambda: BartForConditionalGeneration(
            BartConfig(
                vocab_size=VOCAB,
                d_model=32,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                max_position_embeddings=16,
                scale_embedding=True,
                init_std=WIDE,
                dropout=0.0,
            )
        ),
        seq2seq,
        "SEQ_2_SEQ_LM",
    ),
    "gemma3": Family(
        lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                initializer_range=WIDE,
            )
        ),
        language,
        "CAUSAL_LM",
    ),
}


class Convs(nn.Module):
    """A small network of convolutions of one dimensionality, with a batch norm in its head."""

    def __init__(self, dims: int, **fields: Any):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.conv = conv(4, 8, **fields)
        self.point = conv(8, 6, 1)
        self.head = nn.Sequential(norm(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.point(self.conv(x).tanh()))


def convs(dims: int, **fields: Any) -> tuple[Convs, torch.Tensor]:
    """A `Convs`, and inputs for it."""
    torch.manual_seed(0)
    model, x = Convs(dims, **fields), torch.randn(3, 4, *[6] * dims)
    model(x)  # gives the head its shape, and the norm statistics that are not the initial ones
    return model.eval(), x
