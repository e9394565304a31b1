"""`inlay schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.recipe.schema import recipe_schema
from tests.cli.test_train import run


def test_json_on_stdout_or_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema")[0] == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()
    file = tmp_path / "recipe.schema.json"
    assert run("schema", "--method", "ia3", "--out", str(file))[0] == 0
    out, err = capsys.readouterr()
    assert out == "" and err == f"Written to {file}.\n"
    assert json.loads(file.read_text()) == recipe_schema("ia3")


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("schema", "--text")[0] == 0
    out = capsys.readouterr().out
    assert out.startswith("model: The base that is trained.\n  model.name ") and "adapter.lora_alpha" in out
    assert max(map(len, out.splitlines())) <= 80
    assert run("schema", "--text", "--method", "oft")[0] == 0
    assert "adapter.oft_block_size" in capsys.readouterr().out


def test_a_method_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema", "--method", "lorra")[0] == 2
    assert "Did you mean 'lora'" in capsys.readouterr().err
