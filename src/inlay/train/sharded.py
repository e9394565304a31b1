"""Trainer over a base that is cut up (FSDP2, ZeRO-3): what is saved of a view is the view's own.

Trainer gathers the whole base for every checkpoint, unless a package `peft` tells it what an adapter is, and under FSDP
writes it too. Here an adapter is gathered alone, by all processes, and written once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from inlay.model import PeftModel


class ShardedTrainer(Trainer):  # type: ignore[misc]  # transformers is not followed
    """Trainer where nothing is cut up, or all is trained."""

    @property
    def _cuts_view(self) -> bool:
        return isinstance(self.model, PeftModel) and (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter, or the whole model."""
        if not self._cuts_view:
            super().save_model(output_dir, _internal_call)
            return
        self.model.save_pretrained(output_dir or self.args.output_dir, is_main_process=self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not (self._cuts_view and self.is_fsdp_enabled):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import save_fsdp_optimizer

        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._cuts_view and self.is_fsdp_enabled:
            self._load_view(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._cuts_view and self.is_fsdp_enabled:
            self._load_view(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_view(self, folder: str) -> None:
        (name,) = self.model.active_adapters
        self.model.load_adapter(folder, name, is_trainable=True)
