"""Prompt methods under the real Trainer: checkpoints, resuming, and the best model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from inlay import PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from . import tiny
from .tiny import arguments, rows

CONFIGS: dict[str, Any] = {
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "projected": lambda: PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
    ),
}
EVERY = pytest.mark.parametrize("method", list(CONFIGS))


def view_of(method: str) -> Any:
    torch.manual_seed(0)
    return get_peft_model(tiny.base("llama"), CONFIGS[method]())


def trainer(view: Any, folder: Path, **changes: Any) -> Trainer:
    args = arguments(folder, max_steps=6, save_strategy="steps", save_steps=3, learning_rate=1e-2, **changes)
    return Trainer(view, args, train_dataset=rows(8), eval_dataset=rows(4))


def logits(view: Any) -> torch.Tensor:
    with torch.no_grad():
        return view.eval()(input_ids=torch.stack([row["input_ids"] for row in rows(2)])).logits  # type: ignore[no-any-return]


@EVERY
def test_a_run_resumes_to_the_same_adapter(method: str, tmp_path: Path) -> None:
    whole = view_of(method)
    before = logits(whole)
    trainer(whole, tmp_path).train()
    again = view_of(method)
    trainer(again, tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(logits(again), logits(whole)) and not torch.allclose(logits(whole), before)
    state = (tmp_path / "checkpoint-6" / "training_state.safetensors").exists()
    assert state == (method in ("p-tuning", "projected"))
    loaded = PeftModel.from_pretrained(tiny.base("llama"), str(tmp_path / "checkpoint-6"))
    torch.testing.assert_close(logits(loaded), logits(whole))


@EVERY
def test_the_best_model_is_loaded_at_the_end(method: str, tmp_path: Path) -> None:
    view = view_of(method)
    made = trainer(
        view, tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=3, metric_for_best_model="loss"
    )
    made.train()
    best = PeftModel.from_pretrained(tiny.base("llama"), made.state.best_model_checkpoint)
    torch.testing.assert_close(logits(view), logits(best))
