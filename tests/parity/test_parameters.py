"""`get_nb_trainable_parameters` gives peft's numbers."""

from __future__ import annotations

from typing import Any

import pytest

from .both import of_inlay, of_peft
from .models import FAMILIES, HEADED

EMBEDDINGS_SAVED = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, {}) for name in FAMILIES),
        ("llama", {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}}),
        ("gpt2", {"bias": "lora_only"}),
        ("bert", {"bias": "all"}),
        ("llama", {"target_modules": ["embed_tokens"]}),
        ("llama", {"trainable_token_indices": [1, 2]}),
        ("gpt2", {"trainable_token_indices": [1, 2]}),
    ],
    ids=str,
)
def test_the_same_numbers(name: str, fields: dict[str, Any]) -> None:
    family = FAMILIES[name]
    config = family.config(**fields)
    found = of_inlay(family.base(), config).get_nb_trainable_parameters()
    assert found == of_peft(family.base(), config).get_nb_trainable_parameters()
    assert 0 < found[0] < found[1]


@pytest.mark.parametrize(
    ("name", "fields", "head"),
    [
        ("bert-seq-cls", {}, "classifier"),
        ("vit", {"modules_to_save": ["classifier"]}, "classifier"),
        ("llama", {"modules_to_save": ["lm_head"]}, "lm_head"),
    ],
    ids=str,
)
def test_a_module_trained_in_full_counts_once(name: str, fields: dict[str, Any], head: str) -> None:
    """peft counts it twice: its copy, and the original that the copy stands for. The guides' figures count it once."""
    family = {**FAMILIES, **HEADED}[name]
    base, config = family.base(), family.config(**fields)
    trainable, total = of_inlay(base, config).get_nb_trainable_parameters()
    twice = sum(p.numel() for p in getattr(base, head).parameters())
    assert of_peft(base, config).get_nb_trainable_parameters() == (trainable, total + twice)
