"""A comparison as text: a table for each prompt, with the words that differ set apart."""

from __future__ import annotations

import io
import re
from typing import Any

from inlay.comparison.result import Comparison, Row
from inlay.errors import optional

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model may write what a terminal would obey


def rendered(comparison: Comparison, width: int = 100, color: bool = False) -> str:
    """The tables. Without color nothing marks the words that differ."""
    console_module = optional("rich.console", "cli")
    console = console_module.Console(
        file=io.StringIO(), width=width, force_terminal=color, no_color=not color, legacy_windows=False, highlight=False
    )
    for number, row in enumerate(comparison.rows, 1):
        console.print(_table(comparison, number, row))
    mean = {name: loss for name, loss in comparison.losses.items() if loss is not None}
    if mean and len(comparison.rows) > 1:
        console.print("mean loss: " + "   ".join(f"{name} {loss:.4f}" for name, loss in mean.items()), markup=False)
        best = "   ".join(f"{name} {count}" for name, count in comparison.wins.items())
        console.print(f"rows with the lowest loss: {best}", markup=False)
    return str(console.file.getvalue())


def _table(comparison: Comparison, number: int, row: Row) -> Any:
    table_class, text_class = optional("rich.table", "cli").Table, optional("rich.text", "cli").Text
    title = text_class(f"{number}  ", style="bold").append(safe(row.prompt), style="bold")
    table = table_class(title=title, title_justify="left", expand=True, show_lines=True, padding=(0, 1))
    for name in comparison.columns:
        table.add_column(text_class(name), ratio=1, overflow="fold")
    answers = []
    for i in range(len(comparison.columns)):
        shown = text_class()
        for piece in row.pieces(i):
            shown.append(safe(piece.text), style="" if not piece.differs else "red" if i == 0 else "green")
        answers.append(shown if shown else text_class("(empty)", style="dim"))
    table.add_row(*answers)
    if any(answer.loss is not None for answer in row.answers):
        losses = ("" if a.loss is None else f"loss {a.loss:.4f}" for a in row.answers)
        table.add_row(*(text_class(s, style="bold" if i == row.best else "dim") for i, s in enumerate(losses)))
    if row.reference is not None:
        table.caption = text_class("reference: " + safe(row.reference), style="dim")
        table.caption_justify = "left"
    return table


def safe(text: str) -> str:
    """The text without what a terminal would obey."""
    return _CONTROL.sub("\ufffd", text)
