"""LN tuning beside peft's: numbers, files both ways, defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import compare, layout, of_inlay, of_peft, swap
from .models import FAMILIES, HEADED, SCALED

# peft says so of the very layers that LN tuning is for
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm':UserWarning")

LN = {"method": "LNTuningConfig"}
EVERY = {**FAMILIES, **HEADED, **SCALED}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {}),
    ("bart", {}),
    ("opt", {"target_modules": ["final_layer_norm"], "exclude_modules": ["decoder.final_layer_norm"]}),
    ("bert-seq-cls", {"target_modules": r".*\.LayerNorm"}),
    ("vit", {"target_modules": ["layernorm_before", "fc1"], "modules_to_save": ["classifier"]}),
]


def config_of(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {**LN, "task_type": EVERY[name].task_type, **fields}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "fields"), CASES, ids=str)
def test_numbers(name: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    compare(EVERY[name], config_of(name, fields), tmp_path, dtype)


@pytest.mark.parametrize(("name", "fields"), CASES, ids=str)
def test_files(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    swap(EVERY[name].base(), config_of(name, fields), EVERY[name].batch(0), tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "t5", "bart", "gemma3"])
def test_the_defaults_are_pefts(name: str, tmp_path: Path) -> None:
    base = EVERY[name].base()
    of_peft(base, config_of(name, {}), tmp_path / "peft")
    of_inlay(base, config_of(name, {}), tmp_path / "inlay")
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")
