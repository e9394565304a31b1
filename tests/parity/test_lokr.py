"""LoKr and peft: numbers, and files both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import compare, swap
from .models import FAMILIES, convs

BIG = {"method": "LoKrConfig", "init_weights": False, "alpha": 8, "r": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"task_type": "CAUSAL_LM"}),
        ("bloom", {"task_type": "CAUSAL_LM", "decompose_both": True, "decompose_factor": 16, "r": 1}),
        ("vit", {"target_modules": ["q_proj", "fc1"], "r": 8, "decompose_factor": 4}),
    ],
    ids=str,
)
def test_numbers(name: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], {**BIG, **fields}, tmp_path, dtype)


@pytest.mark.parametrize(
    "fields",
    [{}, {"rank_pattern": {"q_proj": 8}, "rank_dropout_scale": True}, {"target_modules": "all-linear"}],
    ids=str,
)
def test_files(fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    but = ["target_modules"] if "target_modules" in fields else []
    swap(family.base(), {**BIG, "task_type": "CAUSAL_LM", **fields}, family.batch(0), tmp_path, but=but)


@pytest.mark.parametrize(
    ("dims", "fields"),
    # not a core tensor on a conv1d, on which peft stops in torch.kron ("view size is not compatible")
    [(1, {"r": 1}), (1, {"r": 8}), (2, {"r": 1}), (2, {"r": 1, "use_effective_conv2d": True}), (2, {"r": 8})],
    ids=str,
)
def test_convolutions(dims: int, fields: dict[str, Any], tmp_path: Path) -> None:
    model, x = convs(dims, kernel_size=3, stride=2, padding=1)
    swap(model, {**BIG, "target_modules": ["conv", "point"], "alpha": 2, **fields}, x, tmp_path)
