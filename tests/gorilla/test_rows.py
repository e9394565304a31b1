"""Training rows: what stands in them, what is left out, and that they are what a model is shown later."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import numpy as np
import pytest

from inlay.errors import ConfigError, InlayWarning
from inlay.gorilla import (
    BM25Retriever,
    Retriever,
    as_prompts,
    oracle,
    raft,
    read_apis,
    read_examples,
    retrieved,
    zero_shot,
)
from tests.gorilla.apis import DATA, api, example, needs_data

RECORDS = [api(f"f('{letter}')") for letter in "abcdef"]
EXAMPLES = [example("first?", "f('a')"), example("second?", "f('b')"), example("cut off?", "f('c')", answer="")]
LEFT_OUT = pytest.mark.filterwarnings(f"ignore:1 of 3 rows have no answer:{InlayWarning.__module__}.InlayWarning")


class Last(Retriever):
    """Finds the last records."""

    def scores(self, questions: Any) -> Any:
        return np.tile(np.arange(len(self.records), dtype=float), (len(questions), 1))


@LEFT_OUT
def test_zero_shot() -> None:
    assert zero_shot(EXAMPLES) == [
        {"instruction": e.question, "input": "", "output": e.answer} for e in EXAMPLES if e.answer
    ]


@LEFT_OUT
def test_oracle_and_retrieved() -> None:
    reference = "\n Use this API documentation for reference: "
    rows = oracle(EXAMPLES)
    assert [r["instruction"] for r in rows] == [f"{e.question}{reference}{json.dumps(e.api)}" for e in EXAMPLES[:2]]
    assert [r["output"] for r in rows] == [e.answer for e in EXAMPLES[:2]]
    retriever = Last(RECORDS)
    rows = retrieved(EXAMPLES, retriever, k=2)
    found = "\n".join(json.dumps(r) for r in (RECORDS[5], RECORDS[4]))
    assert rows[1] == {"instruction": f"second?{reference}{found}", "input": "", "output": EXAMPLES[1].answer}
    assert rows[1]["instruction"] == retriever.instruction("second?", k=2)


@LEFT_OUT
def test_as_prompts_is_what_the_model_is_asked_later() -> None:
    retriever = Last(RECORDS)
    (row, _) = as_prompts(retrieved(EXAMPLES, retriever))
    assert row == {"prompt": retriever.prompt("first?"), "completion": EXAMPLES[0].answer}
    assert as_prompts(zero_shot(EXAMPLES))[0]["prompt"] == "###USER: first?###ASSISTANT: "
    assert as_prompts(zero_shot(EXAMPLES), "Q {question} A")[1]["prompt"] == "Q second? A"
    with pytest.raises(ConfigError, match=r"expected a text with \{question\} in it"):
        as_prompts(zero_shot(EXAMPLES), "Q")


def test_rows_without_an_answer_are_named() -> None:
    with pytest.warns(InlayWarning, match=r"^1 of 3 rows have no answer and were left out: 3$") as caught:
        zero_shot(EXAMPLES)
    assert caught[0].filename == __file__
    with pytest.warns(InlayWarning, match=r"15 of 15 rows .*: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.$"):
        assert raft([EXAMPLES[2]] * 15, RECORDS) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(retrieved(EXAMPLES[:2], Last(RECORDS))) == 2


def shown(row: dict[str, str]) -> list[str]:
    return [json.loads(d)["api_call"] for d in re.findall(r"<DOCUMENT>(.*?)</DOCUMENT>\n", row["instruction"])]


def test_raft() -> None:
    examples = [example(f"q{i}", "f('a')") for i in range(300)]
    rows = raft(examples, RECORDS)
    assert rows[7]["output"] == "<ANSWER>: " + examples[7].answer and rows[7]["instruction"].endswith("</DOCUMENT>\nq7")
    documents = [shown(r) for r in rows]
    assert all(len(d) == 4 == len(set(d)) and "f('a')" in d for d in documents)
    places = np.bincount([d.index("f('a')") for d in documents], minlength=4)
    assert (places > 50).all(), "the oracle stands anywhere"
    assert set().union(*documents) == {r["api_call"] for r in RECORDS}
    assert raft(examples, RECORDS) == rows != raft(examples, RECORDS, seed=1)
    assert raft(examples[:5], RECORDS) == rows[:5], "a row's draw is its own"


def test_raft_leaves_the_oracle_out_now_and_then() -> None:
    examples = [example("q", "f('a')")] * 400
    documents = [shown(r) for r in raft(examples, RECORDS, p=0.8)]
    assert all(len(set(d)) == 4 for d in documents)
    share = np.mean(["f('a')" in d for d in documents])
    assert abs(share - 0.8) < 0.06  # three standard deviations
    assert not any("f('a')" in shown(r) for r in raft(examples[:50], RECORDS, p=0.0))
    assert [shown(r) for r in raft(examples[:3], RECORDS, distractors=0)] == [["f('a')"]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.5}, "p=1.5 is not allowed: expected a probability"),
        ({"p": float("nan")}, "p=nan"),
        ({"p": True}, "p=True"),
        ({"distractors": -1}, "distractors=-1 is not allowed"),
        ({"distractors": 6}, "distractors=6 is not allowed: expected at most 5, the records of other API calls"),
    ],
)
def test_raft_checks_its_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        raft(EXAMPLES[:2], RECORDS, **arguments)


@needs_data
def test_rows_of_the_public_training_set() -> None:
    pytest.importorskip("bm25s", reason="BM25 is computed by bm25s, which is not installed")
    examples = read_examples(DATA / "torchhub_train.json")
    retriever = BM25Retriever(read_apis(DATA / "api" / "torchhub_api.jsonl"))
    with pytest.warns(InlayWarning, match="1 of 837 rows have no answer and were left out: 397"):
        rows = retrieved(examples, retriever)
    assert len(rows) == 836 and all(r["output"] and r["input"] == "" for r in rows)
    document = json.loads(rows[0]["instruction"].split("for reference: ")[1])
    assert document in retriever.records


def test_inlay_data_reads_them() -> None:
    """What is trained is what `Retriever.prompt` asks, and of that the answer alone."""
    pytest.importorskip("transformers", reason="the tokenizer is one of transformers, which is not installed")
    from inlay.data import IGNORE_INDEX, prepare
    from tests.data.tokenizers import gpt2_like

    tokenizer, retriever = gpt2_like(), Last(RECORDS)
    rows = retrieved(EXAMPLES[:2], retriever)
    prepared = prepare(as_prompts(rows), tokenizer)
    for row, e in zip(prepared, EXAMPLES, strict=False):
        trained = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORE_INDEX]
        assert tokenizer.decode(trained) == e.answer + tokenizer.eos_token
        assert tokenizer.decode(row["input_ids"]) == retriever.prompt(e.question) + e.answer + tokenizer.eos_token
    text = tokenizer.decode(prepare(rows, tokenizer)[0]["input_ids"])
    assert "### Instruction:\n" + retriever.instruction("first?") + "\n\n### Response:" in text


@needs_data
@pytest.mark.filterwarnings(f"ignore:1 of 688 rows have no answer:{InlayWarning.__module__}.InlayWarning")
def test_inlay_data_reads_the_same_from_the_file_itself() -> None:
    pytest.importorskip("transformers", reason="the tokenizer is one of transformers, which is not installed")
    from inlay.data import prepare
    from tests.data.tokenizers import gpt2_like

    tokenizer, path = gpt2_like(), DATA / "tensorflow_eval.json"
    of_rows = prepare(as_prompts(zero_shot(read_examples(path))), tokenizer, max_length=10_000)
    of_file = prepare(path, tokenizer, max_length=10_000)
    assert [list(r["input_ids"]) for r in of_rows] == [list(r["input_ids"]) for r in of_file]
    assert [list(r["labels"]) for r in of_rows] == [list(r["labels"]) for r in of_file]
