"""Evaluations side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inlay.errors import ConfigError
from inlay.evaluation import Evaluation, Evaluations
from inlay.evaluation.scores import Prediction

FIRST = Evaluation(2, 10, 2.0, {"accuracy": 0.25}, [Prediction("a", "b", "p?"), Prediction("c", "c", "q?")])
SECOND = Evaluation(2, 10, 1.5, {"accuracy": 0.75}, [Prediction("b", "b", "p?"), Prediction("[c]", "c", "q?")])


def rows(found: Evaluations) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in found.text().splitlines() if line.strip()}


def test_two_have_their_change() -> None:
    table = rows(Evaluations({"base": FIRST, "[mine]": SECOND}))
    assert table["2"] == ["rows", "base", "[mine]", "change"]
    assert table["loss"] == ["2.0000", "1.5000", "-0.5000"]
    assert table["perplexity"] == ["7.3891", "4.4817", "-2.9074"]
    assert table["accuracy"] == ["0.2500", "0.7500", "+0.5000"]


def test_one_or_three_have_none() -> None:
    assert rows(Evaluations({"a": FIRST}))["loss"] == ["2.0000"]
    assert rows(Evaluations({"a": FIRST, "b": SECOND, "c": FIRST}))["loss"] == ["2.0000", "1.5000", "2.0000"]


def test_other_tokens_are_told() -> None:
    told = "Their tokenizers cut the rows differently"
    other = Evaluation(2, 11, 1.5, {"accuracy": 0.75})
    assert told in str(Evaluations({"a": FIRST, "b": other})) and told not in str(
        Evaluations({"a": FIRST, "b": SECOND})
    )


def test_as_data() -> None:
    found = Evaluations({"a": FIRST}, "rows.jsonl").to_dict()
    assert json.loads(json.dumps(found)) == found
    numbers = {"rows": 2, "tokens": 10, "loss": 2.0, "perplexity": pytest.approx(7.389, abs=1e-3), "accuracy": 0.25}
    assert found == {"from": "rows.jsonl", "columns": {"a": numbers}}


def test_predictions_as_lines(tmp_path: Path) -> None:
    Evaluations({"base": FIRST, "mine": SECOND}).save_predictions(tmp_path / "new" / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "p.jsonl").read_text().splitlines()]
    assert lines == [
        {"prompt": "p?", "reference": "b", "answers": {"base": "a", "mine": "b"}},
        {"prompt": "q?", "reference": "c", "answers": {"base": "c", "mine": "[c]"}},
    ]
    with pytest.raises(ConfigError, match="Texts are written only for metrics on them"):
        Evaluations({"a": Evaluation(2, 10, 2.0)}).save_predictions(tmp_path / "q.jsonl")
