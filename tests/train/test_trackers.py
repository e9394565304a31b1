"""Trackers: checked before anything is loaded, and writing into the run's folder."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from inlay.errors import ConfigError, MissingExtraError
from inlay.recipe.recipe import Recipe
from inlay.runs.run import Run
from inlay.train.trackers import tracked
from inlay.train.training import train
from tests.train import tiny

TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def quiet(line: str) -> None: ...


def test_an_unknown_tracker_is_refused_by_the_recipe() -> None:
    values = {"model.name": "m", "data.train": "d", "out": "o", "report.trackers": ["tensorbored"]}
    with pytest.raises(ConfigError, match=r"report.trackers.0='tensorbored' is not allowed: expected 'tensorboard', "):
        Recipe.make(values)


def test_a_missing_package_is_named_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a))
    recipe = tiny.recipe(tmp_path, **{"report.trackers": ["wandb"], "model.name": str(tmp_path / "not loaded")})
    with pytest.raises(MissingExtraError, match=r"report.trackers names 'wandb'.*pip install wandb"):
        train(recipe, say=quiet)
    assert not Path(recipe.out).exists()


@pytest.mark.skipif(not TENSORBOARD, reason="needs the package tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")  # its own use of NumPy and protobuf
def test_tensorboard_holds_the_losses_at_their_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tiny.recipe(tmp_path, **{"report.trackers": ["tensorboard"], "data.eval": 0.2})
    run = train(recipe, say=quiet)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    for ours, theirs in (("loss", "train/loss"), ("learning_rate", "train/learning_rate"), ("eval_loss", "eval/loss")):
        logged = [(m["step"], m[ours]) for m in run.metrics() if ours in m]
        found = [(e.step, e.value) for e in events.Scalars(theirs)]
        assert len(found) >= 5 and found == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged]
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    before = {p.name for p in (run.folder / "tensorboard").iterdir()}
    train(recipe, fresh=True, say=quiet)
    assert not before & {p.name for p in (run.folder / "tensorboard").iterdir()}


def begun(folder: Path) -> Run:
    folder.mkdir()
    (folder / "environment.json").write_text('{"began": 5}')
    return Run(folder)


def test_variables_are_set_within_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "TRACKIO_DIR", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    run, before = begun(tmp_path / "run"), dict(os.environ)
    ids = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), tracked(run, ["tensorboard", "wandb"], quiet):
            assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(run.folder / "tensorboard")
            assert os.environ["WANDB_DIR"] == str(run.folder) and os.environ["WANDB_PROJECT"] == "mine"
            assert "TRACKIO_DIR" not in os.environ
            ids.append(os.environ["WANDB_RUN_ID"])
            _ = 1 / 0
        assert dict(os.environ) == before
    assert ids[0] == ids[1]  # the run goes on
    (run.folder / "environment.json").write_text('{"began": 6}')
    with tracked(run, ["wandb"], quiet):
        assert os.environ["WANDB_RUN_ID"] not in ids  # --fresh
    with tracked(run, [], quiet):
        assert dict(os.environ) == before


def test_a_run_of_wandb_is_ended_unless_it_is_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[object] = []
    wandb = ModuleType("wandb")
    wandb.run, wandb.finish = None, lambda: ended.append(wandb.run)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = begun(tmp_path / "run")
    with tracked(run, ["wandb"], quiet):
        wandb.run = "ours"  # type: ignore[attr-defined]
    assert ended == ["ours"]
    with tracked(run, ["wandb"], quiet):
        pass  # one that was there before
    assert ended == ["ours"]


def test_trackio_that_writes_elsewhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.setitem(sys.modules, "trackio.utils", SimpleNamespace(TRACKIO_DIR=tmp_path / "first"))  # type: ignore[arg-type]
    said: list[str] = []
    with tracked(begun(tmp_path / "run"), ["trackio"], said.append):
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / "run" / "trackio")
    assert said == [f"WARNING: trackio writes to '{tmp_path / 'first'}', as it did first in this process."]
