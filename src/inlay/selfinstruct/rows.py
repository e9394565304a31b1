"""The rows of a run as one JSON list."""

from __future__ import annotations

import json
import os
from pathlib import Path

from inlay.errors import CorruptFileError, MissingFileError


def to_json(rows: str | os.PathLike[str], output: str | os.PathLike[str]) -> int:
    """Write the JSONL file `rows` as one JSON list, the form of Alpaca's regen.json; returns the number of rows.

    `output` is replaced in one step. Raises MissingFileError if there is no such file, CorruptFileError for a line that
    is no JSON.
    """
    path = Path(rows)
    if not path.is_file():
        raise MissingFileError(f"No rows at {path}.")
    objects = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            objects.append(json.loads(line))
        except ValueError as error:
            raise CorruptFileError(f"{path}, line {number}, is not JSON: {error}.") from None
    target = Path(output)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(objects, ensure_ascii=False, indent=4) + "\n", encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return len(objects)
