"""Run by tests in two processes: `several.py [--shard] [--die N] RECIPE...` trains the recipes in turn.

`several.py --shard train ...` is the command line `inlay train ...`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from inlay import cli
from inlay.recipe.recipe import Recipe
from inlay.train import callbacks
from inlay.train.training import train
from tests.hf.processes import admit_cpu


def die_in_pass(number: int) -> None:
    """Both processes kill themselves in a forward pass."""
    original, count = callbacks.Rows.training_step, [0]

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    callbacks.Rows.training_step = step  # type: ignore[method-assign]


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    if "--shard" in arguments:  # over CPUs, which accelerate refuses
        arguments.remove("--shard")
        admit_cpu()
    if "--die" in arguments:
        at = arguments.index("--die")
        die_in_pass(int(arguments[at + 1]))
        del arguments[at : at + 2]
    if arguments[:1] == ["train"]:
        return cli.main(arguments)
    for recipe in arguments:
        train(Recipe.load(recipe))


if __name__ == "__main__":
    main(sys.argv[1:])
