"""`inlay compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inlay.cli.asking import Device, Seed, Source, Temperature, TopP, device_of, listed, saved, show
from inlay.errors import ConfigError


def command(
    source: Source,
    with_: Annotated[
        str, typer.Option("--with", metavar="NAMES", help="Beside it: 'base', other runs; separated by commas.")
    ] = "base",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts: .txt, one a line; or rows (.jsonl, .json, .csv, ...).")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt; repeatable.")] = None,
    format: Annotated[
        str | None, typer.Option(help="How texts are put, or rows are read. By default as in training.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the longest answer, in tokens.")] = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(help="How many answers are written at a time, if none is drawn.")] = 1,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save it, too: .html a page, .json data, else text.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data, not tables.")] = False,
) -> None:
    """Ask a run and its base, or other runs, the same prompts, side by side.

    Words that differ are coloured; rows with a reference have its loss.

    Without prompts it asks the run's watch prompts, or else rows that the run held out.

    Example: inlay compare runs/mine --with base,runs/other --prompts questions.txt --out comparison.html
    """
    from inlay.comparison import Decoding
    from inlay.runs.together import compare_sources

    if prompts is not None and prompt:
        raise ConfigError("--prompts and --prompt are both given: take one away.")
    decoding = Decoding(max_new_tokens, temperature, top_p, seed)
    found = compare_sources(
        source,
        prompts or prompt or None,
        listed(with_),
        format=format,
        limit=limit,
        decoding=decoding,
        batch_size=batch,
        device=device_of(device),
    )
    if out is not None:
        found.save(out)
        saved(out)
    show(found, as_json)
