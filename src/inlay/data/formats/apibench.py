"""Gorilla's APIBench: a question and the API call that answers it, in one text (`code`) or in two columns.

    ###Instruction: QUESTION\\n###Output: ANSWER        {'Instruction': QUESTION, 'Output': ANSWER}

With a `document` the question is followed by it, as in Gorilla's retriever-aware training: the document that a
retriever found, right or wrong, so that the model learns to judge it. Space around question and answer is taken off.
"""

from __future__ import annotations

import json

from inlay.data.chat import Chat
from inlay.data.schema import BadRow, Format, Part, Row, register
from inlay.data.templates import GORILLA, REFERENCE, question_and_answer


def _parts(row: Row, chat: Chat) -> list[Part]:
    answer = row.text("code" if "code" in row.values else "output")
    both = question_and_answer(answer)
    asked = next((name for name in ("question", "instruction") if name in row.values), None)
    if both is not None:
        question, answer = both
    elif asked is None:
        raise BadRow("code is not of the form '###Instruction: ... ###Output: ...'")
    if asked is not None:
        question = row.text(asked)
    question = question.strip()
    if row.values.get("document") is not None:
        question += REFERENCE + _document(row)
    return [Part(GORILLA.format(question=question)), Part(answer.strip(), True)]


def _document(row: Row) -> str:
    document = row.get("document")
    return row.text("document") if isinstance(document, str) else json.dumps(document, ensure_ascii=False)


APIBENCH = register(
    Format(
        "apibench",
        (
            ("code", "api_call"),
            ("question", "code"),
            ("instruction", "code"),
            ("question", "output"),
            ("instruction", "output"),
        ),
        _parts,
        optional=("document",),
        asking=lambda text: GORILLA.format(question=text),
    )
)
