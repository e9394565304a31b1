"""The pages in docs/ name everything there is."""

from __future__ import annotations

import re
from pathlib import Path

from inlay.cli import COMMANDS
from inlay.config import config_classes

DOCS = Path(__file__).parent.parent / "docs"


def test_every_method_is_in_the_table() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert [cls.__name__ for cls in config_classes().values() if f"`{cls.__name__}" not in text] == []
    assert "P-Tuning v2" in text


def test_every_command_is_in_the_table() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"| `inlay {name}" not in text] == []
    pages = set(re.findall(r"\]\((\w+\.md)\)", text))
    assert pages and [page for page in pages if not (DOCS / page).is_file()] == []
