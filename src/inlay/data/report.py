"""What became of the rows: counts, lengths, what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Lengths:
    """Lengths of sequences in tokens."""

    shortest: int
    mean: float
    median: int
    p95: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """Of at least one length."""
        s = sorted(lengths)
        return cls(s[0], sum(s) / len(s), s[(len(s) - 1) // 2], s[(len(s) - 1) * 95 // 100], s[-1])


@dataclass
class Report:
    """What `prepare` did. `str()` is text for people, `to_dict()` for files.

    Attributes:
        source, format: where rows came from and how they were read; `detected` if the format was found by the columns.
        columns: the columns seen.
        rows: how many were read; `kept`: how many are in the data set.
        dropped: reason -> numbers of the rows left out for it.
        notes: remark -> numbers of the rows it is about. These rows are kept.
        truncated: numbers of the rows that were cut; `max_length` is None if a layout has lengths of its own.
        lengths: of the kept rows, after cutting. None if none is kept.
        tokens, trained_tokens: of the kept rows.
        end_tokens: end token -> how many rows are trained to write it last.
        generation_end: the token at which the tokenizer says generation stops.
        duplicates: (row, earlier row with the same text).
        sha256: over all rows that were read, bad ones too.
    """

    source: str
    format: str
    detected: bool
    max_length: int | None
    columns: list[str] = field(default_factory=list)
    rows: int = 0
    kept: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    notes: dict[str, list[int]] = field(default_factory=dict)
    truncated: list[int] = field(default_factory=list)
    lengths: Lengths | None = None
    tokens: int = 0
    trained_tokens: int = 0
    end_tokens: dict[str, int] = field(default_factory=dict)
    generation_end: str | None = None
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def trained_share(self) -> float:
        """Trained tokens among all tokens."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def limit(self) -> str:
        """Where rows were cut."""
        return "the lengths of the layout" if self.max_length is None else f"max_length={self.max_length}"

    @property
    def no_end(self) -> str | None:
        """What is wrong if rows are whole and none is trained to write an end token; else None."""
        if not self.kept or self.end_tokens or self.kept == len(self.truncated):
            return None
        return (
            "No row is trained to write an end token, so the model will not learn to stop. "
            "For conversations, the chat template must end an assistant's turn with a special token."
        )

    @property
    def other_ends(self) -> list[str]:
        """The end tokens that are not the one at which the tokenizer says generation stops."""
        return [t for t in self.end_tokens if self.generation_end is not None and t != self.generation_end]

    @property
    def row_warnings(self) -> list[str]:
        """What should be looked at in the rows."""
        out = []
        if self.truncated and len(self.truncated) * 20 > self.rows:
            out.append(
                f"{len(self.truncated)} of {self.rows} rows are cut at {self.limit}: the ends of their answers are not "
                "trained. Allow more, or drop them with too_long='drop'."
            )
        if self.duplicates and len(self.duplicates) * 20 > self.rows:
            out.append(f"{len(self.duplicates)} of {self.rows} rows repeat an earlier one.")
        return out

    @property
    def warnings(self) -> list[str]:
        """What should be looked at before training."""
        ends = [self.no_end] if self.no_end else []
        if self.other_ends:
            ends.append(
                f"Answers end with {' or '.join(map(repr, self.other_ends))}, but the tokenizer's end token is "
                f"{self.generation_end!r}: generation stops there only if generation_config.eos_token_id says so."
            )
        return ends + self.row_warnings

    def __str__(self) -> str:
        found = "found by the columns" if self.detected else "given"
        lines = [f"{self.source}: format {self.format} ({found}), columns {', '.join(self.columns)}"]
        lines.append(f"rows       {self.kept:,} kept of {self.rows:,}")
        lines += listed("dropped", self.dropped)
        lines += listed("note", self.notes)
        if self.lengths is not None:
            n = self.lengths
            lines.append(
                f"tokens     {self.tokens:,}, of which {self.trained_tokens:,} ({self.trained_share:.0%}) are trained"
            )
            lines.append(
                f"length     {n.shortest} to {n.longest}, mean {n.mean:.0f}, median {n.median}, 95% up to {n.p95}"
            )
            cut = f": {numbers(self.truncated)}" if self.truncated else ""
            lines.append(f"truncated  {len(self.truncated):,} at {self.limit}{cut}")
            ends = ", ".join(f"{token!r} in {count:,} rows" for token, count in self.end_tokens.items())
            lines.append(f"end token  trained: {ends}" if ends else "end token  not trained in any row")
        if self.duplicates:
            lines.append(f"duplicates {len(self.duplicates):,}: " + numbers([row for row, _ in self.duplicates]))
        lines.append(f"sha256     {self.sha256}")
        return "\n".join([*lines, *(f"WARNING: {warning}" for warning in self.warnings)])


def listed(title: str, reasons: Mapping[str, Sequence[int]]) -> list[str]:
    """`dropped    3: output is missing (rows 1, 2, 9)`, a line each."""
    return [f"{title:<10} {len(rows):,}: {reason} (rows {numbers(rows)})" for reason, rows in reasons.items()]


def numbers(rows: Sequence[int], most: int = 8) -> str:
    """`1, 2, 3, ...`"""
    return ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")
