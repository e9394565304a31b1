"""JSON that means one thing only.

Python's `json` accepts duplicate keys (the last one wins), `NaN` and `Infinity`, and fails on deep nesting with a
`RecursionError`. A config read that way may not be the config that was written, so all of it is an error here, in one
of two kinds: `CorruptFileError` when the bytes are not JSON (damaged, another encoding, cut off), `ConfigError` when
they are JSON that no config may hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from inlay.errors import ConfigError, CorruptFileError, FileError, MissingFileError
from inlay.io.disk import DISK, Disk, read_bytes

MAX_BYTES = 16 << 20
MAX_DEPTH = 100
MAX_DIGITS = 64


def read_json(path: Path | str, max_bytes: int = MAX_BYTES, disk: Disk = DISK) -> dict[str, Any]:
    """The object that a JSON file holds, read as `parse_json` does.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError, ConfigError: see `parse_json`.
        FileError: the file cannot be read (rights, a failing disk, not a regular file).
    """
    try:
        data = read_bytes(Path(path), max_bytes, disk)
    except FileNotFoundError as error:
        raise MissingFileError(f"'{path}' does not exist.") from error
    except OSError as error:
        raise FileError(f"'{path}' cannot be read: {error.strerror}.") from error
    return parse_json(data, str(path), max_bytes)


def parse_json(data: bytes, source: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in `data`: UTF-8 with or without a byte-order mark. `source` names it in errors.

    Raises:
        CorruptFileError: more than `max_bytes`, empty, not UTF-8, or not JSON; with line and column.
        ConfigError: not an object, a key given twice, a number that is not finite or has more than
            64 digits, or nesting deeper than 100.
    """
    if len(data) > max_bytes:
        raise CorruptFileError(f"'{source}' is larger than {max_bytes} bytes: this is not the JSON of an adapter.")
    if not data.strip():
        raise CorruptFileError(f"'{source}' is empty: its save was cut off. Save or fetch it again.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptFileError(
            f"'{source}' is not UTF-8 (byte {error.start}: {error.reason}). Store it again as UTF-8."
        ) from error
    value = _decode(text, source)
    if not isinstance(value, dict):
        raise ConfigError(f"'{source}' holds a {type(value).__name__} at top level: expected an object, {{...}}.")
    if _depth_exceeds(value, MAX_DEPTH):
        raise _too_deep(source)
    return value


def dump_json(obj: Mapping[str, Any]) -> bytes:
    """`obj` as JSON text: keys sorted, indented by 2, a set as a sorted list, a newline at the end.

    Equal objects give equal bytes, and `parse_json` gives the object back (tuples and sets as lists).

    Raises:
        ConfigError: a key is no string, or a value is nothing JSON knows (NaN and infinity included).
    """
    text = json.dumps(_plain(obj, ""), sort_keys=True, indent=2, allow_nan=False)
    return text.encode("ascii") + b"\n"


def _decode(text: str, source: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(f"'{source}' gives the key {key!r} twice: keep one of the two.", key)
            found[key] = value
        return found

    def refuse(literal: str) -> NoReturn:
        raise ConfigError(f"'{source}' holds the number {literal[:40]}: expected a finite number of usual size.")

    def whole(literal: str) -> int:
        return int(literal) if len(literal) <= MAX_DIGITS else refuse(literal)

    def finite(literal: str) -> float:
        return number if math.isfinite(number := float(literal)) else refuse(literal)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_int=whole, parse_float=finite)
    except json.JSONDecodeError as error:
        raise CorruptFileError(
            f"'{source}' is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}. "
            "Save or fetch it again."
        ) from error
    except RecursionError:
        raise _too_deep(source) from None


def _too_deep(source: str) -> ConfigError:
    return ConfigError(f"'{source}' is nested more than {MAX_DEPTH} deep: no config of an adapter is.")


def _depth_exceeds(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True


def _plain(value: Any, where: str) -> Any:
    """`value` with sets sorted and tuples as lists; refuses what JSON would alter or cannot hold."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError.of(where or "key", key, "a string as key")
        return {key: _plain(item, f"{where}.{key}" if where else key) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        try:
            value = sorted(value)
        except TypeError:
            value = sorted(value, key=repr)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError.of(where, value, "a finite number")
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ConfigError.of(where, value, "text, a number, a boolean, None, or a list, set or dict of these")
