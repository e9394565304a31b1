"""Inlay beside an installed peft 0.21.2. Without one these tests are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft", minversion="0.21.2")

from .both import DEPRECATED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """peft asks transformers for a deprecated attribute, which is none of ours."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
