"""What models are asked is what they were trained on, up to the first trained token."""

from __future__ import annotations

from typing import Any

import pytest

from inlay.comparison.questions import questions_of
from inlay.data import Chat, Format, Part, Row, known_formats, prepare, register
from inlay.errors import ConfigError, DataError
from tests.data.tokenizers import MADE

ROWS = {
    "alpaca": lambda q, a: {"instruction": q, "output": a},
    "prompt": lambda q, a: {"prompt": q, "completion": a},
    "question": lambda q, a: {"question": q, "answer": a},
    "adgen": lambda q, a: {"content": q, "summary": a},
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "apibench": lambda q, a: {"code": f"###Instruction: {q}\n###Output: {a}", "api_call": "f()"},
}


def tokenizer(name: str) -> Any:
    return MADE[name]()


@pytest.mark.parametrize("name", ["gpt2_like", "roberta_like", "llama_like", "llama_legacy"])
@pytest.mark.parametrize("format", list(ROWS))
def test_a_text_is_asked_as_the_training_data_asks(format: str, name: str) -> None:
    made = tokenizer(name)
    if format in ("messages", "sharegpt"):
        made.chat_template = tokenizer("gpt2_like").chat_template
    prepared = prepare([ROWS[format]("Name three rivers.", "Rhine, Danube")], made, format)
    (question,) = questions_of(["Name three rivers."], made, ["Rhine, Danube"], format)
    ids, trained = prepared.tokens(0)
    assert question.ids == ids[: trained.find(1)]
    assert question.row is not None
    assert question.row.ids == ids and bytes(question.row.trained) == trained
    (again,) = questions_of(prepared, made)
    assert again.ids == question.ids and again.row == question.row._replace(end=None)
    assert again.reference is not None and again.reference.strip().startswith("Rhine, Danube")
    assert question.text == again.text == "Name three rivers."


def test_every_format_can_be_asked() -> None:
    assert known_formats().keys() == {*ROWS, "text"}, "give a new format a row in ROWS"
    plain, text = (questions_of(["Name"], tokenizer("gpt2_like"), None, name) for name in ("plain", "text"))
    assert plain == text


def test_a_format_of_ones_own_brings_how_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inlay.data.schema._FORMATS", known_formats())
    made = tokenizer("gpt2_like")

    def parts(row: Row, chat: Chat) -> list[Part]:
        return [Part(f"A haiku about {row.text('theme')}:\n"), Part(row.text("poem"), True)]

    register(Format("haiku", (("theme", "poem"),), parts))
    (question,) = questions_of(["rain"], made, None, "haiku")
    assert made.decode(question.ids) == "A haiku about rain:\n" and question.text == "rain"
    register(Format("haiku", (("theme", "poem"),), parts, asking=lambda text: text.upper()))
    (question,) = questions_of(["rain"], made, None, "haiku")
    assert made.decode(question.ids) == "RAIN"


def test_of_a_row_its_own_words_are_shown() -> None:
    made = tokenizer("gpt2_like")
    rows = [
        ({"instruction": "Add.", "input": "1, 2\n3", "output": "6"}, "Add.\n1, 2\n3"),
        ({"content": "Hi", "summary": "Yes", "history": [["a", "b"]]}, "[Round 0]\n"),
        ({"instruction": "Q", "document": "D", "output": "A"}, "Q\n Use this API documentation for reference: D"),
        ({"messages": [{"role": "system", "content": "S"}, *ROWS["messages"]("q", "a")["messages"]]}, "S"),
    ]
    for row, shown in rows:
        (question,) = questions_of(prepare([row], made, "apibench" if "document" in row else "auto"), made)
        assert shown in question.text and "###" not in question.text


def test_a_conversation_is_asked_for_its_next_turn() -> None:
    made = tokenizer("gpt2_like")
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "?"},
    ]
    (question,) = questions_of([turns], made, ["No."])
    assert made.decode(question.ids).endswith("<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n")
    assert question.text == "user: Hi\nassistant: Yes.\nuser: ?"
    assert question.row is not None and question.row.ids[: len(question.ids)] == question.ids


def test_rows_without_a_reference_have_no_row() -> None:
    made = tokenizer("gpt2_like")
    with_one, without = questions_of(["a", "b"], made, ["c", None])
    assert with_one.row is not None and without.row is None


def test_what_is_refused() -> None:
    made = tokenizer("gpt2_like")
    with pytest.raises(ConfigError, match="expected a list of prompts"):
        questions_of("Name a river", made)
    with pytest.raises(ConfigError, match=r"format='alpacca' is not allowed.*Did you mean 'alpaca'"):
        questions_of(["a"], made, None, "alpacca")
    with pytest.raises(
        ConfigError, match="references='1 texts' is not allowed: expected one for each of the 2 prompts"
    ):
        questions_of(["a", "b"], made, ["c"])
    with pytest.raises(DataError, match="There are no prompts"):
        questions_of([], made)
    with pytest.raises(DataError, match="Prompt 2 cannot be asked as 'adgen': content is empty"):
        questions_of(["a", ""], made, None, "adgen")
    with pytest.raises(DataError, match="Prompt 2 is empty"):
        questions_of(["a", ""], made)
    with pytest.raises(ConfigError, match="None with a prepared data set"):
        questions_of(prepare([ROWS["prompt"]("a", "b")], made), made, ["b"])
