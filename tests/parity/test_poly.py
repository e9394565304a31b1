"""Poly beside peft, a task for each row: logits, gradients, the losses of 20 steps, and files both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inlay

from .both import (
    STEPS,
    agree,
    differ,
    gradients,
    into_inlay,
    into_peft,
    layout,
    losses,
    of_inlay,
    of_peft,
    output,
    peft,
    same_settings,
    same_tensors,
)
from .models import FAMILIES

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"r": 3, "n_tasks": 3, "n_skills": 2, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "t5": {"r": 2, "n_tasks": 2, "n_skills": 3, "n_splits": 4},
}


def config(name: str) -> dict[str, Any]:
    given = {"method": "PolyConfig", "task_type": FAMILIES[name].task_type, "init_weights": False}
    return {**given, **FIELDS[name]}


def batch(name: str, seed: int) -> dict[str, torch.Tensor]:
    return {**FAMILIES[name].batch(seed), "task_ids": torch.tensor([seed % 2, 1])}


@pytest.mark.parametrize("name", FIELDS)
def test_numbers(name: str, tmp_path: Path) -> None:
    base = FAMILIES[name].base()
    theirs = of_peft(base, config(name), tmp_path)
    mine = into_inlay(base, tmp_path, is_trainable=True)
    batches = [batch(name, seed) for seed in range(STEPS)]
    agree(output(mine, batches[0]), output(theirs, batches[0]), "logits")
    differ(output(mine, batches[0]), output(base, FAMILIES[name].batch(0)))
    differ(output(mine, batches[0]), output(mine, {**batches[0], "task_ids": torch.tensor([1, 0])}))
    for model in (mine, theirs):
        model(**batches[0]).loss.backward()
    same_tensors(gradients(inlay, mine), gradients(peft, theirs))
    for model in (mine, theirs):
        model.zero_grad()
    agree(losses(mine, batches), losses(theirs, batches), "losses")


@pytest.mark.parametrize("name", FIELDS)
def test_files(name: str, tmp_path: Path) -> None:
    base, given = FAMILIES[name].base(), batch(name, 0)
    theirs, mine = of_peft(base, config(name), tmp_path / "peft"), of_inlay(base, config(name), tmp_path / "inlay")
    loaded = into_inlay(base, tmp_path / "peft")
    agree(output(loaded, given), output(theirs, given), "saved by peft, loaded by Inlay")
    agree(output(into_peft(base, tmp_path / "inlay"), given), output(mine, given), "saved by Inlay, loaded by peft")
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")
    same_settings(tmp_path / "inlay", tmp_path / "peft")
    loaded.save_pretrained(str(tmp_path / "again"))
    same_tensors(peft.load_peft_weights(str(tmp_path / "again")), peft.load_peft_weights(str(tmp_path / "peft")))
