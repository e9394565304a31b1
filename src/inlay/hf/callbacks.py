"""Callbacks for `transformers.Trainer`. None is needed for adapters called "default"."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from inlay.errors import StateError


class LoadBestAdapters(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Lets `load_best_model_at_end` work for adapters of any name, and for several at once.

    Trainer looks for the best adapter in the checkpoint's folder itself, where `save_pretrained` puts the one called
    "default"; others are in sub-folders, and Trainer would keep the last step's with a warning. It also loads the
    first active adapter only.

    Example:
        >>> Trainer(view, args, ..., callbacks=[LoadBestAdapters()])
    """

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Loads the active adapters from the best checkpoint."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            for name in model.active_adapters:
                model.load_adapter(state.best_model_checkpoint, name)


class AdapterSchedule(TrainerCallback):  # type: ignore[misc]
    """Tells methods with a schedule (AdaLoRA) of every optimizer step, counted from 0.

    Example:
        >>> Trainer(view, args, ..., callbacks=[AdapterSchedule()])
    """

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """`update_and_allocate`, at the moment between `optimizer.step()` and `zero_grad()`."""
        while not hasattr(type(model), "update_and_allocate"):  # inside DDP, or compiled
            inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
            if inner is None:
                raise StateError(f"AdapterSchedule needs a view (get_peft_model), not a {type(model).__name__}.")
            model = inner
        model.update_and_allocate(state.global_step)  # not counted up yet: 0 after the first step
