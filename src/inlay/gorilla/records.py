"""What Gorilla's files hold, read and checked: API databases, questions, responses and APIBench rows.

All are JSON lines in UTF-8, and may be whatever else `inlay.data.read` reads, a list of dicts too. Every function
raises MissingFileError or CorruptFileError where there is no such file or it cannot be read, and DataError with the
number of each faulty row (of JSON lines, the line's) and what is wrong with it.

- **API database**, one record a line: `domain`, `framework`, `functionality`, `api_name`, `api_call`, `api_arguments`,
  `python_environment_requirements`, `example_code`, `performance`, `description`. A record stays the dict it is, in
  the order of its keys, because BM25 ranks `str(record)`. `domain` and `api_call` must be there, the rest may not.
- **questions**: `{"question_id": 1, "text": ..., "category": ...}`.
- **responses** of a model: `{"question_id": 1, "text": ..., "model_id": ..., ...}`.
- **APIBench** (`*_train.json`, `*_eval.json`): `{"code": ..., "api_call": ..., "provider": ..., "api_data": record}`,
  with question and answer in one text, `###Instruction: Q\\n###Output: A` or `{'Instruction': Q, 'Output': A}`.

Question n of a database belongs to row n of its eval file: ids count from 1, and some rows have no question. The
public questions are escaped twice ("\\\\n" for a line break) and stay so; `examples[n - 1].question` is the clean text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from inlay.data import BadRow, read
from inlay.data.templates import question_and_answer
from inlay.errors import DataError

Record = dict[str, Any]
"""One API, as the database has it."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Question:
    """What a model is asked. `id` counts the rows of the eval file from 1."""

    id: int
    text: str
    category: str = ""


@dataclass(frozen=True)
class Response:
    """What a model answered to question `question_id`."""

    question_id: int
    text: str
    model_id: str = ""


@dataclass(frozen=True)
class Example:
    """A row of APIBench: a question, its answer, and the API record that the answer was written from.

    `answer` is empty where the row was cut off before its end, as a few of the published ones are. Such a row still
    scores responses, which takes its record alone; training rows leave it out.
    """

    question: str
    answer: str
    api_call: str
    provider: str
    api: Record


def read_apis(source: Any) -> list[Record]:
    """The records of an API database. For what is raised, see the module."""
    return _read(source, _api)


def read_questions(source: Any) -> list[Question]:
    """The questions of a file. For what is raised, see the module."""
    return _read(source, lambda row: Question(_id(row), _text(row, "text"), _text(row, "category", required=False)))


def read_responses(source: Any) -> list[Response]:
    """A model's responses. For what is raised, see the module."""
    return _read(source, lambda row: Response(_id(row), _text(row, "text"), _text(row, "model_id", required=False)))


def read_examples(source: Any) -> list[Example]:
    """The rows of an APIBench file, at their places: row i answers question i + 1. For what is raised, see the module.

    A row without an answer is not faulty.
    """
    return _read(source, _example)


def _read(source: Any, parse: Callable[[Mapping[str, Any]], _T]) -> list[_T]:
    found = read(source)
    rows, faults = [], []
    for number, row in found.rows:
        try:
            if isinstance(row, BadRow):
                raise row
            rows.append(parse(row))
        except BadRow as fault:
            faults.append(f"row {number}: {fault}")
    if faults:
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        listed = "\n  ".join(faults[:5])
        raise DataError(
            f"'{found.name}': {len(faults)} of {len(rows) + len(faults)} rows are faulty:\n  {listed}{more}"
        )
    return rows


def _api(row: Mapping[str, Any], where: str = "") -> Record:
    _text(row, "domain", where=where)
    _text(row, "api_call", where=where)
    return dict(row)


def _example(row: Mapping[str, Any]) -> Example:
    code = _text(row, "code")
    both = question_and_answer(code)
    if both is None and "Instruction" in code[:20]:  # cut off before the output, or inside of it
        both = code.partition("Instruction")[2].partition(", 'Output'")[0].lstrip("':").strip(), ""
    if both is None:
        raise BadRow("'code' is neither '###Instruction: ...' with '###Output: ...' nor {'Instruction': ...}")
    api = row.get("api_data")
    if not isinstance(api, Mapping):
        raise BadRow(f"'api_data' is {api!r:.80}, expected an API record")
    return Example(*both, _text(row, "api_call"), _text(row, "provider", required=False), _api(api, "api_data."))


def _id(row: Mapping[str, Any]) -> int:
    value = row.get("question_id")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRow(f"'question_id' is {value!r:.80}, expected an integer of at least 1")
    return value


def _text(row: Mapping[str, Any], key: str, required: bool = True, where: str = "") -> str:
    value = row.get(key, None if required else "")
    if not isinstance(value, str) or (required and not value.strip()):
        raise BadRow(f"'{where}{key}' is {value!r:.80}, expected text" if key in row else f"'{where}{key}' is missing")
    return value
