"""What a view of a transformers model needs beyond the mechanism. `inlay.registry` imports this for such models."""

from __future__ import annotations

from typing import Any

from inlay.hf import trainer
from inlay.hf.names import earlier_names
from inlay.hf.prompts import fill_cache, token_ids

__all__ = ["earlier_names", "fill_cache", "on_view", "token_ids"]


def on_view(view: Any) -> None:
    """Called once per view, when its first adapter is in place.

    - A model that has `_hf_peft_config_loaded`, as views do, may be trained when quantised and makes its inputs require
      gradients under gradient checkpointing; checkpointing that was on before is caught up with.
    - Trainer learns to recognise views, see `inlay.hf.trainer`.
    """
    if hasattr(view, "enable_input_require_grads") and any(
        getattr(m, "gradient_checkpointing", False) for m in view.modules()
    ):
        view.enable_input_require_grads()
    if not trainer.forgotten:
        trainer.teach_trainer()
