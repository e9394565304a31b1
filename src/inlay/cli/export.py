"""`inlay export`."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or an adapter's, or a model.")],
    to: Annotated[
        str,
        typer.Option(
            help="merged: a model of transformers with the adapter in its weights. peft: the adapter's own folder. "
            "gguf: one file for llama.cpp. gguf-adapter: a LoRA alone, for llama.cpp."
        ),
    ] = "merged",
    out: Annotated[
        Path | None, typer.Option(help="A folder that is not there yet. Default: RUN/merged, RUN/peft or RUN/gguf.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base, if it is elsewhere now: a folder, or an id.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the weights: float32, bfloat16, float16; gguf also q8_0. Default: the model's."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Read what was written and compare its logits; for peft: vLLM's rules."
        ),
    ] = True,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Difference allowed, as a share of the largest logit. Default: 1e-4 in float32, 0.1 in bfloat16."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="An object with folder, file, difference and notes.")] = False,
) -> None:
    """Write a run's result in a form that other programs read, and check it.

    Nothing appears under its name before it is complete and verified.

    Example: inlay export runs/mine --to gguf --dtype q8_0
    """
    from inlay.runs.exports import export_source

    made = export_source(source, to, out, base=base, dtype=dtype, verify=verify, tolerance=tolerance)
    print(json_.dumps(made.to_dict(), indent=2) if json else made)
