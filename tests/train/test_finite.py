"""What stops a step: a loss, or a gradient, that is no number."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.errors import NumericsError
from inlay.runs.run import Run
from inlay.train.callbacks import Finite


def step(folder: Path, gradient: float, loss: float = 1.0, fp16: bool = False) -> Any:
    """The end of one: two passes were made, of rows 1 to 4."""
    finite = Finite(Run(folder), "rows.jsonl")
    seen = [(torch.tensor(1.0), torch.tensor([1, 2])), (torch.tensor(loss), torch.tensor([3, 4]))]
    finite.trainer = SimpleNamespace(seen=seen, is_deepspeed_enabled=False)
    model = torch.nn.Linear(2, 2, bias=False)
    model.weight.grad = torch.full((2, 2), gradient)
    model.weight.grad[0] = 1.0
    finite.on_pre_optimizer_step(SimpleNamespace(fp16=fp16), SimpleNamespace(global_step=6), None, model=model)


def test_numbers_pass(tmp_path: Path) -> None:
    step(tmp_path, 1e10)


def test_a_gradient_is_named_with_all_rows_of_the_step(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"The gradient of step 7 is nan, on rows 1, 2, 3, 4 of rows.jsonl"):
        step(tmp_path, float("nan"))


def test_a_loss_is_named_with_the_rows_of_its_pass(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"The loss of step 7 is inf, on rows 3, 4 of rows.jsonl"):
        step(tmp_path, 1.0, loss=float("inf"), fp16=True)


def test_scaled_gradients_may_overflow(tmp_path: Path) -> None:
    step(tmp_path, float("inf"), fp16=True)
