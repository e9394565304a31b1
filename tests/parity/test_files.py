"""Files both ways: what one library saves, the other loads, with equal outputs; and both write the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from .both import swap
from .models import FAMILIES, HEADED


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    swap(family.base(), family.config(), family.batch(0), tmp_path)


@pytest.mark.parametrize("name", HEADED)
def test_the_head_of_a_task_is_trained_and_saved(name: str, tmp_path: Path) -> None:
    family = HEADED[name]
    swap(family.base(), family.config(), family.batch(0), tmp_path)
