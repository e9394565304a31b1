"""Adaption prompts, on the three architectures that peft knows: logits, gradients, losses, and files both ways.

In float32 only: peft takes the softmax over the prompt in float32 whatever the base's dtype is. None of these layers
has a bias in its output projection, which peft adds twice (`test_what_peft_does_otherwise`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from .both import compare, of_inlay, of_peft, output, swap
from .models import FAMILIES, VOCAB, WIDE, Family, language, llama


def mistral() -> Any:
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=WIDE,
        )
    )


KNOWN = {
    "llama": FAMILIES["llama"],
    "mistral": Family(mistral, language, "CAUSAL_LM"),
    "gpt2": FAMILIES["gpt2"],
}
each = pytest.mark.parametrize("name", KNOWN)


def config(**fields: Any) -> dict[str, Any]:
    given = {"method": "AdaptionPromptConfig", "task_type": "CAUSAL_LM", "adapter_len": 5, "adapter_layers": 2}
    return {**given, **fields}


def opened(model: Any) -> None:
    """Gates of order one, and prompts that are not the initial ones."""
    made = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=made))


@each
def test_numbers(name: str, tmp_path: Path) -> None:
    compare(KNOWN[name], config(), tmp_path)


@each
@pytest.mark.parametrize("layers", [1, 2])
def test_files(name: str, layers: int, tmp_path: Path) -> None:
    swap(KNOWN[name].base(), config(adapter_layers=layers), language(0), tmp_path, prepare=opened)


def test_what_peft_does_otherwise() -> None:
    """peft adds the output projection's bias a second time, so that its new adapter changes a model that has one."""
    torch.manual_seed(0)
    base = Family(lambda: llama(attention_bias=True), language, "CAUSAL_LM").base()
    before = output(base, language(0))
    nothing = {"prepare": lambda model: None}
    assert (output(of_peft(base, config(), **nothing), language(0)) - before).abs().max() > 1e-2
    assert torch.equal(output(of_inlay(base, config(), **nothing), language(0)), before)
