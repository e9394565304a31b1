"""The pages in docs/ name everything there is."""

from __future__ import annotations

from pathlib import Path

from inlay.config import config_classes

DOCS = Path(__file__).parent.parent / "docs"


def test_every_method_is_in_the_table() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert [cls.__name__ for cls in config_classes().values() if f"`{cls.__name__}" not in text] == []
    assert "P-Tuning v2" in text
