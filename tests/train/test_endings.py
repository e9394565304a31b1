"""How runs end, and what is written of it: finished, interrupted, failed; with a page or a warning."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.runs.history import History
from inlay.runs.run import Run
from inlay.train import callbacks
from inlay.train.training import train
from tests.train import tiny


def quiet(line: str) -> None: ...


def at_pass(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> None:
    """Does something in the forward pass of this number."""
    original, count = callbacks.Rows.training_step, [0]

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == number:
            act()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(callbacks.Rows, "training_step", step)


def fail() -> None:
    raise MemoryError("no memory is left")


def stop() -> None:
    raise KeyboardInterrupt


def test_why_a_run_failed_is_on_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe(tmp_path, **{"report.html": True})
    at_pass(monkeypatch, 12, fail)
    with pytest.raises(MemoryError, match="no memory is left"):
        train(recipe, say=quiet)
    run = Run.open(recipe.out)
    last = run.metrics()[-1]
    assert (last["step"], last["stopped"]) == (5, "no memory is left") and not run.finished
    html = (run.folder / "report.html").read_text()
    assert "Stopped at step 5 of 16: no memory is left" in html and "inlay train" in html


def test_ctrl_c_leaves_a_page_and_the_time_of_all_sessions_is_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(tmp_path, **{"report.html": True, "train.log_every": 1})
    at_pass(monkeypatch, 9, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="with a checkpoint"):
        train(recipe, say=quiet)
    run = Run.open(recipe.out)
    page = (run.folder / "report.html").read_text()
    assert "Stopped at step 5 of 16: it was interrupted (Ctrl-C)." in page
    first = History.of(run.metrics()).seconds
    train(recipe, say=quiet)
    history = History.of(run.metrics())
    seconds = [value for _, value in history.series("seconds")]
    assert seconds == sorted(seconds) and first is not None and seconds[-1] > first > 0
    assert history.sessions == 2 and {v for s, v in history.series("session") if s <= 5} == {1}
    assert [s for s, _ in history.losses] == list(range(1, 17)) and history.stopped is None
    page = (run.folder / "report.html").read_text()
    assert "Finished at step 16." in page and ", in 2 sessions" in page


def test_who_is_in_a_hurry_gets_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe(tmp_path, **{"report.html": True})
    at_pass(monkeypatch, 3, stop)  # as a second Ctrl-C does
    with pytest.raises(KeyboardInterrupt):
        train(recipe, say=quiet)
    run = Run.open(recipe.out)
    assert run.metrics()[-1]["stopped"] == "it was interrupted (Ctrl-C)."
    assert not (run.folder / "report.html").exists()
    assert "interrupted" in run.report().read_text()  # at any time later


def test_without_matplotlib_a_run_is_finished_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []
    run = train(tiny.recipe(tmp_path, **{"report.html": True}), say=said.append)
    assert run.finished and not (run.folder / "report.html").exists()
    (warning,) = [line for line in said if "WARNING" in line]
    assert warning == said[-1] and "\n" not in warning
    assert "pip install 'inlay[cli]'" in warning and f"inlay runs {run.folder} --report" in warning


def test_a_recipe_may_do_without_a_page(tmp_path: Path) -> None:
    run = train(tiny.recipe(tmp_path), say=quiet)
    assert not (run.folder / "report.html").exists()


def test_what_an_evaluation_takes_does_not_slow_the_tokens_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of tokens a second is set anew by each evaluation, here by a clock that evaluations alone move."""
    clock = [0.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            clock[0] += 1e-3
            return clock[0]

        @staticmethod
        def time() -> float:
            return 0.0

    monkeypatch.setattr(callbacks, "time", Time)
    original = callbacks.Rows.evaluate

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        clock[0] += 1e6
        return original(self, *args, **kwargs)

    monkeypatch.setattr(callbacks.Rows, "evaluate", evaluate)
    run = train(tiny.recipe(tmp_path, **{"data.eval": 0.2, "train.log_every": 1}), say=quiet)
    rates = [m["tokens_per_second"] for m in run.metrics() if "tokens_per_second" in m]
    assert len(rates) == 12 and min(rates) > 1
