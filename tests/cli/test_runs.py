"""`inlay runs`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.line import command
from tests.runs.report.test_page import LINES, made

run = command("runs")


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "runs", [{**line, "time": 9e8} for line in LINES], name="a[bold]b\x1b[2J")
    made(tmp_path / "runs", name="x" * 150)
    made(tmp_path / "runs", name="torn")
    Path("runs/torn/environment.json").write_text("{")
    assert run() == 0
    out, err = capsys.readouterr()
    head, *lines = out.splitlines()
    names = ["run", "state", "steps", "loss", "held", "out", "size", "when", "method", "base", "data"]
    assert head.split() == names and len(lines) == 3
    assert "\x1b" not in out and "a[bold]b\\x1b[2J" in lines[-1]  # as it is, and the oldest last
    assert "finished" in lines[-1] and " 5/10 " in lines[-1] and " 3.000 " in lines[-1] and " 2.250 " in lines[-1]
    assert any("x" * 150 in line for line in lines)  # a file gets whole lines
    assert err.startswith("runs/torn is broken: 'runs/torn/environment.json' is not JSON")


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path).folder
    assert run(tmp_path, "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["folder"], listed["state"], listed["held_out"]) == (str(folder), "finished", 2.25)
    assert run(folder, "--json") == 0
    detail = json.loads(capsys.readouterr().out)
    assert detail["run"] == listed and detail["verdict"]["kind"] == "learned"
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--json") == 0 and json.loads(capsys.readouterr().out) == []


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path, **{"model.name": "a[red]b"}).folder
    assert run(folder) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "base    a[red]b" in lines
    assert "Learned: the held-out loss fell from 3.500 before training to 2.250 at step 5." in lines
    assert any(line.startswith("metrics.jsonl ") for line in lines) and lines[-3].startswith("inlay compare ")


def test_the_report_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path).folder
    assert run(folder, "--report") == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "Learned: the held-out loss fell" in (folder / "report.html").read_text()


def test_what_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    assert capsys.readouterr().out == f"There are no runs in '{tmp_path}'.\n"
    assert run(tmp_path, "--report") == 1
    assert "is not the folder of a run: it has no resolved.yaml" in capsys.readouterr().err
    assert run(tmp_path / "none") == 1
    assert f"There is no folder '{tmp_path / 'none'}' (looked in '{os.getcwd()}')" in capsys.readouterr().err
