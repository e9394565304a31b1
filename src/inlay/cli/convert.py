"""`inlay convert`."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[str, typer.Argument(help="A run, or an adapter's folder, of Inlay or of peft.")],
    out: Annotated[Path, typer.Argument(help="The new folder. It must not be there, or be empty.")],
    to: Annotated[
        str,
        typer.Option(
            help="inlay: checksums, and safetensors in place of a pickle. peft: peft's files and no others. "
            "lora: any change of weights as LoRA that loads anywhere."
        ),
    ] = "inlay",
    rank: Annotated[
        float | None,
        typer.Option(help="For lora: its rank, e.g. 16; or the share of each layer's energy to keep, e.g. 0.99."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or id of the base, where the adapter names none; or to check that it fits."),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Read adapter_model.bin. A pickle is a program: only if you trust it."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The report as an object.")] = False,
) -> None:
    """Write an adapter in another form, beside the old one.

    Prints what was written, how close a LoRA is to what it was made of,
    and whether vLLM would load it.

    Example: inlay convert runs/oft runs/oft-as-lora --to lora --rank 16
    """
    from inlay.conversion import convert
    from inlay.runs.opened import adapter_folder

    whole = rank if rank is None or 0 < rank < 1 or rank % 1 else int(rank)  # 1 is a rank; 0.99 is a share
    made = convert(adapter_folder(source), out, to, base=base, rank=whole, allow_pickle=allow_pickle)
    print(json_.dumps(made.to_dict(), indent=2) if json else made)
