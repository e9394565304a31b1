"""What a model is shown: a question alone, with API documentation, or among documents as RAFT has it.

The instruction is the same text in training rows (`inlay.gorilla.rows`) and at inference (`Retriever.prompt`).

    plain        question
    retrieval    question + "\\n Use this API documentation for reference: " + documents
    RAFT         <DOCUMENT>document</DOCUMENT> for each, then the question

A document is its record as JSON, several stand on lines of their own. (Gorilla shows JSON only where it gives the
right record; what its retrievers find it shows as the `str()` of a list of objects, with the same record inside.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from inlay.data.templates import REFERENCE
from inlay.errors import ConfigError
from inlay.gorilla.records import Record

ANSWER = "<ANSWER>: "
"""What RAFT puts before an answer."""


def document(record: Record) -> str:
    """A record as a model sees it: JSON, with its keys in their order."""
    return json.dumps(record, ensure_ascii=False)


def with_reference(question: str, records: Sequence[Record]) -> str:
    """The question, followed by the documentation of `records`; with none, the question alone."""
    return question + REFERENCE + "\n".join(map(document, records)) if records else question


def among_documents(question: str, records: Sequence[Record]) -> str:
    """RAFT's instruction: every record in <DOCUMENT> tags, in the order given, then the question."""
    return "".join(f"<DOCUMENT>{document(record)}</DOCUMENT>\n" for record in records) + question


def filled(template: str, instruction: str) -> str:
    """`template` with the instruction in the place of "{question}". Raises ConfigError if there is no such place."""
    if "{question}" not in template:
        raise ConfigError.of("template", template, "a text with {question} in it")
    return template.replace("{question}", instruction)
