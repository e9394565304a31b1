"""A recipe as the arguments of `transformers.Trainer`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from inlay.train.recipe import FULL, Recipe


def training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """Those of a recipe, with checkpoints in `folder`."""
    how = recipe.train
    on_gpu = how.device == "auto" and torch.cuda.is_available()
    evaluated = recipe.data.eval is not None
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=how.device == "cpu",
        num_train_epochs=how.epochs,
        max_steps=how.max_steps or -1,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=how.batch,
        per_device_eval_batch_size=how.batch,
        gradient_accumulation_steps=how.accumulation,
        lr_scheduler_type=how.scheduler,
        warmup_steps=how.warmup,
        weight_decay=how.weight_decay,
        max_grad_norm=how.max_grad_norm,
        optim=how.optimizer,
        seed=how.seed,
        data_seed=how.seed,
        bf16=on_gpu and torch.cuda.is_bf16_supported() and recipe.adapter.method == FULL,
        **({"gradient_checkpointing": True} if how.gradient_checkpointing else {}),
        logging_steps=how.log_every,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="all",
        save_strategy="steps",
        save_steps=how.save_every,
        save_total_limit=how.keep,
        eval_strategy="steps" if evaluated else "no",
        eval_steps=(how.eval_every or how.save_every) if evaluated else None,
        load_best_model_at_end=evaluated,
        metric_for_best_model="eval_loss" if evaluated else None,
        greater_is_better=False if evaluated else None,
        report_to=list(recipe.report.trackers) or "none",
        restore_callback_states_from_checkpoint=how.early_stopping is not None,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
    )
