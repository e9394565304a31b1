"""The texts that formats put around a row's fields. A model that is trained with one is asked with the same."""

from __future__ import annotations

import re
from collections.abc import Iterable

ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

GORILLA = "###USER: {question}###ASSISTANT: "
REFERENCE = "\n Use this API documentation for reference: "
"""Stands between a question and the document that was retrieved for it."""

_APIBENCH = (
    re.compile(r"\s*###\s*Instruction:?(?P<question>.*?)###\s*Output:?(?P<answer>.*)", re.DOTALL),
    re.compile(r"\s*\{\s*'Instruction':(?P<question>.*?),\s*'Output':(?P<answer>.*)\}\s*", re.DOTALL),
)

PLAIN_CHAT = (
    "{{- bos_token or '' -}}{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{{- 'ASSISTANT: ' -}}{% generation %}{{- message.content + eos_token -}}{% endgeneration %}{{- '\n' -}}"
    "{% else %}{{- message.role | upper + ': ' + message.content + '\n' -}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{- 'ASSISTANT: ' -}}{% endif %}"
)
"""A chat template for tokenizers that have none: `USER: ...`, `ASSISTANT: ...` and the tokenizer's end token."""


def alpaca(instruction: str, input: str = "") -> str:
    """The prompt of an Alpaca row: one of two, after whether there is an input."""
    if input:
        return ALPACA_INPUT.format(instruction=instruction, input=input)
    return ALPACA_NO_INPUT.format(instruction=instruction)


def chatglm_rounds(query: str, history: Iterable[tuple[str, str]]) -> str:
    """The prompt of ChatGLM for a query that follows rounds of question and answer; rounds are counted from 0."""
    rounds = [f"[Round {i}]\n问：{question}\n答：{answer}\n" for i, (question, answer) in enumerate(history)]  # noqa: RUF001
    return "".join(rounds) + f"[Round {len(rounds)}]\n问：{query}\n答："  # noqa: RUF001


def question_and_answer(code: str) -> tuple[str, str] | None:
    """Question and answer out of APIBench's one text, without the space around them; None if it is of neither form."""
    match = next((m for m in (form.fullmatch(code) for form in _APIBENCH) if m), None)
    return None if match is None else (match["question"].strip(), match["answer"].strip())
