"""benchmarks/quant.py: a short run makes its table, and what cannot be measured becomes a row that says so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quant.py"
for needed in ("transformers", "rich", "bitsandbytes"):
    pytest.importorskip(needed)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("quant_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Words:
    """As much of a tokenizer as the script needs."""

    eos_token_id = 2

    def apply_chat_template(self, messages: Any, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [5, 6, 7]}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(c) % 30 for c in text[:20]]}


def test_a_short_run(script: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script, "load_base", lambda: (tiny(None), Words()))
    monkeypatch.setitem(script.KINDS, "int8", lambda dtype: 1 / 0)
    page = tmp_path / "page.md"
    code = script.main(["--short", "--kinds", "dense,nf4,int8", "--device", "cpu", "--markdown", str(page)])
    assert code == 1
    rows = {line.split("|")[1].strip(): line for line in page.read_text().splitlines() if line.startswith("| ")}
    assert list(rows) == ["base", "---", "dense", "nf4", "int8"]
    assert "FAILED: ZeroDivisionError: division by zero" in rows["int8"]
    assert "worst" in rows["nf4"] and "worst" not in rows["dense"]
    cells = [cell.strip() for cell in rows["nf4"].split("|")[1:-1]]
    before, after, merged, dense = (float(cells[i]) for i in (2, 3, 7, 8))
    assert abs(dense - after) < 1e-2 and before > 0 and merged > 0
    if importlib.util.find_spec("peft") is not None:
        assert float(cells[5]) > 0
    assert torch.get_default_dtype() == torch.float32


def test_unknown_kinds_are_named(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["--kinds", "int3"])
    assert "'int3' is none of dense, nf4" in capsys.readouterr().err
