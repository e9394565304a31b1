"""FourierFT and peft: numbers, and files both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .both import compare, swap
from .models import FAMILIES

BIG = {"method": "FourierFTConfig", "n_frequency": 200, "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("gpt2", {"fan_in_fan_out": True, "scaling": 90.0}),
        ("bloom", {"random_loc_seed": 5, "n_frequency_pattern": {"h.0.self_attention.query_key_value": 50}}),
    ],
    ids=str,
)
def test_numbers(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """In float32 only: peft computes the spectrum in float32 whatever the model's dtype."""
    compare(FAMILIES[name], {**BIG, **fields}, tmp_path)


@pytest.mark.parametrize(
    ("name", "fields"), [("llama", {"init_weights": True}), ("gpt2", {"fan_in_fan_out": True})], ids=str
)
def test_files(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES[name]
    but = ["target_modules"] if name == "gpt2" else []  # whole paths, where peft writes "mlp.c_proj"
    swap(family.base(), {**BIG, **fields}, family.batch(0), tmp_path, but=but)
