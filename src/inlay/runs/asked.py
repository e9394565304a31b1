"""What models are asked: texts, or rows with the answers that are wanted, read anew for each tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.comparison.questions import Prompt
from inlay.data import Prepared, prepare
from inlay.errors import ConfigError, DataError, MissingFileError, StateError
from inlay.recipe.rows import load_rows, prepare_as
from inlay.runs.opened import Source
from inlay.runs.run import Run

HELD_OUT = 8
"""How many held-out rows are asked where nothing is said."""


@dataclass(frozen=True)
class Asked:
    """Texts, or rows.

    Attributes:
        origin: where they come from, for people.
        read: tokenizer -> texts and conversations, or rows.
        limit: the first so many of them; None for all.
    """

    origin: str
    read: Callable[[Any], Sequence[Prompt] | Prepared]
    limit: int | None = None

    def by(self, tokenizers: Sequence[Any]) -> list[Sequence[Prompt] | Prepared]:
        """The same for every tokenizer. Raises DataError if one of them makes other rows too long to be kept."""
        found = [self._limited(self.read(tokenizer)) for tokenizer in tokenizers]
        kept = [tuple(part.rows) for part in found if isinstance(part, Prepared)]
        if len(set(kept)) > 1:
            raise DataError(f"Of {self.origin} not the same rows can be used with each of the tokenizers.")
        return found

    def _limited(self, part: Sequence[Prompt] | Prepared) -> Sequence[Prompt] | Prepared:
        if self.limit is None:
            return part
        if isinstance(part, Prepared):
            return part.select(range(min(self.limit, len(part))))
        return part[: self.limit]


def asked_of(source: Source, given: Any = None, format: str | None = None, limit: int | None = None) -> Asked:
    """Prompts to compare on.

    Args:
        source: whose watch prompts, or else held-out rows, are taken if nothing is given.
        given: a file of texts (.txt, one a line) or of rows; or texts, conversations, rows (dicts), a `Prepared`.
        format: of rows; None to find it by the columns.
        limit: the first so many; by default all, of held-out rows 8.
    """
    if limit is not None and limit < 1:
        raise ConfigError.of("limit", limit, "a positive integer")
    if given is None and source.run is not None and (texts := source.run.recipe.watch.prompts):
        return Asked(f"the watch prompts of '{source.name}'", lambda tokenizer: texts, limit)
    if given is None:
        return rows_of(source, None, None, limit or HELD_OUT)
    if isinstance(given, (str, Path)) and Path(given).suffix.lower() == ".txt":
        lines = _lines(Path(given))
        return Asked(str(given), lambda tokenizer: lines, limit)
    if isinstance(given, (str, Path, Prepared)) or _is_rows(given):
        return rows_of(source, given, format, limit)
    return Asked("the prompts given", lambda tokenizer: given, limit)


def rows_of(source: Source, given: Any = None, format: str | None = None, limit: int | None = None) -> Asked:
    """Rows to evaluate on.

    Args:
        source: whose held-out rows are taken if nothing is given; other rows are read as its recipe reads its own.
        given: a file, an id on the Hub, dicts, or a `Prepared`.
    """
    run = source.run
    if given is None:
        if run is None or run.recipe.data.eval is None:
            raise ConfigError(f"'{source.text}' has no rows held out (data.eval), so say what to ask: a file of rows.")
        return Asked(f"the held-out rows of '{source.name}'", lambda tokenizer: held_out(run, tokenizer), limit)
    if isinstance(given, Prepared):
        return Asked(given.report.source, lambda tokenizer: given, limit)

    def read(tokenizer: Any) -> Prepared:
        if run is not None:
            return prepare_as(run.recipe, given, tokenizer, format or "auto")
        return prepare(given, tokenizer, format or "auto")

    return Asked(str(given) if isinstance(given, (str, Path)) else "the rows given", read, limit)


def held_out(run: Run, tokenizer: Any) -> Prepared:
    """The rows that a run was evaluated on, and not trained on.

    Raises StateError if the data are not those of the run: then it cannot be told which rows these were.
    """
    rows, kept = load_rows(run.recipe, tokenizer)
    assert kept is not None
    known = run.environment["data"]
    for part, now in (("train", rows), ("eval", kept)):
        if known[part]["sha256"] != now.report.sha256:
            raise StateError(
                f"The rows of data.{part}, '{now.report.source}', are not those that '{run.folder}' was made with, so "
                "it cannot be told which were held out. Restore them, or give a file of rows."
            )
    return kept


def _is_rows(given: Any) -> bool:
    return isinstance(given, Sequence) and len(given) > 0 and all(isinstance(row, Mapping) for row in given)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingFileError(f"There is no file '{path}' (looked in '{Path.cwd()}').")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8: {error}.") from error
    if not any(lines):
        raise DataError(f"'{path}' has no prompts: expected one a line.")
    return [line for line in lines if line]
