"""What came of a run, by its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inlay.runs.history import History
from inlay.runs.report.verdict import verdict


def history(losses: Sequence[float] = (), held: Sequence[float] = (), every: int = 10, first: int = 0) -> History:
    """Losses of training at every step; held-out ones from `first` on."""
    lines = [{"step": i, "loss": v} for i, v in enumerate(losses, 1)]
    lines += [{"step": first + i * every, "eval_loss": v} for i, v in enumerate(held)]
    return History.of(sorted(lines, key=lambda line: line["step"]))


FALLING = [3 - i * 0.05 for i in range(40)]


@pytest.mark.parametrize(
    ("losses", "held", "kind", "sentence"),
    [
        (
            FALLING,
            [3.0, 2.5, 2.2, 2.19, 2.19],
            "learned",
            "Learned: the held-out loss fell from 3.000 before training to 2.190 at step 30.",
        ),
        (
            FALLING,
            [3.0, 2.5, 2.2, 2.4, 2.9],
            "overfits",
            "Overfits from step 20: the held-out loss fell from 3.000 before training to 2.200, then rose to 2.900 by "
            "step 40. What was kept is that of step 20.",
        ),
        (
            [*FALLING[:20], *[5.0] * 20],
            [3.0, 2.5, 2.2, 5.4, 5.9],
            "diverged",
            "Diverged after step 20: the held-out loss fell from 3.000 before training to 2.200, then rose to 5.900 by "
            "step 40. What was kept is that of step 20.",
        ),
        (
            FALLING,
            [3.0, 3.1, 2.98, 3.2],
            "not learning",
            "Not learning: the held-out loss was 3.000 before training, and 2.980 at its lowest afterwards, at step "
            "20.",
        ),
    ],
)
def test_held_out_losses_decide(losses: list[float], held: list[float], kind: str, sentence: str) -> None:
    found = verdict(history(losses, held), finished=True, steps=40)
    assert (found.kind, found.sentence) == (kind, sentence)
    assert found.state == "Finished at step 40."


def test_a_fall_of_one_percent_is_learning_and_a_rise_of_two_is_overfitting() -> None:
    kinds = [verdict(history(FALLING, [1.0, low, last]), True).kind for low, last in ((0.991, 0.991), (0.989, 0.989))]
    assert kinds == ["not learning", "learned"]
    kinds = [verdict(history(FALLING, [1.0, 0.5, last]), True).kind for last in (0.509, 0.511)]
    assert kinds == ["learned", "overfits"]


def test_evaluations_that_began_later() -> None:
    found = verdict(history(FALLING, [3.0, 2.0], first=5), True)
    assert found.sentence == "Learned: the held-out loss fell from 3.000 at step 5 to 2.000 at step 15."
    found = verdict(history(FALLING, [3.0, 3.5], first=5), True)
    assert found.sentence == "Not learning: the held-out loss was 3.000 at step 5, and 3.500 at step 15."


@pytest.mark.parametrize(
    ("held", "losses", "advice"),
    [
        ([3.0, 2.5, 2.0], FALLING, "It was still falling at the end: more steps may help."),
        ([3.0, 2.0, 1.999], FALLING, ""),
        ([3.0, 3.5], [*[2.0] * 10, *[4.0] * 10], "The loss of training rose, too: lower train.lr."),
        ([3.0, 3.5], FALLING, "The loss of training fell: the rows held out may be unlike the others"),
        ([3.0, 3.0], [3.0] * 40, "Raise train.lr or train for more steps"),
        ([3.0, 2.0, 2.5], FALLING, "train.early_stopping"),
        ([3.0, 2.0, 9.5], [*FALLING[:10], *[9.0] * 20], "Lower train.lr"),
    ],
)
def test_what_to_do_next(held: list[float], losses: list[float], advice: str) -> None:
    found = verdict(history(losses, held), True).advice
    assert advice in found and bool(advice) == bool(found)


def test_without_evaluation_only_the_loss_of_training_is_told() -> None:
    found = verdict(history(FALLING), True)
    assert found.kind == "no evaluation"  # means of four losses: single ones are noisy
    assert found.sentence == "Not evaluated: the loss of training fell from 2.925 to 1.125 by step 40."
    assert "data.eval: 0.05" in found.advice
    found = verdict(history(FALLING, [2.0], first=40), True)
    assert found.sentence.startswith("One evaluation only, 2.000 at step 40: the loss of training fell")
    found = verdict(history([3.0, 2.0]), True)
    assert found.sentence == "Not evaluated: the loss of training fell from 3.000 to 2.000 by step 2."


def test_of_too_few_numbers_there_is_none() -> None:
    assert verdict(history(), False).sentence == "There is no verdict: no loss was logged."
    assert verdict(history([2.5]), True).sentence == "There is no verdict: one loss was logged, 2.500 at step 1."


def test_how_far_it_came() -> None:
    lines = list(history([3.0, 2.0]).lines)
    assert verdict(History.of(lines), True, 2).state == "Finished at step 2."
    assert verdict(History.of(lines), True, 9).state == "Finished at step 2 of 9."  # early stopping
    assert verdict(History.of(lines), False, 9).state == (
        "Not finished: it is at step 2 of 9, and was killed there or still runs."
    )
    lines.append({"step": 2, "stopped": "the loss of step 3 is nan."})
    assert verdict(History.of(lines), False, 9).state == "Stopped at step 2 of 9: the loss of step 3 is nan."
