"""C3A and peft: numbers, and files both ways."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from .both import compare, spread, swap
from .models import FAMILIES

BIG = {"method": "C3AConfig", "block_size": 8, "init_weights": "gaussian", "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"layers_to_transform": [1]}),
        ("bloom", {"block_size_pattern": {"h.1.self_attention.query_key_value": 16}, "layers_to_transform": [1]}),
        ("vit", {"target_modules": ["q_proj", "v_proj"], "task_type": None, "layers_to_transform": [1]}),
    ],
    ids=str,
)
def test_numbers(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """In one layer only: peft's hand-written gradient for the input (not the kernel) is that of K reversed."""
    compare(FAMILIES[name], {**BIG, **fields}, tmp_path)


@pytest.mark.parametrize("fields", [{"init_weights": True}, {"block_size": 32, "target_modules": ["q_proj"]}], ids=str)
def test_files(fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    prepare = functools.partial(spread, std=1.0)
    swap(family.base(), {**BIG, **fields}, family.batch(0), tmp_path, prepare=prepare)
