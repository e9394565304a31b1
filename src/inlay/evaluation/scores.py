"""`evaluate`: a model on a prepared data set."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from inlay.comparison.answers import Decoding, check_model, losses, write
from inlay.comparison.questions import questions_of
from inlay.data import Prepared
from inlay.errors import ConfigError, DataError, did_you_mean
from inlay.evaluation.metrics import METRICS


class Prediction(NamedTuple):
    """What a model wrote for a row, and what the row has."""

    prediction: str
    reference: str
    prompt: str = ""


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on a data set.

    Attributes:
        rows, tokens: how many rows, and trained tokens with a probability, the loss is of.
        loss: the mean negative log-likelihood of a token, in nats.
        scores: what the metrics on texts gave.
        predictions: the texts, one a row; empty without such metrics.
    """

    rows: int
    tokens: int
    loss: float
    scores: dict[str, float] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        """e^loss."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def numbers(self) -> dict[str, float]:
        """Loss, perplexity, and the scores."""
        return {"loss": self.loss, "perplexity": self.perplexity, **self.scores}

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for files."""
        return {"rows": self.rows, "tokens": self.tokens, **self.numbers}

    def __str__(self) -> str:
        head = f"{self.rows} rows, {self.tokens} tokens"
        return "\n".join([head, *(f"  {name:<12} {value:.4f}" for name, value in self.numbers.items())])

    def save_predictions(self, path: str | Path) -> None:
        """Writes ChatGLM's `generated_predictions.txt`: a JSON object {"labels", "predict"} a line."""
        lines = ({"labels": p.reference, "predict": p.prediction} for p in self.predictions)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        Path(path).write_text(text, encoding="utf-8")


def evaluate(
    model: Any,
    data: Prepared,
    tokenizer: Any,
    metrics: Sequence[str] = (),
    *,
    decoding: Decoding | None = None,
    batch_size: int = 8,
) -> Evaluation:
    """Loss and perplexity on the trained tokens of `data`, and metrics on the texts that the model writes.

    A row's prompt is what stands before its first trained token, its reference the trained tokens that follow. The loss
    is the mean over all tokens, not over rows. The model's mode and the random state are as before afterwards.

    Args:
        metrics: names of metrics on texts ("exact", "rouge", "bleu", "chatglm"); none, and nothing is written.
        decoding: greedy with 64 new tokens if not given.

    Raises:
        ConfigError: no causal language model, or an unknown metric.
        DataError: there are no rows, no token of them has a probability, or a row has no prompt to ask.
        MissingExtraError: a metric needs a package that is not installed.
    """
    check_model(model)
    wanted = check_metrics(metrics)
    if not len(data):
        raise DataError("The data set has no rows to evaluate on.")
    questions = questions_of(data, tokenizer)
    found = losses(model, [q.row for q in questions if q.row is not None], tokenizer, batch_size)
    tokens = sum(loss.tokens for loss in found)
    if not tokens:
        raise DataError("No token of the data set has one before it, so there is no loss.")
    scores: dict[str, float] = {}
    predictions: list[Prediction] = []
    if wanted:
        texts = write(model, questions, tokenizer, decoding or Decoding(), batch_size)
        predictions = [Prediction(text, q.reference or "", q.text) for text, q in zip(texts, questions, strict=True)]
        for name in wanted:
            scores |= METRICS[name](texts, [p.reference for p in predictions])
    return Evaluation(len(data), tokens, math.fsum(loss.total for loss in found) / tokens, scores, predictions)


def check_metrics(metrics: str | Sequence[str]) -> list[str]:
    """The names. Raises ConfigError for one that is not known, MissingExtraError if a package that it needs is not."""
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in wanted:
        if name not in METRICS:
            raise ConfigError.of("metrics", name, f"names of {sorted(METRICS)}", did_you_mean(name, METRICS).strip())
    for name in wanted:
        METRICS[name](["a"], ["a"])  # so that a package that is not there is missed now, not after an hour
    return wanted
