"""What a model says: texts it writes, and losses on texts it is given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from inlay.comparison.questions import Question
from inlay.data import IGNORE_INDEX, Collator, Tokens
from inlay.errors import ConfigError, DataError


@dataclass(frozen=True)
class Decoding:
    """How texts are written.

    Attributes:
        max_new_tokens: the longest answer.
        temperature: 0 takes the likeliest token; above it tokens are drawn from softmax(logits / temperature).
        top_p: draws from the likeliest tokens that have this much probability together.
        seed: row i is drawn with seed + i, so that one row of two models sees the same draws.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ConfigError.of("max_new_tokens", self.max_new_tokens, "a positive integer")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError.of("temperature", self.temperature, "0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise ConfigError.of("top_p", self.top_p, "a number above 0 and up to 1")

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of transformers' `generate`."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False, "num_beams": 1}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0, "num_beams": 1}
        return {"max_new_tokens": self.max_new_tokens, **drawn}


class Loss(NamedTuple):
    """Negative log-likelihood in nats, summed over tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float | None:
        """Per token; None of no tokens."""
        return self.total / self.tokens if self.tokens else None


def check_model(model: Any) -> None:
    """Raises ConfigError unless it is a causal language model that can generate."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "generate"):
        raise ConfigError.of("model", type(model).__name__, "a causal language model of transformers")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; afterwards every module is in the mode that it was in."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before.items():
            module.training = training


def write(
    model: Any,
    questions: Sequence[Question],
    tokenizer: Any,
    decoding: Decoding,
    batch_size: int = 1,
    streamer: Any = None,
) -> list[str]:
    """The model's answers. Greedy ones are written `batch_size` at a time, drawn ones singly, each with its seed.

    `streamer`, of transformers, hears an answer token by token: it needs a batch size of 1.
    """
    for number, question in enumerate(questions, 1):
        if not question.ids:
            raise DataError(f"Row {number} has no prompt: all of it is trained, so there is nothing to ask.")
    arguments = {**decoding.arguments, **_ends(model, tokenizer), "streamer": streamer}
    greedy = decoding.temperature == 0
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].ids)) if greedy else range(len(questions))
    texts = [""] * len(questions)
    device = next(model.parameters()).device
    collate = Collator.of(tokenizer, side="left")
    with evaluating(model), _own_randomness(device):
        for chosen in _batches(order, batch_size if greedy else 1):
            batch = collate([{"input_ids": q.ids, "labels": q.ids} for q in (questions[i] for i in chosen)])
            torch.manual_seed(decoding.seed + chosen[0])
            ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            out = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=collate.pad_token_id, **arguments)
            written = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(chosen, written, strict=True):
                texts[i] = text
    return texts


def losses(model: Any, rows: Sequence[Tokens], tokenizer: Any, batch_size: int = 1) -> list[Loss]:
    r"""Of every row, with t over its trained tokens: $-\sum_t \log p(x_t | x_{<t})$, computed in float32.

    A token without one before it has no probability and is not counted.
    """
    found: list[Loss] = [Loss(0.0, 0)] * len(rows)
    device = next(model.parameters()).device
    collate = Collator.of(tokenizer)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with evaluating(model):
        for chosen in _batches(order, batch_size):
            batch = collate([{"input_ids": rows[i].ids, "labels": rows[i].labels} for i in chosen])
            ids, labels = batch["input_ids"].to(device), batch["labels"][:, 1:].to(device)
            logits = model(input_ids=ids, attention_mask=batch["attention_mask"].to(device), use_cache=False).logits
            logits = logits[:, -ids.shape[1] :][:, :-1]  # virtual tokens, where there are any, come first
            at = labels != IGNORE_INDEX
            nll = torch.zeros(labels.shape, dtype=torch.float64)
            each = nn.functional.cross_entropy(logits[at].float(), labels[at], reduction="none")
            nll[at.cpu()] = each.double().cpu()
            for i, total, count in zip(chosen, nll.sum(1).tolist(), at.sum(1).tolist(), strict=True):
                found[i] = Loss(total, count)
    return found


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    if not isinstance(size, int) or size < 1:
        raise ConfigError.of("batch_size", size, "a positive integer")
    return (order[start : start + size] for start in range(0, len(order), size))


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _ends(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The tokens to stop at: the model's own, and the tokenizer's end token, which training teaches."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    known = given if isinstance(given, list) else [given]
    ends = dict.fromkeys(end for end in (*known, getattr(tokenizer, "eos_token_id", None)) if end is not None)
    return {"eos_token_id": list(ends)} if ends else {}
