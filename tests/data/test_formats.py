# ruff: noqa: RUF001  (Chinese punctuation is data here)
"""What each format makes of its rows, and how it is found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inlay.data import BadRow, Chat, Format, Part, Row, known_formats, prepare, register
from inlay.data.schema import _FORMATS, choose
from inlay.data.templates import ALPACA_INPUT, ALPACA_NO_INPUT
from inlay.errors import DataError

from .tokenizers import gpt2_like


def parts(name: str, row: dict[str, Any], columns: list[str] | None = None) -> list[Part]:
    return known_formats()[name].parts(Row(row, frozenset(columns or row)), Chat(gpt2_like()))


def texts(name: str, row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer."""
    (prompt, off), (answer, on) = parts(name, row)
    assert (off, on) == (False, True)
    return prompt, answer


def test_alpaca() -> None:
    prompt, answer = texts("alpaca", {"instruction": "Add {x}.", "input": "1, 2", "output": "3"})
    assert answer == "3"
    assert prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {x}.\n\n### Input:\n1, 2\n\n### Response:"
    )
    for row in ({"input": ""}, {}, {"input": None}):
        prompt, answer = texts("alpaca", {"instruction": "Go.", "output": "", **row})
        assert answer == "" and prompt == (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\nGo.\n\n### Response:"
        )
    assert ALPACA_INPUT != ALPACA_NO_INPUT


def test_alpacas_seed_tasks() -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}, {"input": "", "output": "no"}]}
    assert texts("alpaca", row) == texts("alpaca", {"instruction": "Add.", "input": "1, 2", "output": "3"})
    with pytest.raises(BadRow, match=r"^instances is not a list of objects with input and output$"):
        parts("alpaca", {"instruction": "Add.", "instances": []})


def test_adgen() -> None:
    assert texts("adgen", {"content": "类型#裙", "summary": "好看"}) == ("类型#裙", "好看")
    row = {"content": "再见", "summary": "再见！", "history": [["你好", "你好！"], ["谢谢", "不客气"]]}
    assert texts("adgen", row)[0] == (
        "[Round 0]\n问：你好\n答：你好！\n[Round 1]\n问：谢谢\n答：不客气\n[Round 2]\n问：再见\n答："
    )
    assert texts("adgen", {"content": "你好", "summary": "你好！", "history": []})[0] == "[Round 0]\n问：你好\n答："
    without = parts("adgen", {"content": "你好", "summary": "你好！"}, ["content", "summary", "history"])
    assert without[0].text == "[Round 0]\n问：你好\n答：", "the data set has a history, this row's is empty"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"content": "", "summary": "b"}, "content is empty"),
        ({"content": "a", "summary": ""}, "summary is empty"),
        ({"content": "a", "summary": None}, "summary is null"),
        ({"content": "a", "summary": "b", "history": "x"}, "history is not a list of [question, answer] pairs"),
        ({"content": "a", "summary": "b", "history": [["x"]]}, "history is not a list of [question, answer] pairs"),
        ({"content": "a", "summary": "b", "history": [["x", 1]]}, "an answer of history is int, expected text"),
    ],
)
def test_bad_adgen_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as error:
        parts("adgen", row)
    assert str(error.value) == reason


def test_apibench() -> None:
    code = "###Instruction: Find an API.\n###Output: <<<domain>>>: Vision\n<<<api_call>>>: load('x')\n"
    row = {"code": code, "api_call": "load('x')", "provider": "P", "api_data": {"domain": "Vision"}}
    expected = ("###USER: Find an API.###ASSISTANT: ", "<<<domain>>>: Vision\n<<<api_call>>>: load('x')")
    assert texts("apibench", row) == expected
    torch_hub = "{'Instruction': Find an API., 'Output': {'domain': 'Vision', 'code': 'x'}}"
    assert texts("apibench", {"code": torch_hub, "api_call": "x"}) == (
        "###USER: Find an API.###ASSISTANT: ",
        "{'domain': 'Vision', 'code': 'x'}",
    )
    assert texts("apibench", {"question": " Find an API.\n", "code": "load('x')"}) == (expected[0], "load('x')")
    assert texts("apibench", {"instruction": "Find an API.", "output": "load('x')"}) == (expected[0], "load('x')")


def test_apibench_with_what_was_retrieved() -> None:
    record = {"domain": "Vision", "api_call": "load('ü')"}
    row = {"question": "Find an API.", "code": "load('ü')", "document": record}
    prompt = (
        "###USER: Find an API.\n Use this API documentation for reference: "
        '{"domain": "Vision", "api_call": "load(\'ü\')"}###ASSISTANT: '
    )
    assert texts("apibench", row)[0] == prompt
    assert texts("apibench", {**row, "document": json.dumps(record, ensure_ascii=False)})[0] == prompt
    assert texts("apibench", {**row, "document": None})[0] == "###USER: Find an API.###ASSISTANT: "


def test_a_cut_off_apibench_row() -> None:
    with pytest.raises(BadRow, match=r"^code is not of the form '###Instruction"):
        parts("apibench", {"code": "###Instruction: Find", "api_call": "x"})


def test_plain_formats() -> None:
    assert texts("prompt", {"prompt": "a", "completion": "b"}) == ("a", "b")
    assert texts("prompt", {"prompt": "a", "response": "b"}) == ("a", "b")
    assert texts("prompt", {"input": "a", "output": "b"}) == ("a", "b")
    assert texts("question", {"question": "a?", "answer": "b"}) == ("a?\n", "b")
    assert parts("text", {"text": "a"}) == [("a", True)]


# --- detection ---


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["instruction", "input", "output"], "alpaca"),
        (["instruction", "output"], "alpaca"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["id", "name", "instruction", "instances", "is_classification"], "alpaca"),
        (["content", "summary"], "adgen"),
        (["content", "summary", "history"], "adgen"),
        (["code", "api_call", "provider", "api_data"], "apibench"),
        (["question", "code", "document"], "apibench"),
        (["messages"], "messages"),
        (["prompt", "prompt_id", "messages"], "messages"),
        (["id", "conversations"], "sharegpt"),
        (["prompt", "completion"], "prompt"),
        (["input", "output"], "prompt"),
        (["question", "answer"], "question"),
        (["text"], "text"),
        (["text", "label"], "text"),
    ],
)
def test_found_by_the_columns(columns: list[str], name: str) -> None:
    assert choose("auto", columns).name == name


def test_none_fits() -> None:
    with pytest.raises(DataError) as error:
        choose("auto", ["act", "prompt"])
    text = str(error.value)
    assert "No known format fits the data. Its columns are ['act', 'prompt']. Rename columns with columns=" in text
    assert "alpaca: instruction, output | instruction, instances [, input]" in text
    assert all(f"\n  {name}: " in text for name in known_formats())


def test_more_than_one_fits() -> None:
    with pytest.raises(DataError) as error:
        choose("auto", ["messages", "prompt", "completion"])
    assert "could be in more than one format. Its columns are ['messages', 'prompt', 'completion']" in str(error.value)
    assert str(error.value).endswith("Say which: format='prompt' or 'messages'.")
    assert choose("messages", ["messages", "prompt", "completion"]).name == "messages"


def test_an_unknown_format_and_a_wrong_one() -> None:
    with pytest.raises(DataError, match=r"format='alpacca' is not known: .*Did you mean 'alpaca'"):
        choose("alpacca", ["instruction"])
    with pytest.raises(
        DataError, match=r"The data is not in the format adgen: content, summary \[, history\]. Its col"
    ):
        choose("adgen", ["instruction", "output"])


def test_columns_are_renamed() -> None:
    rows = [{"act": "Poet", "prompt": "Be a poet.", "for_devs": "FALSE"}]
    prepared = prepare(rows, gpt2_like(), columns={"prompt": "act", "completion": "prompt"})
    same = prepare([{"prompt": "Poet", "completion": "Be a poet."}], gpt2_like())
    assert prepared.report.format == "prompt" and prepared[0] == same[0]


def test_a_format_of_ones_own() -> None:
    haiku = Format("haiku", (("theme", "poem"),), lambda r, _: [Part(r.text("theme")), Part(r.text("poem"), True)])
    rows = [{"theme": "frog ", "poem": "splash"}]
    try:
        assert register(haiku) is haiku
        found = prepare(rows, gpt2_like())
        assert found.report.format == "haiku" and found.report.detected
    finally:
        del _FORMATS["haiku"]
    given = prepare(rows, gpt2_like(), haiku)
    assert given[0] == found[0] and not given.report.detected
