"""docs/data.md has every format, error and argument."""

from __future__ import annotations

import inspect
from pathlib import Path

from inlay.data import known_formats, prepare

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_format_and_its_columns() -> None:
    for name, format in known_formats().items():
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")]
        for column in format.shapes[0]:
            assert f"`{column}`" in line, (name, column)


def test_arguments() -> None:
    arguments = set(inspect.signature(prepare).parameters) - {"source", "tokenizer"}
    assert [a for a in arguments if f"{a}=" not in TEXT and f"`{a}`" not in TEXT] == []
