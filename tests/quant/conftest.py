"""Warnings of the quantisation libraries that are not about us, and tiny models on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hf.conftest import FOREIGN as TRANSFORMERS
from tests.quant.bases import FOREIGN, folder, load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for warning in (*FOREIGN, *TRANSFORMERS):
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """(kind, dtype) -> a tiny quantised Llama, loaded anew: every one has the same weights."""
    where = folder(tmp_path_factory.mktemp("tiny"))
    return lambda kind, *args, **changes: load(where, kind, *args, **changes)
