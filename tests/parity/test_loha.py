"""LoHa and peft: numbers, and files both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import compare, swap
from .models import FAMILIES, convs

BIG = {"method": "LoHaConfig", "init_weights": False, "alpha": 16, "r": 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"task_type": "CAUSAL_LM"}),
        ("bloom", {"task_type": "CAUSAL_LM", "rank_pattern": {"h.0.*": 2}, "alpha_pattern": {"h.1.*": 40}}),
        ("vit", {"target_modules": ["q_proj", "fc1"], "r": 8}),
    ],
    ids=str,
)
def test_numbers(name: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], {**BIG, **fields}, tmp_path, dtype)


@pytest.mark.parametrize("fields", [{}, {"rank_pattern": {"q_proj": 2}}, {"target_modules": "all-linear"}], ids=str)
def test_files(fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    but = ["target_modules"] if "target_modules" in fields else []
    swap(family.base(), {**BIG, "task_type": "CAUSAL_LM", **fields}, family.batch(0), tmp_path, but=but)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("effective", [False, True])
def test_convolutions(dims: int, effective: bool, tmp_path: Path) -> None:
    model, x = convs(dims, kernel_size=3, stride=2, padding=1, groups=2)
    swap(model, {**BIG, "target_modules": ["conv", "point"], "use_effective_conv2d": effective}, x, tmp_path)
