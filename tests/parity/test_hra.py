"""HRA and peft: numbers, and files both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import compare, swap
from .models import FAMILIES, convs

BIG = {"method": "HRAConfig", "init_weights": False, "r": 4}
LLAMA = {**BIG, "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("bloom", {"apply_GS": True}),
        ("vit", {"target_modules": ["q_proj", "fc1"], "r": 5, "task_type": None}),
    ],
    ids=str,
)
def test_numbers(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    compare(FAMILIES[name], {**LLAMA, **fields}, tmp_path)


def test_numbers_in_float64(tmp_path: Path) -> None:
    compare(FAMILIES["llama"], LLAMA, tmp_path, torch.float64)


@pytest.mark.parametrize("fields", [{}, {"apply_GS": True}, {"init_weights": True}], ids=str)
def test_files(fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    swap(family.base(), {**LLAMA, **fields}, family.batch(0), tmp_path)


def test_convolutions(tmp_path: Path) -> None:
    model, x = convs(2, kernel_size=3, stride=2, padding=1)
    swap(model, {**BIG, "target_modules": ["conv", "point"]}, x, tmp_path)
