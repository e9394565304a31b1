"""Gorilla's files, read: the public ones in full, and what is said about faulty lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.errors import CorruptFileError, DataError, MissingFileError
from inlay.gorilla import Question, Response, read_apis, read_examples, read_questions, read_responses
from tests.gorilla.apis import DATA, api, needs_data, write


@needs_data
@pytest.mark.parametrize(
    ("hub", "eval_name", "apis", "rows", "questions", "unanswered"),
    [
        ("huggingface", "huggingface", 936, 911, 904, [339, 414, 425, 800]),
        ("tensorflowhub", "tensorflow", 696, 688, 685, [516]),
        ("torchhub", "torchhub", 94, 186, 186, []),
    ],
)
def test_the_public_files(
    hub: str, eval_name: str, apis: int, rows: int, questions: int, unanswered: list[int]
) -> None:
    records = read_apis(DATA / "api" / f"{hub}_api.jsonl")
    first = (DATA / "api" / f"{hub}_api.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert len(records) == apis and records[0] == json.loads(first) and next(iter(records[0])) == "domain"
    examples = read_examples(DATA / f"{eval_name}_eval.json")
    assert len(examples) == rows and all(e.question and e.api["domain"] and e.api_call for e in examples)
    assert [i for i, e in enumerate(examples, start=1) if not e.answer] == unanswered
    asked = read_questions(DATA / "questions" / f"{hub}_0_shot.jsonl")
    assert len(asked) == questions and max(q.id for q in asked) == rows
    for question in asked:  # question n is that of row n, its text escaped twice
        start = question.text.partition("\\")[0].strip()
        assert examples[question.id - 1].question.startswith(start)
    for kind in ("FT_0_shot", "RT_bm25"):
        assert len(read_responses(DATA / "responses" / f"{hub}_{kind}.jsonl")) == questions


@needs_data
def test_the_public_training_rows() -> None:
    examples = read_examples(DATA / "torchhub_train.json")
    assert len(examples) == 837 and [i for i, e in enumerate(examples, start=1) if not e.answer] == [397]
    assert examples[0].question.startswith("I need an API that can estimate the relative depth of objects")
    assert examples[0].answer.startswith("{'domain': 'Classification', 'api_call':") and examples[0].answer[-2:] == "'}"
    assert examples[396].question.endswith("for this purpose.")


def code(text: str) -> dict[str, object]:
    return {"code": text, "api_call": "f('x')", "provider": "Hub", "api_data": api("f('x')")}


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("###Instruction: Do it.\n###Output: f('x')\n###Output: more\n", "Do it.", "f('x')\n###Output: more"),
        ("### Instruction: Do\nit.\n### Output: f('x')", "Do\nit.", "f('x')"),
        ("{'Instruction': Do it., 'Output': {'api_call': 'f()'}}\n", "Do it.", "{'api_call': 'f()'}"),
        ("{'Instruction': \"Do it.\", 'Output': 'f()'}", '"Do it."', "'f()'"),
        ("###Instruction: Do it.", "Do it.", ""),
        ("{'Instruction': Do it., 'Output': {'api_c", "Do it.", ""),
    ],
)
def test_question_and_answer_are_taken_apart(tmp_path: Path, text: str, question: str, answer: str) -> None:
    (row,) = read_examples(write(tmp_path / "a.json", [code(text)]))
    assert (row.question, row.answer) == (question, answer)
    assert (row.api_call, row.provider, row.api) == ("f('x')", "Hub", api("f('x')"))


def test_questions_and_responses(tmp_path: Path) -> None:
    rows = [{"question_id": 3, "text": " Do it.\\n", "category": "generic"}, {"question_id": 4, "text": "And?"}]
    path = write(tmp_path / "a.jsonl", rows)
    assert read_questions(path) == [Question(3, " Do it.\\n", "generic"), Question(4, "And?")]
    path.write_text("\ufeff" + path.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    assert [r.id for r in read_questions(path)] == [3, 4]
    path = write(tmp_path / "a.jsonl", [{"question_id": 1, "text": "f()", "model_id": "m", "metadata": {}}])
    assert read_responses(path) == [Response(1, "f()", "m")]


def test_every_faulty_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "apis.jsonl"
    good = json.dumps(api("f('x')"))
    path.write_text(f'{good}\n{{"domain": 1}}\n\n[1]\n{good}\n{{"domain": "x"\n{{"domain": "x"}}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_apis(path)
    message = str(caught.value)
    assert message.startswith(f"'{path}': 4 of 6 rows are faulty:\n  row 2: 'domain' is 1, expected text\n  row 4: ")
    assert "row 6: the line is not JSON" in message and message.endswith("row 7: 'api_call' is missing")
    path.write_text("x\n" * 9, encoding="utf-8")
    with pytest.raises(DataError, match=r"9 of 9 rows are faulty:[\s\S]*row 5:[\s\S]*and 4 more$"):
        read_apis(path)


def test_a_list_does_too() -> None:
    assert read_apis([api("f('x')"), api("g('y')")]) == [api("f('x')"), api("g('y')")]
    with pytest.raises(DataError, match="'list': 1 of 2 rows are faulty:\n  row 2: 'domain' is None"):
        read_apis([api("f('x')"), {"domain": None}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 0, "text": "x"}, "'question_id' is 0, expected an integer of at least 1"),
        ({"question_id": True, "text": "x"}, "'question_id' is True"),
        ({"text": "x"}, "'question_id' is None"),
        ({"question_id": 1}, "'text' is missing"),
        ({"question_id": 1, "text": " "}, "'text' is ' ', expected text"),
        ({"question_id": 1, "text": "x", "category": 3}, "'category' is 3"),
    ],
)
def test_faulty_questions(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=f"row 1: {message}"):
        read_questions(write(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**code("###Instruction: q\n###Output: a"), "api_data": None}, "'api_data' is None, expected an API record"),
        ({**code("###Instruction: q\n###Output: a"), "api_data": {}}, "'api_data.domain' is missing"),
        (code("Do it."), "'code' is neither '###Instruction: "),
    ],
)
def test_faulty_examples(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=f"row 1: {message}"):
        read_examples(write(tmp_path / "a.jsonl", [row]))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"There is no file '.*nowhere\.jsonl'"):
        read_apis(tmp_path / "nowhere.jsonl")
    (tmp_path / "a.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(CorruptFileError, match="has no rows"):
        read_apis(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="row 1: the line is not UTF-8"):
        read_apis(tmp_path / "b.jsonl")
