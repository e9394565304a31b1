"""The whole way from rows to a data set: the report, truncation, duplicates, and what the data set can do."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from inlay.data import Lengths, Prepared, Report, overlap, prepare, preview
from inlay.errors import ConfigError, DataError

from .tokenizers import gpt2_like, llama_like


def rows(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Count to {i}: ", "completion": " ".join(map(str, range(i + 1)))} for i in range(n)]


@pytest.fixture
def prepared() -> Prepared:
    return prepare(rows(30), gpt2_like())


def test_a_data_set(prepared: Prepared) -> None:
    assert len(prepared) == len(list(prepared)) == 30
    row = prepared[-1]
    assert row == prepared[29] and row["length"] == len(row["input_ids"]) == len(row["labels"])
    assert prepared.lengths == [row["length"] for row in prepared]
    assert prepared.trained_counts() == [sum(label != -100 for label in row["labels"]) for row in prepared]
    assert list(prepared.rows) == list(range(1, 31))
    with pytest.raises(IndexError, match="row 30 of 30"):
        prepared[30]
    assert list(prepared.to_dataset()) == list(prepared)
    assert list(pickle.loads(pickle.dumps(prepared))) == list(prepared), "workers of a DataLoader get a copy"
    assert repr(prepared) == f"Prepared(30 rows, {sum(prepared.lengths)} tokens)"


def test_select_and_split(prepared: Prepared) -> None:
    part = prepared.select([4, 2])
    assert [part[0], part[1]] == [prepared[4], prepared[2]] and list(part.rows) == [5, 3]
    train, held = prepared.split(0.2, seed=1)
    assert (len(train), len(held)) == (24, 6) and sorted([*train.rows, *held.rows]) == list(prepared.rows)
    assert list(held.rows) == list(prepared.split(6, seed=1)[1].rows) != list(prepared.split(6, seed=2)[1].rows)
    for wrong in (0, 30, 0.0, 1.0):
        with pytest.raises(ConfigError, match="held_out="):
            prepared.split(wrong)


def test_the_report() -> None:
    source = [*rows(3), {"prompt": "x"}, *rows(2), {"prompt": "a " * 30, "completion": "b"}]
    prepared = prepare(source, gpt2_like(), max_length=25)
    report = prepared.report
    lengths = prepared.lengths
    assert (report.format, report.detected, report.columns) == ("prompt", True, ["prompt", "completion"])
    assert (report.rows, report.kept) == (7, 5)
    assert report.dropped == {"completion is missing": [4], "no trained token within max_length=25": [7]}
    assert report.duplicates == [(5, 1), (6, 2)]
    assert report.tokens == sum(lengths) and report.trained_tokens == sum(prepared.trained_counts())
    assert report.end_tokens == {"<|endoftext|>": 5} and report.lengths == Lengths.of(lengths)
    assert report.warnings == ["2 of 7 rows repeat an earlier one."]
    text = str(report)
    for line in (
        "list: format prompt (found by the columns), columns prompt, completion",
        "rows       5 kept of 7",
        "dropped    1: completion is missing (rows 4)",
        "truncated  0 at max_length=25",
        "end token  trained: '<|endoftext|>' in 5 rows",
        "duplicates 2: 5, 6",
        f"sha256     {report.sha256}",
        "WARNING: 2 of 7 rows repeat an earlier one.",
    ):
        assert line in text.splitlines()
    again = json.loads(json.dumps(report.to_dict()))
    assert (
        again["kept"] == 5 and again["lengths"]["longest"] == max(lengths) and again["duplicates"] == [[5, 1], [6, 2]]
    )


def test_lengths() -> None:
    assert Lengths.of([5]) == Lengths(5, 5.0, 5, 5, 5)
    assert Lengths.of(list(range(100, 0, -1))) == Lengths(1, 50.5, 50, 95, 100)


def test_truncation_is_counted_and_leaves_no_end() -> None:
    full = prepare(rows(30), gpt2_like())
    cut = prepare(rows(30), gpt2_like(), max_length=30)
    longer = [n for n, length in zip(full.rows, full.lengths, strict=True) if length > 30]
    assert cut.report.truncated == longer != [] and max(cut.lengths) == 30
    assert sum(cut.report.end_tokens.values()) == 30 - len(longer)
    assert cut[29]["input_ids"] == full[29]["input_ids"][:30] and cut[29]["labels"] == full[29]["labels"][:30]
    assert f"{len(longer)} of 30 rows are cut at max_length=30" in cut.report.warnings[0]
    dropped = prepare(rows(30), gpt2_like(), max_length=30, too_long="drop")
    assert dropped.report.dropped == {"longer than max_length=30": longer} and not dropped.report.truncated


def test_rows_that_train_nothing_are_left_out_loudly() -> None:
    """Case 65: all labels -100 would make the loss NaN."""
    prepared = prepare([*rows(2), {"prompt": "a " * 100, "completion": "b"}], gpt2_like(), max_length=40)
    assert prepared.report.dropped == {"no trained token within max_length=40": [3]}
    with pytest.raises(DataError) as error:
        prepare([{"prompt": "a " * 100, "completion": "b"}], gpt2_like(), max_length=40)
    assert str(error.value) == (
        "No row of list is left to train on.\ndropped    1: no trained token within max_length=40 (rows 1)"
    )


def test_the_length_that_a_tokenizer_names_is_kept() -> None:
    tokenizer = gpt2_like()
    assert prepare(rows(1), tokenizer).report.max_length == 2048
    tokenizer.model_max_length = 30
    assert max(prepare(rows(30), tokenizer).lengths) == 30
    assert max(prepare(rows(30), tokenizer, max_length=40).lengths) == 40


def test_arguments() -> None:
    for wrong, message in (
        ({"max_length": 0}, "max_length=0 is not allowed"),
        ({"too_long": "crop"}, "too_long='crop' is not allowed: expected 'cut' or 'drop'"),
        ({"loss_on": "x"}, "loss_on='x' is not known"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(rows(1), gpt2_like(), **wrong)  # type: ignore[arg-type]


def test_the_hash_is_of_the_rows_alone(tmp_path: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(5)))
    ours = prepare(rows(5), gpt2_like()).report.sha256
    assert prepare(path, llama_like(), max_length=50).report.sha256 == ours
    assert prepare([dict(reversed(row.items())) for row in rows(5)], gpt2_like()).report.sha256 == ours
    assert prepare(rows(6), gpt2_like()).report.sha256 != ours
    assert prepare(rows(5)[::-1], gpt2_like()).report.sha256 != ours


def test_what_two_data_sets_share() -> None:
    train = prepare(rows(10), gpt2_like())
    other = [rows(3)[2], {"prompt": "Count to 4: ", "completion": "no"}, {"prompt": "new", "completion": "0"}]
    assert overlap(train, prepare(other, gpt2_like())) == ([(3, 1)], [(5, 2)])
    text = prepare([{"text": "a"}, {"text": "b"}], gpt2_like())
    assert overlap(text, text) == ([(1, 1), (2, 2)], [])


def test_the_preview_is_what_the_model_sees() -> None:
    shown = preview(prepare([{"prompt": "a ", "completion": " é\n"}] * 5, llama_like()), llama_like(), 2)
    assert shown == [[("<s> a ", False), (" é\n</s>", True)]] * 2


def test_ids_beyond_the_vocabulary_name_the_row(prepared: Prepared) -> None:
    prepared.check_vocabulary(500)
    most = max(i for row in prepared for i in row["input_ids"])
    at = next(n for n, row in zip(prepared.rows, prepared, strict=True) if most in row["input_ids"])
    with pytest.raises(DataError) as error:
        prepared.check_vocabulary(most)
    assert str(error.value).startswith(f"Row {at} holds token id {most}, but the model has {most} embeddings.")
    assert f"model.resize_token_embeddings({most + 1})" in str(error.value)


def test_many_rows_in_batches() -> None:
    source = rows(7) * 400  # 2,800 rows: three batches
    prepared = prepare(iter(source), gpt2_like())
    small = prepare(rows(7), gpt2_like())
    assert [prepared[i] for i in range(7)] * 1 == list(small) and prepared[2799] == small[6]
    assert len(prepared.report.duplicates) == 2793 and prepared.report.duplicates[-1] == (2800, 7)


def test_report_of_nothing_dropped_has_no_warning() -> None:
    assert prepare(rows(30), gpt2_like()).report.warnings == []
    assert Report("x", "text", False, None).trained_share == 0.0


def test_rows_after_many_bad_ones_are_found() -> None:
    source: list[Any] = [None] * 1500 + rows(2)
    prepared = prepare(source, gpt2_like())
    assert len(prepared) == 2 and list(prepared.rows) == [1501, 1502]
    (dropped,) = prepared.report.dropped.values()
    assert dropped == list(range(1, 1501))
    with pytest.raises(
        DataError, match=r"list has no rows that can be read.\nbad        1: the row has no columns \(rows 1"
    ):
        prepare([{}], gpt2_like())
