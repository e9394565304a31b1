"""`inlay inspect`."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[
        Path, typer.Argument(help="An adapter's folder, a run, or a folder with several adapters in it.")
    ],
    json: Annotated[bool, typer.Option("--json", help="A JSON list, an object for every adapter.")] = False,
) -> None:
    """Show what an adapter's files hold, and whether they are sound.

    Method, base, tensors, how much each layer changes, and faults: damage,
    NaN, tensors that do not fit, ranks that do nothing, and what vLLM would
    not load. No base is needed. Exit code 1 if an adapter is not sound.

    Example: inlay inspect runs/mine
    """
    from inlay.inspection import adapters_in, inspect_adapter

    found = [inspect_adapter(path) for path in adapters_in(folder)]
    if json:
        print(json_.dumps([inspection.to_dict() for inspection in found], indent=2))
    else:
        print("\n\n".join(map(str, found)))
    if not all(inspection.healthy for inspection in found):
        raise typer.Exit(1)
