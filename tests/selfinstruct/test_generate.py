"""Asking a model: the shrinking budget, waits, and what ends a call."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from inlay.errors import ConfigError, EndpointError
from inlay.selfinstruct import Answer, Function, Reply, Retry, Sampling
from inlay.selfinstruct.generate import FLOOR, Busy, Overflow, ask


class Scripted:
    """A model that raises what it is told, and notes the budgets it was asked with."""

    name, batch, concurrency = "scripted", 1, 1

    def __init__(self, *script: Exception, fits: int = 10**9):
        self.script, self.fits, self.budgets = list(script), fits, []

    def ask(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> Reply:
        self.budgets.append(sampling.max_tokens)
        if sampling.max_tokens > self.fits:
            raise Overflow("too long")
        if self.script:
            raise self.script.pop(0)
        return Reply((Answer("text"),), 1, 2)


def call(model: Scripted, retry: Retry | None = None) -> tuple[Reply, list[float]]:
    waits: list[float] = []
    return ask(model, ["p"], Sampling(), retry or Retry(), waits.append, 0), waits


def test_the_completion_budget_shrinks_to_80_percent() -> None:
    model = Scripted(fits=1300)
    reply, waits = call(model)
    assert model.budgets == [3072, 2457, 1965, 1572, 1257]
    assert reply == Reply((Answer("text"),), 1, 2, max_tokens=1257) and waits == []


def test_below_the_floor_the_call_is_skipped() -> None:
    model = Scripted(fits=0)
    reply, waits = call(model)
    assert reply.skipped and reply.answers == () and waits == []
    assert min(model.budgets) >= FLOOR == 16 and int(min(model.budgets) * 0.8) < FLOOR
    assert len(model.budgets) == len(set(model.budgets)) < 30


def test_a_busy_model_is_asked_again_after_growing_waits_with_jitter() -> None:
    retry = Retry(attempts=6, first=2, factor=2, longest=10)
    reply, waits = call(Scripted(*[Busy("500")] * 5), retry)
    assert reply.answers
    assert [low <= w < high for w, (low, high) in zip(waits, [(1, 2), (2, 4), (4, 8), (5, 10), (5, 10)], strict=True)]
    assert len({w / b for w, b in zip(waits, (2, 4, 8, 10, 10), strict=True)}) == 5
    assert {retry.wait(0, None, random.Random(s)) for s in range(3)} != {retry.wait(0, None, random.Random(0))}


def test_attempts_are_bounded() -> None:
    model = Scripted(*[Busy("503: overloaded")] * 99)
    with pytest.raises(EndpointError, match=r"scripted did not answer in 4 attempts; the last one: 503: over"):
        call(model, Retry(attempts=4))
    assert len(model.budgets) == 4


def test_the_wait_that_is_asked_for_is_waited_in_full() -> None:
    _, waits = call(Scripted(Busy("429", after=37.0), Busy("429", after=0.0)))
    assert 37.0 <= waits[0] <= 41 and waits[1] == 0.0
    model = Scripted(Busy("429", after=3600.0))
    with pytest.raises(EndpointError, match="asks to wait 3600 s, more than 600 s"):
        call(model)
    assert len(model.budgets) == 1


def test_what_will_not_help_is_not_tried_again() -> None:
    model = Scripted(EndpointError("no"))
    with pytest.raises(EndpointError, match="no"):
        call(model)
    assert len(model.budgets) == 1


def test_a_function_is_a_model() -> None:
    model = Function(lambda prompts, sampling: [p.upper() for p in prompts])
    assert model.ask(["a", "b"], Sampling(), 0).answers == (Answer("A"), Answer("B"))
    with pytest.raises(EndpointError, match="returned 0 answers to 1 prompts"):
        Function(lambda prompts, sampling: []).ask(["a"], Sampling(), 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", 15), ("max_tokens", 20.5), ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.1)],
)
def test_sampling_is_checked(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value} is not allowed"):
        Sampling(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"extra=.* is not allowed: expected fields of a JSON object"):
        Sampling(extra={"a": object()})
    with pytest.raises(ConfigError, match="attempts=0"):
        Retry(attempts=0)
