"""`inlay check`."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.recipes import recipe_command
from inlay.recipe.recipe import Recipe


@recipe_command
def command(
    recipe: Recipe,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows to show.")] = 3,
    measure: Annotated[bool, typer.Option("--measure", help="Time three real steps, which reads the weights.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Show what a recipe will do before anything is trained: rows, sizes, memory, time, and what is wrong.

    Exit code 1 if something has to be put right first. Example: inlay check recipe.yaml --batch 8
    """
    from rich.console import Console

    from inlay.preflight.check import check
    from inlay.preflight.text import lines

    found = check(recipe, rows, measure)
    console = Console(soft_wrap=True, highlight=False)
    if json:
        from json import dumps

        print(dumps(found.to_dict(), ensure_ascii=False, indent=2))
    else:
        for line in lines(found, styled=console.is_terminal and console.color_system is not None):
            console.print(line)
    raise SystemExit(0 if found.ok else 1)
