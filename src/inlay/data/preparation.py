"""From a source of rows to a data set of token ids, in one pass, a thousand rows at a time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from inlay.data.chat import Chat
from inlay.data.layout import Causal, Layout, Tokens
from inlay.data.prepared import Prepared
from inlay.data.report import Lengths, Report, listed
from inlay.data.schema import BadRow, Format, Part, Row, choose
from inlay.data.sources import Numbered, read
from inlay.data.tokenize import Encoder, Segment, join, trained_on
from inlay.errors import ConfigError, DataError

_BATCH, _LENGTH = 1000, 2048


def prepare(
    source: Any,
    tokenizer: Any,
    format: str | Format = "auto",
    *,
    max_length: int | None = None,
    too_long: str = "cut",
    loss_on: str = "answers",
    columns: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    split: str = "train",
    layout: Layout | None = None,
) -> Prepared:
    """Reads rows, writes them as their format says, tokenises them, and masks what is not trained.

    Args:
        source: a path, a Hub id, a `datasets` object or an iterable of dicts (`inlay.data.sources`).
        tokenizer: of transformers, or like it.
        format: the name of a format, a `Format`, or "auto": the columns decide.
        max_length: of a row in tokens; None for 2048, or `tokenizer.model_max_length` if that is less.
        too_long: "cut" a longer row on its right, or "drop" it.
        loss_on: "answers", the "last" one of each row, or "all" text.
        columns: name in the format -> name in the data, where they differ.
        chat_template: for conversations, in place of the tokenizer's; "plain" for one of ours.
        split: which split, where the source has several.
        layout: how segments become a row; by default the tokenizer's head, the parts, the end token.

    Raises:
        DataError: the format is unclear, the chat template cannot be followed, or no row is left (the message has the
            reasons with the rows' numbers).
        MissingFileError, CorruptFileError, ConfigError: see `inlay.data.sources`.
    """
    if too_long not in ("cut", "drop"):
        raise ConfigError.of("too_long", too_long, "'cut' or 'drop'")
    if max_length is None:
        max_length = min(_LENGTH, getattr(tokenizer, "model_max_length", None) or _LENGTH)
    if not isinstance(max_length, int) or max_length < 1:
        raise ConfigError.of("max_length", max_length, "a positive integer")
    trained_on([], loss_on)
    found = read(source, split)
    encoder, chat = Encoder(tokenizer), Chat(tokenizer, chat_template)
    layout = layout or Causal(encoder.head, encoder.end, max_length, _special_ids(tokenizer))

    rows = renamed(found.rows, columns or {})
    start, seen = _start(rows, found.name)
    chosen = choose(format, seen)
    report = Report(found.name, chosen.name, format == "auto", getattr(layout, "max_length", None), columns=seen)
    report.generation_end = getattr(tokenizer, "eos_token", None) if isinstance(layout, Causal) else None
    prepared, digest, ends = Prepared(report), hashlib.sha256(), Counter[int]()
    for batch in _batches(chain(start, rows)):
        report.rows += len(batch)
        texts = _parts(batch, chosen, chat, frozenset(seen), loss_on, report, digest)
        for (number, parts), segments in zip(texts, encoder.rows([p for _, p in texts]), strict=True):
            try:
                tokens = _sequence(segments, layout, chosen.complete, too_long, report)
            except BadRow as error:
                _note(report.dropped, error, number)
                continue
            prepared.append(number, tokens, *_digests(parts))
            report.trained_tokens += sum(tokens.trained)
            report.truncated += [number] * tokens.cut
            ends.update([] if tokens.end is None else [tokens.end])

    report.sha256, report.kept = digest.hexdigest(), len(prepared)
    if not prepared:
        raise DataError("\n".join([f"No row of {found.name} is left to train on.", *listed("dropped", report.dropped)]))
    report.end_tokens = {str(tokenizer.convert_ids_to_tokens(end)): count for end, count in ends.most_common()}
    report.lengths, report.tokens = Lengths.of(prepared.lengths), sum(prepared.lengths)
    report.duplicates = _duplicates(prepared)
    return prepared


def _start(rows: Iterator[Numbered], name: str) -> tuple[list[Numbered], list[str]]:
    """Rows up to the first batch with one that can be read, and its columns. Raises DataError if there is none."""
    start: list[Numbered] = []
    for batch in _batches(rows):
        start += batch
        readable = (row for _, row in batch if not isinstance(row, BadRow))
        if seen := list(dict.fromkeys(chain.from_iterable(readable))):
            return start, seen
    bad: dict[str, list[int]] = {}
    for number, row in start:
        _note(bad, row if isinstance(row, BadRow) else "the row has no columns", number)
    raise DataError("\n".join([f"{name} has no rows that can be read.", *listed("bad", bad)]))


def _sequence(
    segments: list[Segment] | BadRow, layout: Layout, complete: bool, too_long: str, report: Report
) -> Tokens:
    """The row in its layout. Raises BadRow if it cannot be trained on."""
    if isinstance(segments, BadRow):
        raise segments
    tokens = layout(segments, complete)
    if tokens.cut and too_long == "drop":
        raise BadRow(f"longer than {report.limit}")
    if not any(tokens.trained):
        raise BadRow(f"no trained token within {report.limit}" if tokens.cut else "no trained token")
    return tokens


def _duplicates(prepared: Prepared) -> list[tuple[int, int]]:
    """(row, the first row with the same text), for rows that repeat one."""
    first: dict[bytes, int] = {}
    pairs = ((n, first.setdefault(key, n)) for n, key in zip(prepared.rows, prepared.keys, strict=True))
    return [(n, earlier) for n, earlier in pairs if n != earlier]


def _batches(rows: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


def renamed(rows: Iterable[Numbered], columns: Mapping[str, str]) -> Iterator[Numbered]:
    """The rows with the format's names for their columns; `columns` is name in the format -> name in the data."""
    back = {theirs: ours for ours, theirs in columns.items()}
    for number, row in rows:
        if back and not isinstance(row, BadRow):
            kept = {name: value for name, value in row.items() if name not in columns or name in back}
            row = {back.get(name, name): value for name, value in kept.items()}
        yield number, row


def _parts(
    batch: list[Numbered],
    format: Format,
    chat: Chat,
    columns: frozenset[str],
    loss_on: str,
    report: Report,
    digest: Any,
) -> list[tuple[int, list[Part]]]:
    """The parts of the rows that have any; the others are noted in the report."""
    found = []
    for number, values in batch:
        try:
            if isinstance(values, BadRow):
                raise values
            digest.update(json.dumps(values, sort_keys=True, default=str).encode() + b"\n")
            row = Row(values, columns)
            parts = trained_on(format.parts(row, chat), loss_on)
        except BadRow as error:
            if isinstance(values, BadRow):
                digest.update(b"bad\n")
            _note(report.dropped, error, number)
            continue
        if not format.complete and not any(part.text for part in parts if part.trained):
            row.notes.append("the answer is empty: only the end token is trained")
        if not format.complete and any(chat.holds_special(part.text) for part in parts):
            row.notes.append("the text holds a special token, which is read as one")
        for note in row.notes:
            _note(report.notes, note, number)
        found.append((number, join(parts)))
    return found


def _note(into: dict[str, list[int]], reason: object, number: int) -> None:
    into.setdefault(str(reason), []).append(number)


def _digests(parts: list[Part]) -> tuple[bytes, bytes | None]:
    """Of all the text, and of what stands before the first trained part."""
    whole, prompt = hashlib.blake2b(digest_size=16), None
    for part in parts:
        if part.trained and prompt is None:
            prompt = whole.digest()
        whole.update(f"{part.trained:d}{len(part.text)}:".encode() + part.text.encode())
    return whole.digest(), prompt if parts and not parts[0].trained else None


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
