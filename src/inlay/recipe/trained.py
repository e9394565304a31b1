"""The model with what is trained."""

from __future__ import annotations

from typing import Any

from inlay.recipe.recipe import FULL, Recipe


def trained(recipe: Recipe, model: Any, steps: int) -> Any:
    """A view of `model` with the recipe's adapter; or `model`, if all of it is trained.

    `steps` is how many optimizer steps there will be, for methods with a schedule.
    """
    from inlay.hf.kbit import prepare_model_for_kbit_training
    from inlay.tasks import get_peft_model

    if recipe.adapter.method == FULL:
        return model
    if recipe.model.quantize != "none":
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    filled = {"total_step": steps} if recipe.adapter.planned else {}
    view = get_peft_model(model, recipe.adapter.config(revision=recipe.model.revision, **filled))
    if recipe.train.gradient_checkpointing:
        view.enable_input_require_grads()
    return view
