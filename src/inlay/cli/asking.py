"""What `compare`, `chat` and `eval` share: options, and how results are printed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A run's folder; or an adapter's, or a model's.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token; above it tokens are drawn.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens with this much probability.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn. Prompt i has seed + i, for every model.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")]


def device_of(device: str) -> str | None:
    """As functions of the library take it."""
    return None if device == "auto" else device


def listed(text: str | None) -> list[str]:
    """`"a, b"` as `["a", "b"]`."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


class Result(Protocol):
    """What can be shown as text and as data."""

    def text(self, width: int, color: bool) -> str:
        """Tables."""

    def to_dict(self) -> dict[str, Any]:
        """Data."""


def show(result: Result, as_json: bool) -> None:
    """To stdout: data, or tables as wide as the terminal, coloured if it is one."""
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, indent=1))
    else:
        terminal = sys.stdout.isatty()
        print(result.text(shutil.get_terminal_size((100, 24)).columns if terminal else 100, terminal), end="")


def saved(path: Path) -> None:
    """Says so on stderr."""
    print(f"Saved: {path}", file=sys.stderr)
