"""Rows ready to train on, and how to look at them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from inlay.data.layout import IGNORE_INDEX, Tokens
from inlay.data.report import Report
from inlay.errors import ConfigError, DataError, optional


class Shown(NamedTuple):
    """A run of tokens as text, and whether they are trained."""

    text: str
    trained: bool


@dataclass(repr=False, eq=False)
class Prepared:
    """A data set of token ids: `prepared[i]` is {"input_ids", "labels", "length"}, lists of ints and an int.

    It serves `transformers.Trainer` as it is. A token takes 5 bytes: its id, and whether it is trained.

    Attributes:
        report: what became of the source's rows. It is about all of them, also in a part (`select`).
        rows: the number in the source of every row that is here.
        keys, prompts: digests of a row's text, and of the part before its first trained token (None if there is none).
    """

    report: Report
    rows: array[int] = field(default_factory=lambda: array("q"))
    keys: list[bytes] = field(default_factory=list)
    prompts: list[bytes | None] = field(default_factory=list)
    _ids: array[int] = field(default_factory=lambda: array("i"))
    _trained: bytearray = field(default_factory=bytearray)
    _starts: array[int] = field(default_factory=lambda: array("q", [0]))

    def append(self, number: int, row: Tokens, key: bytes, prompt: bytes | None) -> None:
        """Adds the row that has this number in the source."""
        self._ids.extend(row.ids)
        self._trained.extend(row.trained)
        self._starts.append(len(self._ids))
        self.rows.append(number)
        self.keys.append(key)
        self.prompts.append(prompt)

    def __repr__(self) -> str:
        return f"Prepared({len(self)} rows, {len(self._ids)} tokens)"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        ids, trained = self.tokens(i)
        labels = [t if on else IGNORE_INDEX for t, on in zip(ids, trained, strict=True)]
        return {"input_ids": ids, "labels": labels, "length": len(ids)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def tokens(self, i: int) -> tuple[list[int], bytes]:
        """The ids of row i, and for each of them 1 if it is trained, else 0."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        start, end = self._starts[i % len(self)], self._starts[i % len(self) + 1]
        return self._ids[start:end].tolist(), bytes(self._trained[start:end])

    @property
    def lengths(self) -> list[int]:
        """The length of every row."""
        return [b - a for a, b in pairwise(self._starts)]

    def trained_counts(self) -> list[int]:
        """The number of trained tokens of every row."""
        return [sum(self._trained[a:b]) for a, b in pairwise(self._starts)]

    def select(self, indices: Iterable[int]) -> Prepared:
        """Some of the rows, in the order given."""
        part = Prepared(self.report)
        for i in indices:
            ids, trained = self.tokens(i)
            row = Tokens(ids, list(map(bool, trained)), False, None)
            part.append(self.rows[i], row, self.keys[i], self.prompts[i])
        return part

    def split(self, held_out: float | int, seed: int = 0) -> tuple[Prepared, Prepared]:
        """Rows to train on and rows to evaluate on: a share of them below 1, or a number. Order is kept in both."""
        count = round(held_out * len(self)) if isinstance(held_out, float) else held_out
        if not 0 < count < len(self):
            raise ConfigError.of("held_out", held_out, f"a share between 0 and 1, or 1 to {len(self) - 1} rows")
        chosen = set(random.Random(seed).sample(range(len(self)), count))
        rest = (i for i in range(len(self)) if i not in chosen)
        return self.select(rest), self.select(sorted(chosen))

    def check_vocabulary(self, size: int) -> None:
        """Raises DataError, naming the row, if an id is not below `size`, the number of rows of the embedding."""
        if self._ids and (most := max(self._ids)) >= size:
            at = next(i for i in range(len(self)) if most in self.tokens(i)[0])
            raise DataError(
                f"Row {self.rows[at]} holds token id {most}, but the model has {size} embeddings. It is another "
                f"tokenizer's model, or tokens were added: model.resize_token_embeddings({most + 1})."
            )

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` with the columns input_ids, labels and length."""
        columns = ("input_ids", "labels", "length")
        return optional("datasets", "data").Dataset.from_dict({c: [row[c] for row in self] for c in columns})


def preview(prepared: Prepared, tokenizer: Any, n: int = 3) -> list[list[Shown]]:
    """The first `n` rows as the model sees them, special tokens included, in runs that are trained or not."""
    shown = []
    for i in range(min(n, len(prepared))):
        ids, trained = prepared.tokens(i)
        ends = [end for end in range(1, len(ids) + 1) if end == len(ids) or trained[end] != trained[end - 1]]
        runs, start, before = [], 0, ""
        for end in ends:  # a run's text is what it adds: decoded alone it might lose a space at its start
            text = decoded(tokenizer, ids[:end])
            added = text[len(before) :] if text.startswith(before) else decoded(tokenizer, ids[start:end])
            runs.append(Shown(added, bool(trained[start])))
            start, before = end, text
        shown.append(runs)
    return shown


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, nothing left out or tidied."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class Overlap(NamedTuple):
    """Rows of two data sets that are the same, as (number in the first, number in the second)."""

    rows: list[tuple[int, int]]
    prompts: list[tuple[int, int]]


def overlap(train: Prepared, held_out: Prepared) -> Overlap:
    """What both have: whole rows, and prompts (of rows that are not the same as a whole)."""
    rows = dict(zip(reversed(train.keys), reversed(train.rows), strict=True))
    prompts = dict(zip(reversed(train.prompts), reversed(train.rows), strict=True))
    prompts.pop(None, None)
    same = [(rows[key], n) for key, n in zip(held_out.keys, held_out.rows, strict=True) if key in rows]
    asked = zip(held_out.prompts, held_out.keys, held_out.rows, strict=True)
    return Overlap(same, [(prompts[p], n) for p, key, n in asked if p in prompts and key not in rows])
