"""What docs/gorilla.md shows runs, and prints what it says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from inlay.errors import InlayWarning
from tests.gorilla.apis import DATA, needs_data

PAGE = Path(__file__).parents[2] / "docs" / "gorilla.md"


@needs_data
@pytest.mark.filterwarnings(f"ignore:1 of 837 rows have no answer:{InlayWarning.__module__}.InlayWarning")
def test_the_page_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("bm25s", "tree_sitter_python"):
        pytest.importorskip(package, reason=f"the page uses {package}, which is not installed")
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    monkeypatch.chdir(DATA)
    exec("\n".join(blocks), {})
    shown = re.search(r"^    186 responses.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    assert shown is not None and capsys.readouterr().out == textwrap.dedent(shown[0]) + "\n"


def test_the_page_names_every_function() -> None:
    from inlay import gorilla

    text = PAGE.read_text(encoding="utf-8")
    returned = {"Example", "Hit", "Question", "Report", "Response", "Verdict", "HUBS"}
    assert {name for name in gorilla.__all__ if name not in text} <= returned <= set(gorilla.__all__)
