"""Runs that are killed, at any instant, and go on to the same bits."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.errors import ResumeError
from inlay.io import plain
from inlay.runs.run import Run
from inlay.train import callbacks
from inlay.train.training import train
from tests.train import tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def quiet(line: str) -> None: ...


def killed(recipe: Any, arm: Callable[[], None]) -> bool:
    """Trains in a process of its own, which `arm` prepares to kill; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            train(recipe, say=quiet)
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_pass(number: int) -> Callable[[], None]:
    """Kills in the forward pass of this number, counted from where the process began."""

    def arm() -> None:
        original, count = callbacks.Rows.training_step, [0]

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                die()
            return original(self, *args, **kwargs)

        callbacks.Rows.training_step = step  # type: ignore[method-assign]  # in the child only

    return arm


def same(a: Path, b: Path) -> bool:
    first, second = tiny.weights(a), tiny.weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "evaluated": {"data.eval": 0.2, "watch.prompts": ["Count"], "watch.max_new_tokens": 3},
    "packed": {"data.packing": True, "train.batch": 1, "data.max_length": 160},
    "lengths": {"train.group_by_length": True},
    "adalora": {"adapter.method": "adalora", "adapter.tinit": 2, "adapter.tfinal": 4, "adapter.target_r": 4},
    "full": {"adapter.method": "full"},
}


@pytest.mark.parametrize("case", CASES)
def test_five_kills_at_random_steps_change_no_bit(tmp_path: Path, case: str) -> None:
    changes = {"train.epochs": 3, **CASES[case]}
    whole = train(tiny.recipe(tmp_path, "whole", **changes), say=quiet)
    recipe, rng, kills = tiny.recipe(tmp_path, "killed", **changes), random.Random(f"inlay {case}"), 0
    while kills < 5:
        # at least three steps each time, so that the run gets on; not so many that it ends
        kills += killed(recipe, at_pass(rng.randint(2, 9)))
        if Run(Path(recipe.out)).exists and Run(Path(recipe.out)).finished:
            break
    assert kills == 5
    said: list[str] = []
    run = train(recipe, say=said.append)
    assert any(line.startswith("Going on from checkpoint-") for line in said)
    assert same(run.adapter, whole.adapter)
    steps = [m["step"] for m in run.metrics() if "loss" in m]
    assert steps == [m["step"] for m in whole.metrics() if "loss" in m]
    assert run.samples() == whole.samples()


def test_another_order_or_dropout_would_be_noticed(tmp_path: Path) -> None:
    """The test above can fail."""
    runs = [train(tiny.recipe(tmp_path, str(s), **{"train.seed": s}), say=quiet) for s in (1, 2)]
    assert not same(runs[0].adapter, runs[1].adapter)


WRITES = ["_save_optimizer_and_scheduler", "_save_rng_state", "seal", "cut"]


@pytest.mark.parametrize("where", WRITES)
def test_a_checkpoint_killed_half_way_is_passed_over(tmp_path: Path, where: str) -> None:
    whole = train(tiny.recipe(tmp_path, "whole"), say=quiet)
    recipe = tiny.recipe(tmp_path, "killed")

    def arm() -> None:  # at the second checkpoint
        owner: Any = callbacks if where in ("seal", "cut") else callbacks.Rows
        name = "seal" if where == "cut" else where
        original, count = getattr(owner, name), [0]

        def write(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == 2 and where == "cut":  # sealed, but the disk had not kept it
                original(*args, **kwargs)
                os.truncate(args[0] / "optimizer.pt", 10)
                die()
            if count[0] == 2:
                die()
            return original(*args, **kwargs)

        setattr(owner, name, write)

    assert killed(recipe, arm)
    said: list[str] = []
    run = train(recipe, say=said.append)
    assert said[:2] == ["checkpoint-6 was not written to its end: passed over.", "Going on from checkpoint-3."]
    assert same(run.adapter, whole.adapter)


def test_a_kill_between_the_last_step_and_the_result_is_made_good(tmp_path: Path) -> None:
    whole = train(tiny.recipe(tmp_path, "whole"), say=quiet)
    recipe = tiny.recipe(tmp_path, "killed")

    def arm() -> None:
        original = callbacks.Rows.save_model

        def save(self: Any, folder: str, *args: Any, **kwargs: Any) -> None:
            original(self, folder, *args, **kwargs)
            if folder.endswith("adapter"):
                die()

        callbacks.Rows.save_model = save  # type: ignore[method-assign]

    assert killed(recipe, arm)
    assert not Run.open(recipe.out).finished
    assert same(train(recipe, say=quiet).adapter, whole.adapter)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tiny.recipe(tmp_path, "whole"), say=quiet)
    recipe = tiny.recipe(tmp_path, "stopped")
    original, count, before = callbacks.Rows.training_step, [0], signal.getsignal(signal.SIGINT)

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == 9:  # in the fifth step
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(callbacks.Rows, "training_step", step)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt, match=r"Stopped at step 5 of 16, with a checkpoint. To go on:\n    inlay tr"):
        train(recipe, say=said.append)
    assert "Stopping after this step, with a checkpoint. Once more stops at once." in said
    assert signal.getsignal(signal.SIGINT) is before
    assert [p.name for p in Run.open(recipe.out).checkpoints()[0]] == ["checkpoint-3", "checkpoint-5"]
    assert same(train(recipe, say=quiet).adapter, whole.adapter)


def test_another_recipe_or_other_rows_are_refused_with_what_differs(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path)
    assert killed(recipe, at_pass(12))
    before = {p: p.stat().st_mtime_ns for p in Path(recipe.out).rglob("*")}
    with pytest.raises(ResumeError, match=r"begun otherwise: adapter.r: 2 -> 4; train.lr: 0.01 -> 0.02. Take"):
        train(tiny.recipe(tmp_path, **{"adapter.r": 4, "train.lr": 0.02}), say=quiet)
    tiny.rows(tmp_path / "rows.jsonl", start=1)
    with pytest.raises(ResumeError, match=r"the rows of data.train \(30 with sha256 \w{12} -> 30 with \w{12}\)"):
        train(recipe, say=quiet)
    assert {p: p.stat().st_mtime_ns for p in Path(recipe.out).rglob("*")} == before
    tiny.rows(tmp_path / "rows.jsonl")
    environment = Run.open(recipe.out).environment
    plain.write_json(Path(recipe.out) / "environment.json", {**environment, "processes": 2})
    with pytest.raises(ResumeError, match=r"begun otherwise: the number of processes \(2 -> 1\)"):
        train(recipe, say=quiet)
    assert train(recipe, fresh=True, say=quiet).finished
