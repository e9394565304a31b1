"""`inlay inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay import get_peft_model
from inlay.io.folder import WEIGHTS_NAME
from tests.cli.test_train import run
from tests.comparison.lm import base, lora, view


def test_a_sound_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view().save_pretrained(str(tmp_path))
    assert run("inspect", str(tmp_path))[0] == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}\n  method      LORA\n") and "health      sound" in out


def test_as_json_and_several_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view().save_pretrained(str(tmp_path / "good"))
    get_peft_model(base(), lora()).save_pretrained(str(tmp_path / "untrained"))
    assert run("inspect", str(tmp_path), "--json")[0] == 1
    found = json.loads(capsys.readouterr().out)
    assert [(Path(one["folder"]).name, one["healthy"]) for one in found] == [("good", True), ("untrained", False)]
    assert run("inspect", str(tmp_path))[0] == 1
    assert capsys.readouterr().out.count("  method      LORA") == 2


def test_damage_has_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view().save_pretrained(str(tmp_path))
    file = tmp_path / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-5])
    assert run("inspect", str(tmp_path))[0] == 1
    assert "problem: " in capsys.readouterr().out


def test_a_folder_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(tmp_path))[0] == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"inlay: '{tmp_path}' holds no adapter")
