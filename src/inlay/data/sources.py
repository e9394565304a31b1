"""Rows from files, the Hub, `datasets` objects and lists, each with its number.

Numbers count from 1. In JSON lines they are line numbers, elsewhere positions. A row that cannot be read is given as a
`BadRow` in its place; a file that cannot is an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from inlay.data.schema import BadRow
from inlay.errors import ConfigError, CorruptFileError, MissingFileError, optional

Numbered = tuple[int, "Mapping[str, Any] | BadRow"]

LONGEST_LINE = 64 * 2**20
"""Bytes of a line, or of a CSV record, that are read; what is longer is no row of text to train on."""


@dataclass(frozen=True)
class Source:
    """Where rows come from: a name to show, and the rows."""

    name: str
    rows: Iterator[Numbered]


def read(source: Any, split: str = "train") -> Source:
    """The rows of a source.

    Args:
        source: a path (.json, .jsonl, .ndjson, .csv, .tsv, .parquet, or a folder that `datasets` saved), the id of a
            data set on the Hub, a `datasets` object, or an iterable of dicts.
        split: which split of several.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError: a file is not in its format, or empty.
        ConfigError: the source is none of these.
    """
    if isinstance(source, (str, os.PathLike)):
        return _named(os.fspath(source), split)
    if isinstance(source, Mapping):  # a DatasetDict, or a dict of lists
        if split not in source:
            raise ConfigError.of("split", split, f"one of {list(source)[:20]}")
        return Source(f"{type(source).__name__}[{split!r}]", _numbered(source[split]))
    if isinstance(source, Iterable):
        return Source(type(source).__name__, _numbered(source))
    raise ConfigError.of("source", source, "a path, a Hub id, a datasets object or an iterable of dicts")


def _numbered(rows: Iterable[Any]) -> Iterator[Numbered]:
    for number, row in enumerate(rows, start=1):
        yield number, _object(row)


def _object(row: Any) -> Mapping[str, Any] | BadRow:
    if isinstance(row, Mapping):
        return row if all(isinstance(name, str) for name in row) else BadRow("a column's name is no text")
    return BadRow(f"the row is {type(row).__name__}, expected an object with columns")


def _named(name: str, split: str) -> Source:
    path = Path(name)
    if path.is_dir():
        return _saved(name, split)
    reader = _READERS.get(path.suffix.lower())
    if path.is_file():
        if reader is None:
            raise ConfigError.of("source", name, f"a file that ends in one of {sorted(_READERS)}")
        return Source(name, _not_empty(name, reader(path)))
    if reader is not None or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise MissingFileError(f"There is no file '{name}' (looked in '{Path.cwd()}').")
    return _hub(name, split)


def _saved(name: str, split: str) -> Source:
    datasets = optional("datasets", "data")
    try:
        found = datasets.load_from_disk(name)
    except (OSError, ValueError) as error:
        raise MissingFileError(
            f"The folder '{name}' is not one that datasets' save_to_disk wrote ({error}). Name a file in it instead."
        ) from error
    return Source(name, read(found, split).rows)


def _hub(name: str, split: str) -> Source:
    datasets = optional("datasets", "data")
    try:
        found = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingFileError(
            f"'{name}' is no file here, and as a data set of the Hub it could not be loaded: {error}"
        ) from error
    return Source(f"{name}[{split!r}]", _numbered(found))


def _not_empty(name: str, rows: Iterator[Numbered]) -> Iterator[Numbered]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise CorruptFileError(f"'{name}' has no rows.")


# --- JSON ---


def _json(path: Path) -> Iterator[Numbered]:
    """A list of objects; or JSON lines, as many files called .json hold."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from _numbered(_list(path))
        return
    if start.startswith(b"{") and not _is_lines(path):
        raise CorruptFileError(
            f"'{path}' holds one object, not a list of rows. Write the list alone: [{{...}}, ...], or one row a line."
        )
    yield from _json_lines(path)


def _list(path: Path) -> list[Any]:
    text = _utf8(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"'{path}' is not JSON: {str(error) or 'nested too deeply'}.") from error
    return found  # type: ignore[no-any-return]  # it starts with "["


def _is_lines(path: Path) -> bool:
    """Whether a file that begins with an object has one a line: the first line is one, or all of them are not."""
    with path.open("rb") as file:
        line = next((line for line, _ in _lines(file) if line.strip()), b"")
    return not isinstance(_parsed(line.removeprefix(b"\xef\xbb\xbf")), BadRow) or not _is_one(path)


def _is_one(path: Path) -> bool:
    try:
        return isinstance(json.loads(_utf8(path)), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path: Path) -> Iterator[Numbered]:
    with path.open("rb") as file:
        for number, (line, whole) in enumerate(_lines(file), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not whole:
                yield number, BadRow(f"the line is longer than {LONGEST_LINE // 2**20} MiB")
            elif line.strip():
                yield number, _parsed(line)


def _parsed(line: bytes) -> Mapping[str, Any] | BadRow:
    try:
        return _object(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError:
        return BadRow("the line is not UTF-8")
    except (ValueError, RecursionError):
        return BadRow("the line is not JSON")


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Lines, and whether they are whole: of one that is too long the rest is passed over, never held in memory."""
    while line := file.readline(LONGEST_LINE + 1):
        whole = len(line) <= LONGEST_LINE
        if not whole:
            while not line.endswith(b"\n") and (line := file.readline(LONGEST_LINE)):
                pass
        yield (line if whole else b""), whole


def _utf8(path: Path) -> str:
    _check_utf8(path)
    return path.read_text(encoding="utf-8-sig")


def _check_utf8(path: Path) -> None:
    try:
        with path.open(encoding="utf-8-sig") as file:
            while file.read(2**20):
                pass
    except UnicodeDecodeError as error:
        raise CorruptFileError(
            f"'{path}' is not UTF-8 ({error}). Convert it: iconv -f LATIN1 -t UTF-8 '{path}' > new"
        ) from error


# --- tables ---


def _separated(delimiter: str) -> Callable[[Path], Iterator[Numbered]]:
    def rows(path: Path) -> Iterator[Numbered]:
        csv, arrow = optional("pyarrow.csv", "data"), optional("pyarrow.lib", "data")
        bad: dict[int, BadRow] = {}
        _check_utf8(path)

        def skip(row: Any) -> str:  # its number counts the header
            bad[row.number - 1] = BadRow(f"the row has {row.actual_columns} columns, the header {row.expected_columns}")
            return "skip"

        parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip)
        whole = csv.ReadOptions(block_size=LONGEST_LINE, use_threads=False)
        try:
            names = csv.open_csv(path, whole, parse).schema.names
            bad.clear()
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise CorruptFileError(f"'{path}' has more than one column of the name {twice[0]!r}.")
            text = csv.ConvertOptions(column_types=dict.fromkeys(names, arrow.string()), strings_can_be_null=False)
            batches = csv.open_csv(path, whole, parse, text)
            good = (row for batch in batches for row in batch.to_pylist())
            yield from _among(good, bad)
        except arrow.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                raise CorruptFileError(f"'{path}' has no rows.") from error
            raise CorruptFileError(f"'{path}' is not a table separated by {delimiter!r}: {error}") from error

    return rows


def _among(rows: Iterator[Mapping[str, Any]], bad: Mapping[int, BadRow]) -> Iterator[Numbered]:
    """Good rows and bad ones in the file's order. A bad one is known before a good one that follows it is read."""
    number = 0
    for row in rows:
        number += 1
        while number in bad:
            yield number, bad[number]
            number += 1
        yield number, row
    while (number := number + 1) in bad:
        yield number, bad[number]


def _parquet(path: Path) -> Iterator[Numbered]:
    parquet, arrow = optional("pyarrow.parquet", "data"), optional("pyarrow.lib", "data")
    try:
        with parquet.ParquetFile(path) as file:
            yield from enumerate((row for batch in file.iter_batches(1000) for row in batch.to_pylist()), start=1)
    except (arrow.ArrowException, OSError) as error:
        raise CorruptFileError(f"'{path}' is not a parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
