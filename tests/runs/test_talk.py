"""Talking: what is heard is the answer, what was said before is put again, and what does not fit is forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inlay.comparison import Decoding
from inlay.comparison.answers import write
from inlay.comparison.questions import questions_of
from inlay.errors import DataError
from inlay.runs.run import Run
from inlay.runs.talk import Talk, talks
from tests.comparison.lm import TOKENIZER, base, view
from tests.runs import runs

SHORT, LONG = Decoding(max_new_tokens=8), Decoding(max_new_tokens=90)


def wanted(model: Any, asked: Any, decoding: Decoding = SHORT, format: str = "plain") -> str:
    (text,) = write(model, questions_of([asked], TOKENIZER, format=format), TOKENIZER, decoding)
    return text


def test_what_is_heard_is_the_answer() -> None:
    model, heard = view(), list[str]()
    answer = Talk(model, TOKENIZER, "messages", LONG).ask("Count", heard.append)
    assert "".join(heard) == answer == wanted(model, [{"role": "user", "content": "Count"}], LONG) and len(heard) > 2


def test_a_model_of_conversations_is_given_what_was_said() -> None:
    model = view()
    talk = Talk(model, TOKENIZER, "messages", SHORT)
    first = talk.ask("Count")
    turns = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": first}]
    assert talk.messages == turns and first == wanted(model, turns[:1])
    assert talk.ask("On") == wanted(model, [*turns, {"role": "user", "content": "On"}]) != wanted(model, "On")
    talk.reset()
    assert talk.ask("Count") == first and len(talk.messages) == 2


@pytest.mark.parametrize(("format", "remembers"), [("alpaca", False), ("messages", True), ("plain", True)])
def test_who_remembers(format: str, remembers: bool) -> None:
    talk = Talk(view(), TOKENIZER, format, SHORT)
    assert talk.remembers == remembers  # a model trained on nothing known has the tokenizer's chat template
    first = talk.ask("Count")
    assert (talk.ask("Count") == first) == (not remembers)


def test_each_answer_is_drawn_with_a_seed_of_its_own() -> None:
    model, drawn = view(), Decoding(8, temperature=1.0, seed=3)
    talk = Talk(model, TOKENIZER, "alpaca", drawn)
    answers = [talk.ask("Count") for _ in range(3)]
    assert answers == [wanted(model, "Count", Decoding(8, 1.0, seed=3 + i), "alpaca") for i in range(3)]
    assert len(set(answers)) == 3
    talk.reset()
    assert talk.ask("Count") == answers[0]


def test_ctrl_c_keeps_what_was_heard_and_the_talk_goes_on() -> None:
    model, heard = view(), list[str]()

    def hear(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 2:
            raise KeyboardInterrupt

    talk = Talk(model, TOKENIZER, "messages", LONG)
    answer = talk.ask("Count", hear)
    whole = wanted(model, [{"role": "user", "content": "Count"}], LONG)
    assert answer == "".join(heard) and whole.startswith(answer) and len(answer) < len(whole)
    assert talk.messages[-1] == {"role": "assistant", "content": answer}
    assert talk.ask("On")


def test_the_oldest_turns_are_forgotten_when_there_is_no_room() -> None:
    model, said = base(), list[str]()
    model.config.max_position_embeddings = 70
    talk = Talk(model, TOKENIZER, "messages", SHORT, "mine")
    for i in range(6):
        talk.ask(f"Count to {i}", say=said.append)
    assert said and said[0] == "'mine' reads 70 tokens: its first 1 turns are forgotten."
    assert talk.messages[-2]["content"] == "Count to 5" and 2 < len(talk.messages) < 12
    assert talk.messages[0]["role"] == "user"


def test_a_question_that_is_too_long_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base()
    model.config.max_position_embeddings = 40
    talk = Talk(model, TOKENIZER, "messages", SHORT, "mine")
    with pytest.raises(DataError, match=r"The question has \d+ tokens, and at most 32 are allowed: 'mine' reads 40"):
        talk.ask("Count " * 50)
    assert talk.messages == [] and talk.ask("Hi")
    seen: list[tuple[int, int]] = []

    def writing(model: Any, questions: Any, tokenizer: Any, decoding: Decoding, **options: Any) -> list[str]:
        seen.append((len(questions[0].ids), decoding.max_new_tokens))
        return [""]

    monkeypatch.setattr("inlay.runs.talk.write", writing)
    Talk(model, TOKENIZER, "plain", Decoding(max_new_tokens=1000), "mine").ask("Hi")  # half is kept for the answer
    ((prompt, answer),) = seen
    assert prompt <= 20 and prompt + answer == 40


def test_several_over_one_base(tmp_path: Path) -> None:
    runs.made(tmp_path, "mine", "talker")
    with talks(tmp_path / "runs/talker", ["base", tmp_path / "runs/mine"], decoding=SHORT) as found:
        assert [talk.name for talk in found] == ["base", "talker", "mine"]
        assert [talk.remembers for talk in found] == [True, True, False]
        held = {talk._model.model.layers[0].self_attn.q_proj.weight.data_ptr() for talk in found}
        assert len(held) == 1
        answers = [talk.ask("Count to 3.") for talk in found]
    compared = Run.open(tmp_path / "runs/talker").compare(
        ["Count to 3."], ["base", tmp_path / "runs/mine"], decoding=SHORT, say=runs.quiet
    )
    assert answers == [answer.text for answer in compared.rows[0].answers]
