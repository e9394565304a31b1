"""`inlay doctor`."""

from __future__ import annotations

import json as json_
from typing import Annotated

import typer


def command(json: Annotated[bool, typer.Option("--json", help="An object with every finding.")] = False) -> None:
    """Look at the machine and what is installed, and say whether one can train here.

    Python, memory, disk, devices, each package beside what is needed,
    Hugging Face's cache, whether quantisation works; and an adapter is
    trained for a step. Marked are - what is optional and missing, and
    ! what training needs: with one of these, the exit code is 1.

    Example: inlay doctor
    """
    from inlay.diagnosis import diagnose

    found = diagnose()
    print(json_.dumps(found.to_dict(), indent=2) if json else found)
    if found.broken:
        raise typer.Exit(1)
