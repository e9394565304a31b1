"""`inlay train`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from inlay.errors import ConfigError


def command(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe (YAML); else --model and --data.")] = None,
    model: Annotated[str | None, typer.Option(help="The base: a folder, or an id on the Hub. Key: model.name.")] = None,
    data: Annotated[str | None, typer.Option(help="Rows to train on: a file, or an id. Key: data.train.")] = None,
    method: Annotated[str | None, typer.Option(help="lora, ia3, ..., or full. Key: adapter.method.")] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder. Key: out.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key: --set train.lr=1e-4.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what is in the run's folder and start over.")] = False,
) -> None:
    """Train an adapter, or a whole model, on rows of text.

    A run that was stopped goes on when it is started again with the same recipe. Ctrl-C saves a checkpoint first.
    """
    from inlay.train.recipe import Recipe

    flags = {"model.name": model, "data.train": data, "adapter.method": method, "out": out}
    values: dict[str, object] = {key: value for key, value in flags.items() if value is not None}
    values |= assignments(set_ or ())
    if recipe is not None:
        chosen = Recipe.load(recipe, values)
    else:
        if missing := [
            flag for flag, key in (("--model", "model.name"), ("--data", "data.train")) if key not in values
        ]:
            raise ConfigError(f"Give a recipe, or {' and '.join(missing)}: inlay train --model M --data rows.jsonl")
        kind = values.get("adapter.method", "lora")
        values.setdefault("out", f"runs/{Path(str(values['data.train'])).stem}-{kind}")
        chosen = Recipe.make(values, "the command line")

    from inlay.train.run import train

    try:
        train(chosen, fresh=fresh)
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped}" if stopped.args else "\nStopped.", file=sys.stderr)
        raise SystemExit(130) from None


def assignments(given: Iterable[str]) -> dict[str, object]:
    """`["train.lr=1e-4"]` as `{"train.lr": 0.0001}`; values are YAML. Raises ConfigError."""
    from inlay.train.plain import parse_yaml

    found: dict[str, object] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r} is not allowed: expected KEY=VALUE, e.g. --set train.lr=1e-4.")
        found[key.strip()] = parse_yaml(value, f"--set {key.strip()}")
    return found
