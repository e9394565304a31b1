"""`inlay train`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from inlay.cli.recipes import recipe_command
from inlay.recipe.recipe import Recipe


@recipe_command
def command(
    recipe: Recipe,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what is in the run's folder and start over.")] = False,
) -> None:
    """Train an adapter, or a whole model, on rows of text.

    A run that was stopped goes on when it is started again with the same recipe. Ctrl-C saves a checkpoint first.

    Example: inlay train --model HuggingFaceTB/SmolLM2-135M --data rows.jsonl --epochs 3 --r 8
    """
    from inlay.train.parallel import leave
    from inlay.train.training import train

    try:
        train(recipe, fresh=fresh)
        leave()
    except KeyboardInterrupt as stopped:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            print(f"\n{stopped}" if stopped.args else "\nStopped.", file=sys.stderr)
        raise SystemExit(130) from None
