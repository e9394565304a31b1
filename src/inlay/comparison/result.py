"""`Comparison`: what was asked and what each model said. `text` and `page` show it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inlay.comparison.difference import Piece, difference


@dataclass(frozen=True)
class Answer:
    """One model's answer, and its mean loss per token on the row's reference (None if there is none)."""

    text: str
    loss: float | None = None


@dataclass(frozen=True)
class Row:
    """One prompt and the answers to it, one a column."""

    prompt: str
    answers: tuple[Answer, ...]
    reference: str | None = None

    def pieces(self, column: int) -> list[Piece]:
        """An answer in pieces: what differs from the first column's; of the first, what no other column has."""
        texts = [answer.text for answer in self.answers]
        return difference(texts[column], texts[1:] if column == 0 else texts[:1])

    @property
    def best(self) -> int | None:
        """The column with the lowest loss, if it is one alone."""
        known = [(a.loss, i) for i, a in enumerate(self.answers) if a.loss is not None]
        lowest = [i for loss, i in known if loss == min(known)[0]]
        return lowest[0] if len(known) > 1 and len(lowest) == 1 else None


@dataclass(frozen=True)
class Comparison:
    """Models side by side on the same prompts and seeds.

    Attributes:
        columns: the models' names; the base comes first.
        rows: one for each prompt.
        settings: how answers were written.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def losses(self) -> dict[str, float | None]:
        """Column -> the mean of its rows' losses; None where no row has a reference."""
        return {name: _mean([row.answers[i].loss for row in self.rows]) for i, name in enumerate(self.columns)}

    @property
    def wins(self) -> dict[str, int]:
        """Column -> in how many rows its loss is the lowest; none where no row has a reference."""
        best = [row.best for row in self.rows]
        known = any(answer.loss is not None for row in self.rows for answer in row.answers)
        return {name: best.count(i) for i, name in enumerate(self.columns)} if known else {}

    def to_dict(self) -> dict[str, Any]:
        """For files."""
        return {**asdict(self), "losses": self.losses, "wins": self.wins}

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = 100, color: bool = False) -> str:
        """For terminals."""
        from inlay.comparison.text import rendered

        return rendered(self, width, color)

    def html(self) -> str:
        """One self-contained page."""
        from inlay.comparison.page import page

        return page(self)

    def _repr_html_(self) -> str:
        from inlay.comparison.page import fragment

        return fragment(self)

    def save(self, path: str | Path) -> None:
        """Writes a page (.html), data (.json), or text (any other name)."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        as_data = json.dumps(self.to_dict(), ensure_ascii=False, indent=1) if path.suffix == ".json" else None
        shown = self.html() if path.suffix in (".html", ".htm") else self.text()
        path.write_text(as_data or shown, encoding="utf-8")


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
