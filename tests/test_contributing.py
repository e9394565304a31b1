"""The walk through a method in CONTRIBUTING.md shows the code as it is."""

from __future__ import annotations

import re
from pathlib import Path

import inlay

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHOD = (ROOT / "src/inlay/methods/hra.py").read_text(encoding="utf-8")


def walk() -> str:
    """The part about adding a method."""
    return TEXT[TEXT.index("## Add a method in one file") : TEXT.index("## Rules of the house")]


def test_the_code_shown_is_the_methods() -> None:
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", walk(), re.M)
    shown = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    own = [line.strip() for line in METHOD.splitlines()]
    assert len(shown) > 10
    assert [line for line in shown if line not in own] == []


def test_every_place_that_is_named_has_what_it_is_said_to_have() -> None:
    named = dict.fromkeys(re.findall(r"`((?:src|tests|docs)/[\w/.]+)`", walk()))
    assert len(named) >= 6
    assert [path for path in named if not (ROOT / path).exists()] == []
    places = {
        "src/inlay/methods/__init__.py": r'`("inlay.methods.hra".*)`',
        "tests/contract/cases.py": r'`("plain".*)`',
    }
    for path, pattern in places.items():
        line = re.search(pattern, walk())
        assert line is not None and line.group(1) in (ROOT / path).read_text(encoding="utf-8")
    assert "HRA" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert inlay.HRAConfig().peft_type == "HRA"
