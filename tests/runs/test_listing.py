"""Runs in a folder, whole and broken, and one in detail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.errors import CorruptFileError, MissingFileError
from inlay.io import plain
from inlay.runs.listing import describe_run, list_runs
from tests.runs.report.test_page import ENVIRONMENT, LINES, made


def at(time: float) -> list[dict[str, float]]:
    return [{**line, "time": time} for line in LINES]


def test_the_newest_is_first_and_numbers_are_the_runs(tmp_path: Path) -> None:
    made(tmp_path, at(100.0), name="old")
    made(tmp_path, at(300.0), name="sub/new", **{"adapter.method": "ia3"})
    made(tmp_path, [*at(200.0), {"step": 5, "time": 201.0, "stopped": "x"}], finished=False, name="stopped")
    made(tmp_path, at(150.0), finished=False, name="killed")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("x")
    found = list_runs(tmp_path)
    assert [(Path(r.folder).name, r.state) for r in found] == [
        ("new", "finished"),
        ("stopped", "stopped"),
        ("killed", "unfinished"),
        ("old", "finished"),
    ]
    new = found[0]
    assert (new.method, new.base, new.data, new.step, new.steps) == ("ia3", "base", "rows.jsonl", 5, 10)
    assert (new.loss, new.held_out, new.when, new.problem) == (3.0, 2.25, 300.0, None)
    files = [p for p in (tmp_path / "sub" / "new").rglob("*") if p.is_file()]
    assert new.size == sum(p.stat().st_size for p in files) > 2048


def test_broken_ones_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    for name in ("recipe", "record", "result", "begun"):
        made(tmp_path, name=name)
    (tmp_path / "recipe" / "resolved.yaml").write_text("model: {name: x}\n")
    (tmp_path / "record" / "environment.json").write_text("{")
    (tmp_path / "result" / "adapter" / "inlay_run.json").write_text("[]")
    (tmp_path / "begun" / "resolved.yaml").unlink()
    problems = {Path(r.folder).name: r.problem for r in list_runs(tmp_path) if r.state == "broken"}
    assert problems.keys() == {"recipe", "record", "result", "begun"}
    for name, problem in (
        ("recipe", "data is missing"),
        ("record", "environment.json' is not JSON"),
        ("result", "inlay_run.json' holds list, expected an object"),
        ("begun", "has no resolved.yaml"),
    ):
        assert problem in str(problems[name]) and "\n" not in str(problems[name])


def test_inside_of_a_run_no_other_is_looked_for(tmp_path: Path) -> None:
    run = made(tmp_path)
    made(run.folder / "checkpoints", name="inner")
    assert len(list_runs(tmp_path)) == 1 and len(list_runs(run.folder)) == 1


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    assert list_runs(tmp_path) == []
    with pytest.raises(MissingFileError, match=r"There is no folder '.*none'.*Give the folder of a run, or of runs"):
        list_runs(tmp_path / "none")


def test_one_in_detail(tmp_path: Path) -> None:
    run = made(tmp_path)
    details = describe_run(run)
    assert details.verdict.kind == "learned" and details.run == list_runs(tmp_path)[0]
    size = (run.folder / "metrics.jsonl").stat().st_size
    assert details.files["metrics.jsonl"] == size and details.files["adapter/"] > 2048
    assert [c.split()[1] for c in details.commands] == ["compare", "chat", "export"]
    assert json.loads(json.dumps(details.to_dict()))["verdict"]["kind"] == "learned"
    unfinished = made(tmp_path, finished=False, name="other")
    assert describe_run(unfinished).commands == [f"inlay train {unfinished.folder / 'recipe.yaml'}"]
    plain.write_json(run.folder / "environment.json", {k: v for k, v in ENVIRONMENT.items() if k != "steps"})
    assert describe_run(run).verdict.state == "Finished at step 5."
    (run.folder / "environment.json").write_text("[]")
    with pytest.raises(CorruptFileError):
        describe_run(run)
