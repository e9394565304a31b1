"""`inlay eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inlay.cli.asking import Device, Seed, Source, Temperature, TopP, device_of, listed, saved, show
from inlay.errors import ConfigError


def command(
    source: Source,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Rows. By default those that the run held out of training.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Of texts: exact, rouge, bleu, chatglm; separated by commas.")
    ] = None,
    vs: Annotated[
        str | None, typer.Option("--vs", metavar="NAMES", help="Beside it: 'base', other runs; separated by commas.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Of the rows. By default their columns decide.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the longest text for metrics, in tokens.")] = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(help="Rows at a time.")] = 8,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the texts that metrics are of, as JSON lines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data, not a table.")] = False,
) -> None:
    """Measure a run, an adapter or a model on rows: loss, perplexity, and metrics on the texts that it writes.

    Example: inlay eval runs/mine --vs base --metrics exact,rouge --out predictions.jsonl
    """
    from inlay.comparison import Decoding
    from inlay.runs.together import evaluate_sources

    if out is not None and not listed(metrics):
        raise ConfigError("--out saves the texts that metrics are of: name one with --metrics, e.g. --metrics exact.")
    found = evaluate_sources(
        source,
        data,
        listed(metrics),
        listed(vs),
        format=format,
        limit=limit,
        decoding=Decoding(max_new_tokens, temperature, top_p, seed),
        batch_size=batch,
        device=device_of(device),
    )
    if out is not None:
        found.save_predictions(out)
        saved(out)
    show(found, as_json)
