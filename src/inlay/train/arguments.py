"""A recipe as the arguments of `transformers.Trainer`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from inlay.errors import ConfigError, did_you_mean
from inlay.recipe.recipe import FULL, Recipe
from inlay.train.parallel import sharding_arguments

_DEVICE = "ACCELERATE_TORCH_DEVICE"  # the device that accelerate is told to take

# gradient checkpointing, which transformers 5.23 renamed
_NAMES = {field.name for field in dataclasses.fields(TrainingArguments)}
_CHECKPOINTING = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in _NAMES)


def training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """Those of a recipe, with checkpoints in `folder`. Raises ConfigError for what this machine or launcher cannot."""
    how = recipe.train
    on_gpu = how.device == "auto" and torch.cuda.is_available()
    evaluated = recipe.data.eval is not None
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=how.device == "cpu" or not (torch.accelerator.is_available() or _DEVICE in os.environ),
        num_train_epochs=how.epochs,
        max_steps=how.max_steps or -1,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.per_pass,
        per_device_eval_batch_size=recipe.per_pass,
        gradient_accumulation_steps=recipe.passes,
        lr_scheduler_type=how.scheduler,
        warmup_steps=how.warmup,
        weight_decay=how.weight_decay,
        max_grad_norm=how.max_grad_norm,
        optim=_optimizer(how.optimizer),
        seed=how.seed,
        data_seed=how.seed,
        **_precision(recipe, on_gpu),
        **sharding_arguments(recipe),
        **({_CHECKPOINTING: True} if how.gradient_checkpointing else {}),
        **({"train_sampling_strategy": "group_by_length"} if how.group_by_length else {}),
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
        run_name=Path(recipe.out).absolute().name,
        project="inlay",
        restore_callback_states_from_checkpoint=how.early_stopping is not None,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments._n_gpu, 1)  # else Trainer would split each batch over all GPUs by threads
    return arguments


def _optimizer(name: str) -> str:
    known = [str(known.value) for known in OptimizerNames]
    if name not in known:
        raise ConfigError.of("train.optimizer", name, "one that transformers has", did_you_mean(name, known).strip())
    return name


def _precision(recipe: Recipe, on_gpu: bool) -> dict[str, Any]:
    """Whether products are made in 16 bits, weights staying as they are."""
    asked = recipe.train.precision
    told = {"bf16": "bfloat16", "fp16": "float16"}.get(os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
    if told and asked not in ("auto", told):
        raise ConfigError(f"train.precision={asked!r}, but accelerate's launcher was told {told}: take one away.")
    if asked == "float16" and not on_gpu:
        raise ConfigError("train.precision='float16' needs a GPU: on a CPU take float32 or bfloat16.")
    if asked == "auto" and not told:
        whole = on_gpu and torch.cuda.is_bf16_supported() and recipe.adapter.method == FULL
        asked = "bfloat16" if whole else "float32"
    precision = told or asked
    given: dict[str, Any] = {"bf16": precision == "bfloat16", "fp16": precision == "float16"}
    # which only GPUs have: elsewhere products are exact
    return given | ({"tf32": recipe.train.tf32} if on_gpu and recipe.train.tf32 is not None else {})
