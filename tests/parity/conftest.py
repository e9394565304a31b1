"""Warnings are errors here as everywhere, but for one that is about peft."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import DEPRECATED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets peft use what it is deprecated to use."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning"))
