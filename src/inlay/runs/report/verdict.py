"""What came of a run, in a sentence with its numbers, and what to do next.

Held-out losses decide, where there are any; a is the first (the base's, at step 0), b the lowest after it, c the last:

    not learning   b > a - 1% of a
    diverged       c > b + 2% of b, and the loss of training rose after b, too, by more than 10%
    overfits       c > b + 2% of b
    learned        otherwise
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from inlay.readable import loss
from inlay.runs.history import History, Point

Kind = Literal["learned", "overfits", "diverged", "not learning", "no evaluation", "no numbers"]

_FALL, _RISE, _TRAIN_RISE = 0.01, 0.02, 0.1


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    Attributes:
        kind: which of the cases above it is.
        sentence: the case with its numbers.
        state: "Finished ...", or where it stopped and why.
        advice: what to do next; empty if there is nothing to say.
    """

    kind: Kind
    sentence: str
    state: str
    advice: str = ""


def verdict(history: History, finished: bool, steps: int | None = None) -> Verdict:
    """Of a run's numbers; `steps` is how many it was to make."""
    state = _state(history, finished, steps)
    if len(history.evaluations) > 1 and history.best is not None:
        kind, sentence, advice = _evaluated(history, history.best, finished)
    else:
        kind, sentence, advice = _trained(history)
    return Verdict(kind, sentence, state, advice)


def _state(history: History, finished: bool, steps: int | None) -> str:
    of = f"{history.step} of {steps}" if steps is not None and steps != history.step else str(history.step)
    if finished:
        return f"Finished at step {of}."
    if history.stopped is not None:
        return f"Stopped at step {of}: {history.stopped}"
    return f"Not finished: it is at step {of}, and was killed there or still runs."


def _evaluated(history: History, best: Point, finished: bool) -> tuple[Kind, str, str]:
    first, last = history.evaluations[0], history.evaluations[-1]
    began = f"{loss(first[1])} {'before training' if first[0] == 0 else f'at step {first[0]}'}"
    if first[0] == best[0] or best[1] > first[1] * (1 - _FALL):
        found = f"{loss(last[1])} at step {last[0]}" if first[0] == best[0] else f"{loss(best[1])} at its lowest"
        where = "" if first[0] == best[0] else f" afterwards, at step {best[0]}"
        return "not learning", f"Not learning: the held-out loss was {began}, and {found}{where}.", _why_not(history)
    fell = f"the held-out loss fell from {began} to {loss(best[1])}"
    if last[1] <= best[1] * (1 + _RISE):
        falling = last[0] == best[0] and history.evaluations[-2][1] > best[1] * (1 + _FALL)
        advice = "It was still falling at the end: more steps may help." if falling and finished else ""
        return "learned", f"Learned: {fell} at step {best[0]}.", advice
    kept = f" What was kept is that of step {best[0]}." if finished else ""
    rose = f"{fell}, then rose to {loss(last[1])} by step {last[0]}.{kept}"
    if _train_rose(history.losses, best[0]):
        return "diverged", f"Diverged after step {best[0]}: {rose}", "Lower train.lr, or warm up longer."
    advice = "More rows or a smaller adapter overfit later; train.early_stopping ends a run where it begins."
    return "overfits", f"Overfits from step {best[0]}: {rose}", advice


def _why_not(history: History) -> str:
    losses = history.losses
    if len(losses) > 1:
        first, last = _ends(losses)
        if last > first * (1 + _RISE):
            return "The loss of training rose, too: lower train.lr."
        if last < first * (1 - 5 * _FALL):
            return "The loss of training fell: the rows held out may be unlike the others, or the others too few."
    return "Raise train.lr or train for more steps; `inlay check` shows what is trained."


def _train_rose(losses: Sequence[Point], step: int) -> bool:
    until, after = [v for s, v in losses if s <= step], [v for s, v in losses if s > step]
    return bool(until) and bool(after) and sum(after) / len(after) > until[-1] * (1 + _TRAIN_RISE)


def _trained(history: History) -> tuple[Kind, str, str]:
    losses, evaluations = history.losses, history.evaluations
    if not losses:
        return "no numbers", "There is no verdict: no loss was logged.", ""
    if len(losses) == 1:
        sentence = f"There is no verdict: one loss was logged, {loss(losses[0][1])} at step {losses[0][0]}."
        return "no numbers", sentence, "Lower train.log_every to see a curve."
    first, last = _ends(losses)
    way = "fell" if last < first else "rose" if last > first else "stayed"
    sentence = f"the loss of training {way} from {loss(first)} to {loss(last)} by step {losses[-1][0]}."
    if evaluations:
        sentence = f"One evaluation only, {loss(evaluations[-1][1])} at step {evaluations[-1][0]}: {sentence}"
        return "no evaluation", sentence, "Lower train.eval_every for a verdict."
    advice = "Hold rows out to see whether it learns more than its rows by heart: data.eval: 0.05."
    return "no evaluation", f"Not evaluated: {sentence}", advice


def _ends(losses: Sequence[Point]) -> tuple[float, float]:
    """Means of the first and the last tenth: single losses are noisy."""
    n, values = max(1, len(losses) // 10), [v for _, v in losses]
    return sum(values[:n]) / n, sum(values[-n:]) / n


__all__ = ["Verdict", "verdict"]
