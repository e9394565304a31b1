"""BOFT and peft: numbers, and files both ways. (One factor: peft needs a CUDA extension for more, and ignores them.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import compare, swap
from .models import FAMILIES, convs

BIG = {"method": "BOFTConfig", "init_weights": False}
LLAMA = {**BIG, "task_type": "CAUSAL_LM"}


@pytest.fixture(autouse=True)
def _no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps peft from trying to build its CUDA extension, and from warning that it could not."""
    import peft.tuners.boft.layer as layer

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: None)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("bloom", {"boft_block_num": 4, "boft_block_size": 0}),
        ("vit", {"target_modules": ["q_proj", "fc1"], "boft_block_size": 8, "task_type": None}),
    ],
    ids=str,
)
def test_numbers(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    compare(FAMILIES[name], {**LLAMA, **fields}, tmp_path)


@pytest.mark.parametrize("fields", [{}, {"boft_block_num": 2, "boft_block_size": 0}], ids=str)
def test_files(fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    swap(family.base(), {**LLAMA, **fields}, family.batch(0), tmp_path)


def test_convolutions(tmp_path: Path) -> None:
    model, x = convs(2, kernel_size=3, stride=2, padding=1)
    swap(model, {**BIG, "target_modules": ["conv", "point"]}, x, tmp_path)


def test_the_permutations_are_pefts() -> None:
    from peft.tuners.boft.layer import BOFTLayer

    from tests.methods.test_boft import permutation

    for features, size, i in [(24, 4, 1), (32, 4, 2), (32, 2, 3), (48, 6, 2)]:
        theirs = BOFTLayer.block_butterfly_perm(None, features, features // size // 2**i, size // 2, 3)
        ours = permutation(features, size * 2**i, size // 2)
        assert torch.equal(ours, torch.eye(features, dtype=torch.float64)[theirs])
