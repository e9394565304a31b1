"""Training rows from APIBench: `{"instruction", "input", "output"}`, which `inlay.data` reads.

    zero_shot    the question alone
    oracle       with the documentation that its answer was written from
    retrieved    with what a retriever finds, right or wrong: a model learns to judge what it is shown
    raft         the right document among others, as RAFT has it

Rows without an answer are left out, with a warning that names them. For rows in the very prompt of Gorilla's own models
(`{"prompt", "completion"}`), pass them through `as_prompts`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Sequence

from inlay.data.templates import GORILLA
from inlay.errors import ConfigError, InlayWarning
from inlay.gorilla.prompt import ANSWER, among_documents, filled, with_reference
from inlay.gorilla.records import Example, Record
from inlay.gorilla.retriever import Retriever

Row = dict[str, str]


def zero_shot(examples: Sequence[Example]) -> list[Row]:
    """The question as the instruction, the answer as the output."""
    return [_row(e.question, e.answer) for _, e in _answered(examples)]


def oracle(examples: Sequence[Example]) -> list[Row]:
    """The question with the documentation of the very API that answers it."""
    return [_row(with_reference(e.question, [e.api]), e.answer) for _, e in _answered(examples)]


def retrieved(examples: Sequence[Example], retriever: Retriever, k: int = 1) -> list[Row]:
    """The question with the `k` records that `retriever` finds: the text of `retriever.instruction(question, k)`."""
    answered = [e for _, e in _answered(examples)]
    shown = retriever.instructions([e.question for e in answered], k)
    return [_row(instruction, e.answer) for e, instruction in zip(answered, shown, strict=True)]


def raft(
    examples: Sequence[Example], records: Sequence[Record], distractors: int = 3, p: float = 1.0, seed: int = 0
) -> list[Row]:
    """RAFT: the oracle's document and `distractors` others, shuffled, before the question.

    "<ANSWER>: " stands before the answer. The others are drawn without repetition from the records that make other API
    calls. With probability 1 - p a row has one more of them in the oracle's place, so that the model also learns to
    answer without it. A row's draw depends on `seed` and its place alone.

    Raises ConfigError if p is not in [0, 1], or there are fewer records than documents to show.
    """
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ConfigError.of("p", p, "a probability from 0 to 1")
    if isinstance(distractors, bool) or not isinstance(distractors, int) or distractors < 0:
        raise ConfigError.of("distractors", distractors, "an integer of at least 0")
    rows = []
    for place, example in _answered(examples):
        draw = random.Random(f"{seed}:{place}")
        others = [r for r in records if r["api_call"] != example.api["api_call"]]
        shown = [example.api] if draw.random() < p else []
        needed = distractors + 1 - len(shown)
        if len(others) < needed:
            raise ConfigError.of("distractors", distractors, f"at most {len(others)}, the records of other API calls")
        shown += draw.sample(others, needed)
        draw.shuffle(shown)
        rows.append(_row(among_documents(example.question, shown), ANSWER + example.answer))
    return rows


def as_prompts(rows: Iterable[Row], template: str = GORILLA) -> list[Row]:
    """The same rows as prompt and completion, each instruction in `template`, as `Retriever.prompt` has it."""
    return [{"prompt": filled(template, r["instruction"]), "completion": r["output"]} for r in rows]


def _row(instruction: str, output: str) -> Row:
    return {"instruction": instruction, "input": "", "output": output}


def _answered(examples: Sequence[Example]) -> list[tuple[int, Example]]:
    without = [str(i) for i, e in enumerate(examples, start=1) if not e.answer]
    if without:
        listed = ", ".join(without[:10]) + (", ..." if len(without) > 10 else "")
        warnings.warn(
            f"{len(without)} of {len(examples)} rows have no answer and were left out: {listed}", InlayWarning, 3
        )
    return [(i, e) for i, e in enumerate(examples) if e.answer]
