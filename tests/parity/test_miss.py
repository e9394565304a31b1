"""MiSS and peft: numbers, and files both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import compare, swap
from .models import FAMILIES

BIG = {"method": "MissConfig", "r": 8}
LLAMA = {**BIG, "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("bloom", {"r": 10, "init_weights": False}),
        ("llama", {"init_weights": "mini", "mini_r": 4}),
        ("vit", {"target_modules": ["q_proj", "fc1"], "init_weights": "bat", "task_type": None}),
    ],
    ids=str,
)
def test_numbers(name: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], {**LLAMA, **fields}, tmp_path, dtype)


@pytest.mark.parametrize("fields", [{}, {"init_weights": "mini", "mini_r": 2}, {"init_weights": "bat"}], ids=str)
def test_files(fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    swap(family.base(), {**LLAMA, **fields}, family.batch(0), tmp_path)
