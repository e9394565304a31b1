"""Evaluations of several models on the same rows, as a table."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, optional
from inlay.evaluation.scores import Evaluation


@dataclass(frozen=True)
class Evaluations:
    """Models on the same rows.

    Attributes:
        columns: the models' names, and how good each is.
        origin: where the rows come from.
    """

    columns: dict[str, Evaluation]
    origin: str = ""

    def __getitem__(self, name: str) -> Evaluation:
        return self.columns[name]

    def __str__(self) -> str:
        return self.text()

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for files."""
        return {"from": self.origin, "columns": {name: found.to_dict() for name, found in self.columns.items()}}

    def text(self, width: int = 100, color: bool = False) -> str:
        """A line for each number; of two models also the change from the first to the second."""
        console = optional("rich.console", "cli").Console(
            file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False
        )
        plain, table_module = optional("rich.text", "cli").Text, optional("rich.table", "cli")
        first = next(iter(self.columns.values()))
        table = table_module.Table(box=optional("rich.box", "cli").SIMPLE_HEAD, pad_edge=False)
        table.add_column(plain(f"{first.rows} rows"))
        for name in (*self.columns, *(["change"] if len(self.columns) == 2 else [])):
            table.add_column(plain(name), justify="right")
        for name in first.numbers:
            values = [found.numbers[name] for found in self.columns.values()]
            change = [f"{round(values[1] - values[0], 4) + 0.0:+.4f}"] if len(values) == 2 else []
            table.add_row(plain(name), *(f"{value:.4f}" for value in values), *change)
        console.print(table)
        if len({found.tokens for found in self.columns.values()}) > 1:
            console.print("Their tokenizers cut the rows differently, so loss and perplexity cannot be compared.")
        return str(console.file.getvalue()).lstrip("\n")

    def save_predictions(self, path: str | Path) -> None:
        """Writes JSON lines {"prompt", "reference", "answers": {name: text}}. Raises ConfigError if there are none."""
        columns = {name: found.predictions for name, found in self.columns.items()}
        if not all(columns.values()):
            raise ConfigError("Texts are written only for metrics on them: name one, e.g. exact.")
        lines = []
        for each in zip(*columns.values(), strict=True):
            answers = dict(zip(columns, (p.prediction for p in each), strict=True))
            line = {"prompt": each[0].prompt, "reference": each[0].reference, "answers": answers}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
