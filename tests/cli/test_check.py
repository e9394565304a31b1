"""`inlay check`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.line import command
from tests.train import tiny

SRC = Path(__file__).parents[2] / "src"


run = command("check")


def test_flags_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.base(tmp_path / "base")
    tiny.rows(tmp_path / "rows.jsonl", 8)
    assert run("--model", "base", "--data", "rows.jsonl", "--method", "ia3", "--batch", "2", "--rows", "1") == 0
    out = capsys.readouterr().out
    assert "ia3: " in out and "of a step on the 2 longest rows" in out and "  | ### Response:[[one two 0" in out
    assert out.count("  row ") == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["base", "rows.jsonl"]


def test_json_and_the_exit_code_of_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.base(tmp_path / "base")
    tiny.rows(tmp_path / "rows.jsonl", 8)
    args = ["--model", "base", "--data", "rows.jsonl", "--set", "adapter.target_modules=[q_prj]"]
    assert run(*args, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    (stop,) = found["stops"]
    assert not found["ok"] and "q_prj" in stop and found["data"]["kept"] == 8
    assert run(*args) == 1
    assert capsys.readouterr().out.rstrip().endswith("Put right what is at STOP, then train.")


def test_a_wrong_setting_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", "rows.jsonl") == 2
    assert capsys.readouterr().err.startswith("inlay: Give a recipe, or --model: inlay check --model M")


def test_colours_on_a_terminal(tmp_path: Path) -> None:
    tiny.base(tmp_path / "base")
    tiny.rows(tmp_path / "rows.jsonl", 8)
    env = {**os.environ, "PYTHONPATH": str(SRC), "HF_HUB_OFFLINE": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    env |= {"OMP_NUM_THREADS": "1"}
    env.pop("NO_COLOR", None)
    command = [sys.executable, "-c", "from inlay.cli import main; main()", "check", "--model", "base"]
    done = subprocess.run(
        [*command, "--data", "rows.jsonl", "--rows", "1"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b[1;32mone two 0<|endoftext|>\x1b[0m" in done.stdout and "[[" not in done.stdout
