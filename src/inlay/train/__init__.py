"""Training from a recipe: one file says everything, one folder keeps everything.

    from inlay.train import Recipe, train

    run = train(Recipe.load("recipe.yaml"))    # goes on where it was stopped, exactly
    model, tokenizer = run.load()
    run.compare(["..."]); run.evaluate(); run.export("merged")

`docs/train.md` has the keys. What a recipe is lies in `inlay.recipe`, what remains of a run in `inlay.runs`.
"""

from __future__ import annotations

from inlay.recipe.recipe import Recipe
from inlay.runs.run import Run
from inlay.train.training import train

__all__ = ["Recipe", "Run", "train"]
