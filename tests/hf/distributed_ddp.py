"""Run by `test_distributed.py` in two processes: Trainer trains a view under DDP, saves, and resumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from inlay import get_peft_model

from ..tiny import older
from . import tiny
from .tiny import arguments, fill, lora, rows


def trained(folder: Path, rows_each: int, adapter_seed: int, resume: str | None = None) -> Any:
    view = fill(get_peft_model(tiny.base("llama"), lora()), adapter_seed)
    args = arguments(folder, per_device_train_batch_size=rows_each, save_strategy="steps", save_steps=3)
    trainer = Trainer(view, args, train_dataset=rows())
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder / "final"))
    return view


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trained(folder / "whole", 1, 1)
    if not older("torch", "2.12"):  # which cannot load what was on "cpu:0"
        trained(folder / "resumed", 1, 2, str(folder / "whole" / "checkpoint-3"))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
