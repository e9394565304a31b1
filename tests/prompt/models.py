"""Small models with padding, for what must not depend on it, and the prompt methods."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

import inlay
from tests.tiny import made

VOCAB, P = 40, 3
_LIKE_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_LIKE_GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "pad_token_id": 0}
_WIDE = {"initializer_range": 0.2}
_DROPLESS = {"attention_dropout": 0.0, "dropout": 0.0, "activation_dropout": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "Llama": {**_LIKE_LLAMA, "num_key_value_heads": 1},
    "Qwen3": {**_LIKE_LLAMA, "num_key_value_heads": 1, "head_dim": 8},
    "Glm": {**_LIKE_LLAMA, "num_key_value_heads": 2, "head_dim": 8},
    "GPT2": {**_LIKE_GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2},
    "GPTJ": {**_LIKE_GPT2, "rotary_dim": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "initializer_range": 0.2},
    "Bloom": {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0, **_WIDE},
    "OPT": {**_LIKE_LLAMA, "ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.2, **_DROPLESS},
    "GPTNeoX": {**_LIKE_LLAMA, "rotary_pct": 0.5},
    "T5": {
        "vocab_size": VOCAB,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
    },
    "Bart": {
        "vocab_size": VOCAB,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
        "init_std": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
        **_DROPLESS,
    },
    "Bert": {**_LIKE_LLAMA, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "Roberta": {**_LIKE_LLAMA, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "DebertaV2": {
        **_LIKE_LLAMA,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
DECODERS = ["Llama", "Qwen3", "Glm", "GPT2", "GPTJ", "Bloom", "OPT", "GPTNeoX"]
SEQ2SEQ = ["T5", "Bart"]
ENCODERS = ["Bert", "Roberta", "DebertaV2"]


def model_of(family: str, head: str, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """`{family}{head}`, e.g. LlamaForCausalLM, with weights of a size that makes differences show."""
    name = {"GPT2ForCausalLM": "GPT2LMHeadModel"}.get(family + head, family + head)
    config = getattr(transformers, f"{family}Config")(**{**SETTINGS[family], **changes})
    return made(lambda: getattr(transformers, name)(config), seed, dtype)


def head_of(family: str) -> tuple[str, str]:
    """The usual head of a family, and its task type."""
    if family in SEQ2SEQ:
        return "ForConditionalGeneration", "SEQ_2_SEQ_LM"
    return ("ForCausalLM", "CAUSAL_LM") if family in DECODERS else ("Model", "FEATURE_EXTRACTION")


METHODS: dict[str, Any] = {
    "prompt": lambda **kw: inlay.PromptTuningConfig(num_virtual_tokens=P, **kw),
    "p-tuning": lambda **kw: inlay.PromptEncoderConfig(num_virtual_tokens=P, encoder_hidden_size=8, **kw),
    "lstm": lambda **kw: inlay.PromptEncoderConfig(
        num_virtual_tokens=P, encoder_hidden_size=8, encoder_reparameterization_type="LSTM", **kw
    ),
    "prefix": lambda **kw: inlay.PrefixTuningConfig(num_virtual_tokens=P, **kw),
    "projected": lambda **kw: inlay.PrefixTuningConfig(
        num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=8, **kw
    ),
}


def view_of(base: Any, method: str, task_type: str, seed: int = 1) -> Any:
    """A view with a random prompt, evaluating."""
    torch.manual_seed(seed)
    return inlay.get_peft_model(base, METHODS[method](task_type=task_type)).eval()


def checkpointed(view: Any) -> Any:
    """`view` with gradient checkpointing, whatever this transformers calls it."""
    today = hasattr(view, "activation_checkpointing_enable")
    (view.activation_checkpointing_enable if today else view.gradient_checkpointing_enable)()
    return view


def rows(*lengths: int, side: str = "right", width: int = 0, seed: int = 3) -> dict[str, Tensor]:
    """A batch of rows of these lengths, padded on a side; the tokens of a row depend on its number only."""
    width = max(width, *lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for i, n in enumerate(lengths):
        tokens = torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(seed + i))
        where = slice(0, n) if side == "right" else slice(width - n, width)
        ids[i, where], mask[i, where] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}
