"""`inlay runs`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from inlay.runs.listing import Details, Listed


def command(
    folder: Annotated[Path, typer.Argument(help="The folder of one run, or one with runs in it.")] = Path("runs"),
    report: Annotated[bool, typer.Option("--report", help="Write the run's report.html anew, and say where.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs, the newest first; or show one: what came of it, its files, and the commands to go on.

    Example: inlay runs runs/rows-lora --report
    """
    from inlay.runs.listing import describe_run, list_runs
    from inlay.runs.run import Run

    if report:
        print(Run.open(folder).report())
    elif Run(folder).exists:
        details = describe_run(Run(folder))
        _print(json.dumps(details.to_dict(), indent=1, ensure_ascii=False) if as_json else _detail(details))
    else:
        found = list_runs(folder)
        listed = json.dumps([asdict(run) for run in found], indent=1, ensure_ascii=False)
        _print(listed if as_json else _table(found) if found else f"There are no runs in '{folder}'.")
        for run in found:
            if run.problem and not as_json:
                print(f"{run.folder} is broken: {run.problem}", file=sys.stderr)


def _table(runs: list[Listed]) -> Any:
    from rich.table import Table

    from inlay.readable import count, loss, size

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold", min_width=12)
    table.add_column("state", no_wrap=True)
    for name in ("steps", "loss", "held out", "size", "when"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("method", "base", "data"):
        table.add_column(name)
    for run in runs:
        steps = "" if run.step is None else count(run.step) + (f"/{count(run.steps)}" if run.steps else "")
        losses = ("" if value is None else loss(value) for value in (run.loss, run.held_out))
        when = datetime.fromtimestamp(run.when).strftime("%m-%d %H:%M")
        numbers = map(_text, (run.folder, run.state, steps, *losses, size(run.size), when))
        names = (_text(name, short=True) for name in (run.method, _short(run.base), _short(run.data)))
        table.add_row(*numbers, *names)
    return table


def _detail(details: Details) -> Any:
    from rich.console import Group
    from rich.table import Table

    from inlay.readable import size

    run, found = details.run, details.verdict
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, value in (("run", run.folder), ("method", run.method), ("base", run.base), ("data", run.data)):
        facts.add_row(name, _text(value))
    files = Table.grid(padding=(0, 2, 0, 0))
    files.add_column()
    files.add_column(justify="right")
    for name, held in details.files.items():
        files.add_row(_text(name), size(held))
    said = [line for line in (found.sentence, found.state, found.advice) if line]
    lines = (facts, "", *map(_text, said), "", files, "", *map(_text, details.commands))
    return Group(*lines)


def _short(name: str | None) -> str | None:
    """A path's last part; a name on the Hub as it is."""
    return Path(name).name if name and (name.count("/") > 1 or Path(name).exists()) else name


def _text(value: str | None, short: bool = False) -> Any:
    """As it is, or its beginning if there is little space: no markup, and nothing that a terminal would obey."""
    from rich.text import Text

    text = value or ""
    shown = text if text.replace("\n", "").isprintable() else repr(text)
    return Text(shown, no_wrap=True, overflow="ellipsis") if short else Text(shown)


def _print(shown: Any) -> None:
    """A file or a program gets lines as long as they are."""
    if isinstance(shown, str):
        print(shown)
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000
    Console(highlight=False, width=width).print(shown)
