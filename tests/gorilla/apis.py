"""A small API database, and where the public one lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inlay.gorilla import Example

DATA = Path(__file__).parents[3] / "shared" / "data" / "gorilla_apibench"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public APIBench files are not beside the repository")


def api(call: str, domain: str = "Text", **fields: Any) -> dict[str, Any]:
    return {"domain": domain, "framework": "Hub", "api_name": call, "api_call": call, "description": "", **fields}


def example(question: str, call: str, domain: str = "Text", answer: str | None = None) -> Example:
    answer = f"<<<domain>>>: {domain}, <<<api_call>>>: {call}, <<<api_provider>>>: Hub" if answer is None else answer
    return Example(question, answer, call, "Hub", api(call, domain))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
