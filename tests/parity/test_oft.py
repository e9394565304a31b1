"""OFT and peft: numbers, and files both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import agree, compare, differ, into_inlay, losses, of_peft, output, swap
from .models import FAMILIES, convs

BIG = {"method": "OFTConfig", "init_weights": False, "oft_block_size": 16}
LLAMA = {**BIG, "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("llama", {"r": 4, "oft_block_size": 0, "block_share": True}),
        ("bloom", {"num_cayley_neumann_terms": 3}),
        ("vit", {"target_modules": ["q_proj", "fc1"], "num_cayley_neumann_terms": 8, "task_type": None}),
    ],
    ids=str,
)
def test_numbers(name: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], {**LLAMA, **fields}, tmp_path, dtype)


def test_numbers_of_the_constrained(tmp_path: Path) -> None:
    """In training mode, in which both keep the parameter where it may be. (In float32: peft's eps is.)"""
    family, config = FAMILIES["llama"], {**LLAMA, "coft": True, "eps": 0.5}
    base, batches = family.base(), [family.batch(seed) for seed in range(20)]
    theirs = of_peft(base, config, tmp_path)
    mine = into_inlay(base, tmp_path, is_trainable=True)
    before = output(base, batches[0])
    agree(output(mine, batches[0]), output(theirs, batches[0]))
    differ(output(mine, batches[0]), before)
    agree(losses(mine.train(), batches), losses(theirs.train(), batches))


def test_numbers_of_the_exact_transform(tmp_path: Path) -> None:
    """In float32 only: peft's identity matrix is float32 whatever the model's dtype, which its solve refuses."""
    compare(FAMILIES["llama"], {**LLAMA, "use_cayley_neumann": False}, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"r": 2, "oft_block_size": 0, "block_share": True, "use_cayley_neumann": False},
        {"coft": True, "eps": 0.5},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_files(fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    swap(family.base(), {**LLAMA, **fields}, family.batch(0), tmp_path)


def test_a_block_size_that_does_not_fit(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    with pytest.warns(UserWarning, match="Adjusted `r` to"):
        theirs = of_peft(family.base(), {**LLAMA, "oft_block_size": 0, "r": 5}, tmp_path)
    with pytest.warns(UserWarning, match="r=4 is taken there"):
        mine = into_inlay(family.base(), tmp_path)
    agree(output(mine, family.batch(0)), output(theirs, family.batch(0)))


def test_convolutions_of_one_point(tmp_path: Path) -> None:
    model, x = convs(2, kernel_size=3)
    swap(model, {**BIG, "target_modules": ["point"], "oft_block_size": 4}, x, tmp_path)


def test_larger_kernels_are_what_peft_merges(tmp_path: Path) -> None:
    model, x = convs(2, kernel_size=3)
    theirs = of_peft(model, {**BIG, "target_modules": ["conv"], "oft_block_size": 9}, tmp_path)
    mine = into_inlay(model, tmp_path)
    assert (output(theirs, x) - output(mine, x)).abs().max() > 0.1, "peft computes something else before it merges"
    agree(output(mine, x), output(theirs.merge_and_unload(), x))
