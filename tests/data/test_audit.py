"""Labels looked at once more, and marks of other models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.data import prepare
from inlay.data.audit import foreign_marks, mask_faults
from tests.data.tokenizers import MADE, gpt2_like

TALK = [
    {"role": "system", "content": "You are a patient teacher of arithmetic."},
    {"role": "user", "content": "What comes after the number one?"},
    {"role": "assistant", "content": "It is the number two."},
    {"role": "user", "content": "And what comes after that one?"},
    {"role": "assistant", "content": "It is three, my dear."},
]


def test_labels_that_are_not_the_answers() -> None:
    tokenizer, data = gpt2_like(), [{"prompt": "two and two is", "completion": " four"}]
    prepared = prepare(data, tokenizer)
    assert mask_faults(data, prepared, tokenizer) == []
    prepared._trained[:] = b"\x01" * len(prepared._trained)
    (fault,) = mask_faults(data, prepared, tokenizer)
    assert fault.startswith("Row 1 trains 'two and two is four<|endoftext|>', but its answer is ' four'")


@pytest.mark.parametrize("name", MADE)
def test_sound_labels_are_sound_for_every_tokenizer(name: str) -> None:
    tokenizer = MADE[name]()
    alpaca = [{"instruction": f"Count to {i}.", "input": "in words", "output": f"one two {i}"} for i in range(30)]
    for loss_on in ("answers", "all"):
        prepared = prepare(alpaca, tokenizer, loss_on=loss_on, max_length=120)
        assert mask_faults(alpaca, prepared, tokenizer, loss_on=loss_on) == []
    told = [{"messages": TALK}]
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    for loss_on in ("answers", "last", "all"):
        prepared = prepare(told, tokenizer, loss_on=loss_on, chat_template="plain")
        assert mask_faults(told, prepared, tokenizer, loss_on=loss_on, chat_template="plain") == []


def test_labels_of_renamed_columns_and_of_rows_left_out(tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "rows.jsonl", gpt2_like()
    rows = [{"ask": "one", "say": " two"}, {"ask": "three"}, {"ask": "four", "say": " five"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "ask", "completion": "say"}
    prepared = prepare(path, tokenizer, columns=columns)
    assert list(prepared.rows) == [1, 3] and mask_faults(path, prepared, tokenizer, columns=columns) == []
    swapped = prepared.select([1, 0])
    swapped.rows[:] = prepared.rows
    first, second = mask_faults(path, swapped, tokenizer, columns=columns)
    assert first.startswith("Row 1 trains ' five<|endoftext|>', but its answer is ' two'") and "Row 3" in second


def test_cut_rows_end_anywhere() -> None:
    tokenizer, data = gpt2_like(), [{"prompt": "a", "completion": "版型设计" * 9}]
    for length in range(8, 40):
        assert mask_faults(data, prepare(data, tokenizer, max_length=length), tokenizer) == []


def test_marks_are_those_that_this_tokenizer_has_no_token_for() -> None:
    tokenizer = gpt2_like()
    prepared = prepare([{"prompt": "<|user|> a <|im_start|> [x] <b>", "completion": "b</s>"}], tokenizer)
    assert [mark for mark, _ in foreign_marks(prepared, tokenizer)] == ["<|user|>", "</s>"]
    assert all(length > 1 for _, length in foreign_marks(prepared, tokenizer))
    assert [mark for mark, _ in foreign_marks(prepared, tokenizer, own="... <|user|> ...")] == ["</s>"]
