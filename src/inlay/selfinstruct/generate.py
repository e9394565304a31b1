"""Asking a model to continue prompts: what is asked, what comes back, and when to ask again.

A model is anything with the attributes of `Model`: `Endpoint`, `TransformersModel`, or `Function`, which wraps one.
It tells three things by raising: `Overflow` (prompt and budget do not fit together), `Busy` (worth asking again) and
EndpointError (not worth it); `ask` acts on them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from inlay.errors import ConfigError, EndpointError

FLOOR = 16
"""A completion budget below this many tokens is not worth asking for."""


class Overflow(Exception):
    """Prompt and completion budget together are longer than the model's context."""


class Busy(Exception):
    """The model could not answer now. `after`: the seconds that it asked to wait, if it did."""

    def __init__(self, message: str, after: float | None = None):
        super().__init__(message)
        self.after = after


@dataclass(frozen=True)
class Sampling:
    """How a model is asked to continue. The defaults are Alpaca's.

    Attributes:
        max_tokens: the completion budget of one prompt.
        temperature, top_p: as in the OpenAI protocol.
        stop: texts that end an answer: the list is complete at 20 tasks.
        extra: further fields of the request, for endpoints only. Alpaca sent `{"logit_bias": {"50256": -100}}`, which
            forbids GPT-3's end of text and is wrong for every other tokenizer.
    """

    max_tokens: int = 3072
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ("\n20", "20.", "20.")
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < FLOOR:
            raise ConfigError.of("max_tokens", self.max_tokens, f"an integer of at least {FLOOR}")
        if not self.temperature >= 0:
            raise ConfigError.of("temperature", self.temperature, "a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError.of("top_p", self.top_p, "a number above 0 and up to 1")
        try:
            json.dumps(dict(self.extra))
        except (TypeError, ValueError):
            raise ConfigError.of("extra", self.extra, "fields of a JSON object") from None


@dataclass(frozen=True)
class Answer:
    """The continuation of one prompt. `finish_reason` is "length" if its budget was used up."""

    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Reply:
    """The answers to the prompts of one call, and the tokens they took.

    Attributes:
        answers: one for each prompt, in order; none at all if no budget was small enough (`skipped`).
        prompt_tokens, completion_tokens: of the whole call; None if the model did not say.
        max_tokens: the completion budget in the end.
        skipped: prompt and completion did not fit with a budget of `FLOOR` tokens either.
    """

    answers: tuple[Answer, ...]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    max_tokens: int | None = None
    skipped: bool = False


class Model(Protocol):
    """Something that continues prompts.

    Attributes:
        name: what journals call it.
        batch: prompts per call.
        concurrency: calls at a time.
    """

    name: str
    batch: int
    concurrency: int

    def ask(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> Reply:
        """One answer per prompt, or Overflow, Busy or EndpointError. `seed` is the call's own."""
        ...


@dataclass
class Function:
    """A model that is a function: `function(prompts, sampling)` returns a text or an `Answer` for each prompt."""

    function: Callable[[list[str], Sampling], Sequence[str | Answer]]
    name: str = "function"
    batch: int = 5
    concurrency: int = 1

    def ask(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> Reply:
        """What the function returns."""
        answers = tuple(a if isinstance(a, Answer) else Answer(a) for a in self.function(list(prompts), sampling))
        if len(answers) != len(prompts):
            raise EndpointError(
                f"{self.name} returned {len(answers)} answers to {len(prompts)} prompts; return one each."
            )
        return Reply(answers)


@dataclass(frozen=True)
class Retry:
    """When to ask a busy model again: after first * factor^n seconds, at most `longest`, times a number in [1/2, 1).

    Attributes:
        attempts: times a call is made before its run stops.
        first, factor, longest: seconds as above.
        patience: the longest wait that a model may ask for itself (Retry-After); it is waited in full.
    """

    attempts: int = 6
    first: float = 2.0
    factor: float = 2.0
    longest: float = 60.0
    patience: float = 600.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError.of("attempts", self.attempts, "an integer of at least 1")

    def wait(self, attempt: int, after: float | None, rng: random.Random) -> float:
        """Seconds until the next attempt, `attempt` having failed (0 is the first)."""
        if after is not None:
            return after * (1 + rng.random() / 10)
        return min(self.longest, self.first * self.factor**attempt) * (1 + rng.random()) / 2


def ask(
    model: Model,
    prompts: Sequence[str],
    sampling: Sampling,
    retry: Retry,
    sleep: Callable[[float], object],
    seed: int,
    waiting: Callable[[str, float], object] | None = None,
) -> Reply:
    """The model's reply to one call.

    Where prompt and budget do not fit, the budget shrinks to 80% until it would be below `FLOOR`; then the call is
    skipped. A busy model is asked again as `retry` says, and `waiting` is told why, and in how many seconds. Raises
    EndpointError when that is used up, or passes it on.
    """
    rng = random.Random(seed)
    attempt = 0
    while True:
        try:
            return replace(model.ask(prompts, sampling, seed), max_tokens=sampling.max_tokens)
        except Overflow:
            budget = int(sampling.max_tokens * 0.8)
            if budget < FLOOR:
                return Reply((), 0, 0, sampling.max_tokens, skipped=True)
            sampling = replace(sampling, max_tokens=budget)
        except Busy as busy:
            if busy.after is not None and busy.after > retry.patience:
                raise EndpointError(
                    f"{model.name} asks to wait {busy.after:.0f} s, more than {retry.patience:.0f} s ({busy}). "
                    "Run the same again later: it goes on where it stopped."
                ) from busy
            attempt += 1
            if attempt >= retry.attempts:
                raise EndpointError(
                    f"{model.name} did not answer in {retry.attempts} attempts; the last one: {busy}. "
                    "Run the same again later: it goes on where it stopped."
                ) from busy
            seconds = retry.wait(attempt - 1, busy.after, rng)
            if waiting:
                waiting(str(busy), seconds)
            sleep(seconds)
