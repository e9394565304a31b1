"""SOURCEs compared, and evaluated, over one base. `Run.compare` and `Run.evaluate` are these, of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inlay.comparison.answers import Decoding
from inlay.comparison.columns import BASE, Column, Speaker, side_by_side
from inlay.comparison.questions import Question, questions_of
from inlay.comparison.result import Comparison
from inlay.data import Prepared
from inlay.data.report import listed
from inlay.evaluation.scores import Evaluation, check_metrics, evaluate
from inlay.evaluation.table import Evaluations
from inlay.runs.asked import asked_of, rows_of
from inlay.runs.opened import find_source
from inlay.runs.said import Say, to_stderr
from inlay.runs.sides import Side, sides_of


def compare_sources(
    source: str | Path,
    prompts: Any = None,
    with_: Sequence[str | Path] = (BASE,),
    references: Sequence[str | None] | None = None,
    *,
    format: str | None = None,
    limit: int | None = None,
    decoding: Decoding | None = None,
    batch_size: int = 1,
    device: Any = None,
    say: Say | None = None,
) -> Comparison:
    """Asks a SOURCE, and others beside it, the same prompts; adapters on one base that is loaded once.

    Each is asked in the format, with the tokenizer and the chat template that it was trained with; the base as the
    source is.

    Args:
        source: a run, an adapter or a model (`inlay.runs.opened`).
        prompts: texts, conversations, rows (dicts) in any format of `inlay.data`, a `Prepared`, or a file: .txt with a
            text a line, or of rows. Rows bring their references. None: the run's watch prompts, or else 8 of the rows
            that it held out.
        with_: other SOURCEs, and "base", which becomes the first column.
        references: wanted answers to texts, one a prompt; None where there is none.
        format: how texts are put, or rows are read, in place of the format of training, or the one the columns show.
        limit: only the first so many prompts.
        decoding, batch_size: as in `inlay.compare`.
        device: where to; None for a GPU if there is one.
        say: is told what happens, a line each; by default stderr is.

    Raises:
        MissingFileError, StateError, CorruptFileError: see `inlay.runs.opened.open_source`.
        BaseMismatchError: one of them is an adapter of another base.
        ConfigError, DataError: nothing to ask, or as `inlay.compare`.
    """
    say, decoding = say or to_stderr, decoding or Decoding()
    asked = asked_of(find_source(source), prompts, format, limit)
    sides = sides_of(source, with_, device)
    parts = asked.by([side.tokenizer for side in sides])
    puts = [_put(part, side, format) for part, side in zip(parts, sides, strict=True)]
    questions = [
        _with_answers(questions_of(part, side.tokenizer, references, put))
        for part, side, put in zip(parts, sides, puts, strict=True)
    ]
    say(f"Asking {len(questions[0])} of {asked.origin}." if limit else f"Asking {asked.origin}: {len(questions[0])}.")
    _note_dropped(prompts, parts[0], say)
    _note_formats(puts, sides, say)
    _check(sides)
    columns = {
        side.name: Column(_announced(side, say), asking, side.tokenizer)
        for side, asking in zip(sides, questions, strict=True)
    }
    return side_by_side(columns, decoding, batch_size, {"format": ", ".join(dict.fromkeys(puts)), "from": asked.origin})


def evaluate_sources(
    source: str | Path,
    data: Any = None,
    metrics: Sequence[str] = (),
    with_: Sequence[str | Path] = (),
    *,
    format: str | None = None,
    limit: int | None = None,
    decoding: Decoding | None = None,
    batch_size: int = 8,
    device: Any = None,
    say: Say | None = None,
) -> Evaluations:
    """Loss, perplexity and metrics of a SOURCE, and of others beside it; adapters on one base that is loaded once.

    Args:
        data: a file of rows, an id on the Hub, dicts, or a `Prepared`. None: the rows that the run held out.
        metrics: names of metrics on texts, as in `inlay.evaluate`.
        source, with_, format, limit, device, say, Raises: as in `compare_sources`.
        decoding, batch_size: as in `inlay.evaluate`.
    """
    say = say or to_stderr
    check_metrics(metrics)
    asked = rows_of(find_source(source), data, format, limit)
    sides = sides_of(source, with_, device)
    parts: list[Any] = asked.by([side.tokenizer for side in sides])
    say(f"Evaluating on {asked.origin}: {len(parts[0])} rows.")
    _note_dropped(data, parts[0], say)
    _note_formats([part.report.format for part in parts], sides, say)
    _check(sides)
    found: dict[str, Evaluation] = {}
    for side, part in zip(sides, parts, strict=True):
        with _announced(side, say)() as model:
            found[side.name] = evaluate(model, part, side.tokenizer, metrics, decoding=decoding, batch_size=batch_size)
    return Evaluations(found, asked.origin)


def _with_answers(questions: list[Question]) -> list[Question]:
    """The questions, an empty answer being none."""
    return [q if q.reference else q._replace(reference=None, row=None) for q in questions]


def _check(sides: Sequence[Side]) -> None:
    """Finds an adapter of another base before the first model has worked for an hour."""
    for side in sides:
        side.check()


def _put(part: Any, side: Side, format: str | None) -> str:
    """The format in which a side is asked: that of the rows, the one given, or that of its training."""
    return str(part.report.format) if isinstance(part, Prepared) else format or side.format


def _note_dropped(given: Any, part: Any, say: Say) -> None:
    """Rows that cannot be used; of those that a run held out, training said it."""
    if given is not None and isinstance(part, Prepared):
        for line in listed("left out", part.report.dropped):
            say(f"NOTE: {line}")


def _note_formats(puts: Sequence[str], sides: Sequence[Side], say: Say) -> None:
    for side, put in zip(sides, puts, strict=True):
        if side.trained and side.format != put:
            say(f"NOTE: '{side.name}' is asked as {put!r}, but was trained on {side.format!r}.")


def _announced(side: Side, say: Say) -> Speaker:
    @contextmanager
    def speaker() -> Iterator[Any]:
        with side.speaker() as model:
            say(f"  {side.name} ...")
            yield model

    return speaker
