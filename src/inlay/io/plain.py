"""The plain files of a run: YAML, JSON, lines of JSON. Written whole or not at all; read within limits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, CorruptFileError, MissingFileError, optional
from inlay.io.disk import replace_file

_LARGEST = 2**20  # bytes of a YAML file
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*(?:[eE][-+]?\d+)?)$")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises MissingFileError, ConfigError."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file '{path}' (looked in '{Path.cwd()}').")
    if path.stat().st_size > _LARGEST:
        raise ConfigError(f"'{path}' is larger than {_LARGEST // 2**20} MiB, which no recipe is.")
    try:
        found = parse_yaml(path.read_text(encoding="utf-8-sig"), f"'{path}'")
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is not UTF-8: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"'{path}' holds {type(found).__name__}, expected keys with values, e.g. `out: runs/mine`.")
    return found


def parse_yaml(text: str, source: str) -> Any:
    """YAML, with `1e-4` a number, and neither aliases nor a key twice. Raises ConfigError that names the line."""
    yaml = optional("yaml", "cli")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Safe loading without aliases, which could stand for endless text."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.constructor.ConstructorError(
                    None, None, "aliases (*name) are not read", self.peek_event().start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{source} is not YAML{where}: {getattr(error, 'problem', None) or error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply.") from error


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Keys in their order."""
    text = optional("yaml", "cli").safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    replace_file(path, text.encode())


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all, for people to read."""
    replace_file(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of ours. Raises MissingFileError, CorruptFileError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(f"There is no file '{path}'.") from error
    except ValueError as error:
        raise CorruptFileError(f"'{path}' is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise CorruptFileError(f"'{path}' holds {type(found).__name__}, expected an object.")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of lines, up to a line that a kill cut short; none if there is no file."""
    found: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """All lines anew."""
    replace_file(path, "".join(_line(row) for row in rows).encode())


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """One line more, there before this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
