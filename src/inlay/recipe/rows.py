"""The rows of a recipe, and other rows read as the recipe reads its own."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from inlay.data import Prepared, pack, prepare
from inlay.errors import ConfigError, DataError
from inlay.recipe.recipe import Recipe


def load_rows(recipe: Recipe, tokenizer: Any) -> tuple[Prepared, Prepared | None]:
    """Rows to train on, and those held out to evaluate on: the same at every call, by `train.seed`.

    Raises DataError if so many cannot be held out, or as `inlay.data.prepare`.
    """
    data = recipe.data
    rows = prepare_as(recipe, data.train, tokenizer, data.format)
    if data.eval is None:
        return rows, None
    if isinstance(data.eval, str):
        return rows, prepare_as(recipe, data.eval, tokenizer, rows.report.format)
    try:
        return rows.split(data.eval, seed=recipe.train.seed)
    except ConfigError as error:
        raise DataError(f"data.eval={data.eval!r} cannot be held out of {len(rows)} rows: {error}") from error


def prepare_as(recipe: Recipe, source: Any, tokenizer: Any, format: str = "auto") -> Prepared:
    """A source of rows, read with the recipe's columns, lengths and chat template."""
    data = recipe.data
    return prepare(
        source,
        tokenizer,
        format,
        max_length=data.max_length,
        too_long=data.too_long,
        loss_on=data.loss_on,
        columns=data.columns,
        chat_template=data.chat_template,
    )


def items(recipe: Recipe, rows: Prepared) -> Any:
    """What batches are made of: rows, or packs of rows."""
    return pack(rows, recipe.data.max_length) if recipe.data.packing else rows


def steps_of(recipe: Recipe, count: int, arguments: Any) -> int:
    """The number of optimizer steps, for so many items."""
    how = recipe.train
    batches = math.ceil(count / (arguments.train_batch_size * arguments.world_size))
    return how.max_steps or math.ceil(how.epochs * math.ceil(batches / recipe.passes))


def described(part: Any) -> dict[str, Any]:
    """What is recorded of rows, as `environment.json` has it.

    `read` and `dropped` are of the whole source, also where only a part of it was taken; all else is of the part.
    """
    from inlay.data.report import Lengths

    report, own = part.report, set(part.rows)
    return {
        "source": report.source,
        "sha256": report.sha256,
        "rows": len(part),
        "format": report.format,
        "read": report.rows,
        "dropped": {reason: len(rows) for reason, rows in report.dropped.items()},
        "truncated": sum(row in own for row in report.truncated),
        "lengths": asdict(Lengths.of(part.lengths)) if len(part) else None,
        "tokens": sum(part.lengths),
        "trained_tokens": sum(part.trained_counts()),
    }
