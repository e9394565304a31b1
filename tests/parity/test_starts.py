"""The same seed gives the same adapter in both libraries, and leaves the generator where peft leaves it.

So a script written for peft has peft's losses under `python -m inlay.peft`, from the first step. It does not hold for
VB-LoRA and Poly, whose peft versions draw layer by layer in an order of their own, and it holds on the CPU in float32:
peft draws there whatever device and dtype the base has.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inlay

from . import both
from .models import FAMILIES

TARGETS: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
LORA: dict[str, Any] = {"r": 4, **TARGETS}
BIASED: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
PROMPT: dict[str, Any] = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
ENCODER: dict[str, Any] = {"method": "PromptEncoderConfig", "encoder_hidden_size": 8, **PROMPT}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("lora", "llama", LORA),
    ("dropout", "llama", {**LORA, "lora_dropout": 0.1}),
    ("random", "llama", {**LORA, "init_lora_weights": False}),
    ("gaussian", "llama", {**LORA, "init_lora_weights": "gaussian"}),
    ("orthogonal", "llama", {**LORA, "init_lora_weights": "orthogonal"}),
    ("dora", "llama", {**LORA, "use_dora": True}),
    ("lora-bias", "opt", {**BIASED, "lora_bias": True}),
    ("lora-bias-random", "opt", {**BIASED, "lora_bias": True, "init_lora_weights": False}),
    ("embedding", "llama", {**LORA, "target_modules": ["q_proj", "embed_tokens"]}),
    ("embedding-random", "llama", {"target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": False}),
    ("head", "llama", {**LORA, "modules_to_save": ["lm_head"]}),
    ("conv1d", "gpt2", {**LORA, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("conv2d", "vit", {**LORA, "target_modules": ["q_proj", "projection"], "modules_to_save": ["classifier"]}),
    ("adalora", "llama", {"method": "AdaLoraConfig", "init_r": 4, "target_r": 2, "total_step": 10, **TARGETS}),
    ("prompt", "llama", {"method": "PromptTuningConfig", **PROMPT}),
    ("prompt-vocab", "llama", {"method": "PromptTuningConfig", "prompt_tuning_init": "SAMPLE_VOCAB", **PROMPT}),
    ("p-tuning", "llama", ENCODER),
    ("p-tuning-lstm", "llama", {**ENCODER, "encoder_reparameterization_type": "LSTM"}),
    ("prefix", "llama", {"method": "PrefixTuningConfig", **PROMPT}),
    ("prefix-projected", "llama", {"method": "PrefixTuningConfig", "prefix_projection": True, **PROMPT}),
    ("loha", "llama", {"method": "LoHaConfig", **LORA}),
    ("lokr", "llama", {"method": "LoKrConfig", **LORA}),
    ("hra", "llama", {"method": "HRAConfig", **LORA}),
    ("miss", "llama", {"method": "MissConfig", **LORA}),
    ("fourierft", "llama", {"method": "FourierFTConfig", "n_frequency": 10, **TARGETS}),
    ("c3a", "llama", {"method": "C3AConfig", "block_size": 4, "target_modules": ["q_proj"]}),
]


@pytest.mark.filterwarnings("ignore:.*have invalid shape")  # peft, of its own lora_B.bias
@pytest.mark.parametrize(("family", "config"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_seed_gives_one_adapter(family: str, config: dict[str, Any]) -> None:
    base = FAMILIES[family].base()
    found = []
    for library, made in ((inlay, both.of_inlay), (both.peft, both.of_peft)):
        model = made(base, config, prepare=lambda _: None)
        found.append((library.get_peft_model_state_dict(model, save_embedding_layers=False), torch.rand(4)))
    (mine, after), (theirs, expected) = found
    both.same_tensors(mine, theirs, 1e-6)
    assert torch.equal(after, expected)
