"""`AdapterSchedule`: Trainer allocates AdaLoRA's ranks as a hand-written loop does, resumed or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from inlay import AdaLoraConfig, get_peft_model
from inlay.errors import StateError
from inlay.hf.callbacks import AdapterSchedule

from . import tiny
from .tiny import arguments, fill, rows

STEPS = 14


def view_of() -> Any:
    config = AdaLoraConfig(
        init_r=4, target_r=2, tinit=2, tfinal=3, total_step=STEPS, target_modules=["q_proj", "v_proj"]
    )
    return fill(get_peft_model(tiny.base("llama"), config))


def trainer(view: Any, folder: Path, **changes: Any) -> Trainer:
    plain = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "weight_decay": 0.0, "optim": "adamw_torch"}
    args = arguments(folder, max_steps=STEPS, **plain, **changes)
    return Trainer(view, args, train_dataset=rows(1) * 16, callbacks=[AdapterSchedule()])


def state(view: Any) -> tuple[Any, list[torch.Tensor]]:
    placed = view._inlay.placed["default"].values()
    return view.peft_config["default"].rank_pattern, [t for a in placed for t in a.training_state().values()]


def test_as_a_loop_written_by_hand(tmp_path: Path) -> None:
    mine = view_of().train()
    optimizer = torch.optim.AdamW([p for p in mine.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    batch = {k: torch.stack([rows(1)[0][k]] * 2) for k in ("input_ids", "labels")}
    for step in range(STEPS):
        mine(**batch).loss.backward()
        optimizer.step()
        mine.update_and_allocate(step)
        optimizer.zero_grad()
    view = view_of()
    trainer(view, tmp_path, per_device_train_batch_size=2).train()
    (pattern, tensors), (expected, others) = state(view), state(mine)
    assert pattern == expected is not None
    assert sum(map(sum, pattern.values())) == 2 * 4
    for found, other in zip(tensors, others, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-6)


def test_resumed_it_prunes_the_same(tmp_path: Path) -> None:
    whole = view_of()
    trainer(whole, tmp_path, save_strategy="steps", save_steps=6).train()
    again = view_of()
    trainer(again, tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert state(again)[0] == state(whole)[0]
    assert all(torch.equal(a, b) for a, b in zip(state(again)[1], state(whole)[1], strict=True))


class _Wrapped(nn.Module):
    def __init__(self, name: str, module: Any) -> None:
        super().__init__()
        setattr(self, name, module)


def test_it_looks_inside_ddp_and_compiled_models() -> None:
    view, steps = view_of(), []
    view._inlay.after_step = steps.append
    compiled = _Wrapped("_orig_mod", view)
    for model in (view, compiled, _Wrapped("module", view), _Wrapped("module", compiled)):
        AdapterSchedule().on_optimizer_step(None, SimpleNamespace(global_step=len(steps)), None, model=model)
    assert steps == [0, 1, 2, 3]
    with pytest.raises(StateError, match="needs a view"):
        AdapterSchedule().on_optimizer_step(None, SimpleNamespace(global_step=0), None, model=nn.Linear(1, 1))
