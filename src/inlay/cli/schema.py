"""`inlay schema`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer


def command(
    method: Annotated[
        str | None, typer.Option(help="Only this one: lora, ia3, ..., full. By default all of them.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="A list to read, in place of JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="A file to write to, e.g. recipe.schema.json.")] = None,
) -> None:
    """List every key of a recipe: as a JSON schema, with which editors complete and check it, or as a text.

    An editor with YAML's language server finds it by a recipe's first line:

    # yaml-language-server: $schema=recipe.schema.json

    Example: inlay schema --out recipe.schema.json
    """
    from inlay.io.disk import replace_file
    from inlay.recipe.schema import recipe_schema, recipe_text

    if text:
        made = recipe_text(method, shutil.get_terminal_size((100, 0)).columns)
    else:
        made = json.dumps(recipe_schema(method), indent=2, ensure_ascii=False)
    if out is None:
        print(made)
    else:
        replace_file(out, f"{made}\n".encode())
        typer.echo(f"Written to {out}.", err=True)
