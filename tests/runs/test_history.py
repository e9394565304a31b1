"""The numbers of a run, whatever its lines hold."""

from __future__ import annotations

from inlay.runs.history import History

NAN = float("nan")


def test_numbers_that_are_none_are_passed_over() -> None:
    lines = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": NAN},
        {"step": 4, "loss": "high"},
        {"step": 5, "loss": True},
        {"step": None, "loss": 1.0},
        {"loss": 1.0},
        7,
        {"step": 6, "loss": 1},
    ]
    history = History.of(lines)
    assert history.losses == [(1, 2.0), (6, 1.0)] and history.step == 6


def test_of_no_lines() -> None:
    history = History.of([])
    assert history.losses == history.evaluations == [] and history.best is None and history.step == 0
    assert history.seconds is None and history.tokens is None and history.memory is None and history.sessions == 1
    assert history.tokens_per_second is None and history.stopped is None and history.last_time is None


def test_the_base_is_not_the_best() -> None:
    history = History.of({"step": s, "eval_loss": v} for s, v in ((0, 1.0), (5, 3.0), (10, 2.0), (15, 2.0)))
    assert history.best == (10, 2.0)
    assert History.of([{"step": 0, "eval_loss": 1.0}]).best is None


def test_cost() -> None:
    history = History.of(
        [
            {"step": 1, "time": 100.0, "seconds": 4.0, "num_input_tokens_seen": 10, "tokens_per_second": 5.0},
            {"step": 2, "seconds": 6.0, "session": 2, "memory_bytes": 3, "tokens_per_second": 50.0},
            {"step": 3, "seconds": 9.0, "session": 2, "memory_bytes": 2, "tokens_per_second": 7.0, "time": 130.0},
        ]
    )
    assert (history.seconds, history.sessions, history.tokens, history.memory) == (9.0, 2, 10, 3)
    assert history.tokens_per_second == 7.0 and history.last_time == 130.0


def test_a_stop_counts_only_if_nothing_came_after_it() -> None:
    stop = {"step": 3, "stopped": "the disk was full."}
    assert History.of([{"step": 3, "loss": 1.0}, stop]).stopped == "the disk was full."
    assert History.of([stop, {"step": 4, "loss": 1.0}]).stopped is None
