"""BM25 against Okapi's formula written out, in float64; searching; prompts."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

from inlay.errors import ConfigError, MissingExtraError
from inlay.gorilla import BM25Retriever, Retriever, read_apis, read_examples
from tests.gorilla.apis import DATA, api, needs_data

pytest.importorskip("bm25s", reason="BM25 is computed by bm25s, which is not installed")


def okapi(
    records: list[dict[str, Any]], question: str, k1: float = 1.5, b: float = 0.75, eps: float = 0.25
) -> np.ndarray:
    """The formula of `BM25Retriever`, word by word."""
    documents = [str(r).split(" ") for r in records]
    counts = [Counter(d) for d in documents]
    mean = sum(map(len, documents)) / len(documents)
    n = Counter(w for c in counts for w in c)
    idf = {w: math.log((len(records) - n[w] + 0.5) / (n[w] + 0.5)) for w in n}
    floor = eps * sum(idf.values()) / len(idf)
    scores = np.zeros(len(records))
    for word in question.split(" "):
        for i, count in enumerate(counts):
            if word in count:
                weight = idf[word] if idf[word] >= 0 else floor
                f = count[word]
                scores[i] += weight * f * (k1 + 1) / (f + k1 * (1 - b + b * len(documents[i]) / mean))
    return scores


@pytest.mark.parametrize("constants", [{}, {"k1": 0.9, "b": 0.4, "epsilon": 0.1}])
def test_bm25_is_okapis(constants: dict[str, float]) -> None:
    draw = random.Random(0)
    words = ["the", "a", "model", "of", "x", "y", "", "Image", "image"]
    records = [api(" ".join(draw.choices(words, k=draw.randint(1, 30)))) for _ in range(40)]
    questions = [" ".join(draw.choices([*words, "unseen"], k=draw.randint(1, 12))) for _ in range(30)]
    scores = BM25Retriever(records, **constants).scores(questions)
    k1, b, eps = constants.get("k1", 1.5), constants.get("b", 0.75), constants.get("epsilon", 0.25)
    assert scores.dtype == np.float64 and scores.shape == (30, 40)
    np.testing.assert_allclose(scores, [okapi(records, q, k1, b, eps) for q in questions], rtol=1e-12, atol=1e-12)
    assert (scores != 0).any()


def test_a_database_of_one_and_words_nobody_has() -> None:
    one = BM25Retriever([api("f('x')")])
    np.testing.assert_allclose(one.scores(["Text f"]), [okapi([api("f('x')")], "Text f")], rtol=1e-12)
    assert one.scores(["", "nothing here"]).tolist() == [[0.0], [0.0]]
    assert [h.index for h in one.search([""])[0]] == [0]


@needs_data
@pytest.mark.parametrize(("hub", "name"), [("tensorflowhub", "tensorflow"), ("torchhub", "torchhub")])
def test_bm25_over_the_public_databases(hub: str, name: str) -> None:
    records = read_apis(DATA / "api" / f"{hub}_api.jsonl")
    questions = [e.question for e in read_examples(DATA / f"{name}_eval.json")][:15]
    retriever = BM25Retriever(records)
    expected = np.stack([okapi(records, q) for q in questions])
    np.testing.assert_allclose(retriever.scores(questions), expected, rtol=1e-10, atol=1e-10)
    for hits, scores in zip(retriever.search(questions, k=3), expected, strict=True):
        np.testing.assert_allclose([h.score for h in hits], np.sort(scores)[::-1][:3], rtol=1e-10)
        assert all(h.record is retriever.records[h.index] for h in hits)


@needs_data
@pytest.mark.parametrize(
    ("hub", "name", "first"),
    [("huggingface", "huggingface", 6), ("tensorflowhub", "tensorflow", 18), ("torchhub", "torchhub", 8)],
)
def test_how_often_bm25_finds_the_call_of_the_answer(hub: str, name: str, first: int) -> None:
    """The per cent that docs/gorilla.md gives."""
    examples = read_examples(DATA / f"{name}_eval.json")
    found = BM25Retriever(read_apis(DATA / "api" / f"{hub}_api.jsonl")).search([e.question for e in examples])
    right = [hits[0].record["api_call"] == e.api_call for hits, e in zip(found, examples, strict=True)]
    assert round(100 * sum(right) / len(right)) == first


class Lengths(Retriever):
    """Fits as well as its call is long; longer questions count the other way."""

    def scores(self, questions: Any) -> Any:
        sign = [1.0 if len(q) < 3 else -1.0 for q in questions]
        return np.array([[s * len(r["api_call"]) for r in self.records] for s in sign])


def test_search_is_best_first_and_the_earlier_of_equals() -> None:
    retriever = Lengths([api("ab"), api("c"), api("de"), api("fgh")])
    first, second = retriever.search(["q", "long"], k=3)
    assert [(h.index, h.score) for h in first] == [(3, 3.0), (0, 2.0), (2, 2.0)]
    assert [h.index for h in second] == [1, 0, 2]
    assert retriever.search([]) == []


@pytest.mark.parametrize("k", [0, 5, -1, 1.0])
def test_k_is_checked(k: Any) -> None:
    with pytest.raises(ConfigError, match=r"k=.* is not allowed: expected an integer from 1 to 4"):
        Lengths([api("a")] * 4).search(["q"], k)


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="expected a list of questions"):
        Lengths([api("a")]).search("q")
    with pytest.raises(ConfigError, match="expected at least one API record"):
        BM25Retriever([])
    with pytest.raises(ConfigError, match=r"expected a text with {question} in it"):
        Lengths([api("a")]).prompt("q", template="{instruction}")


def test_prompts() -> None:
    retriever = Lengths([{"domain": "D", "api_call": "f({})"}, {"domain": "é", "api_call": "g"}])
    assert retriever.instruction("q") == (
        'q\n Use this API documentation for reference: {"domain": "D", "api_call": "f({})"}'
    )
    assert retriever.prompt("q", k=2) == (
        '###USER: q\n Use this API documentation for reference: {"domain": "D", "api_call": "f({})"}\n'
        '{"domain": "é", "api_call": "g"}###ASSISTANT: '
    )
    assert retriever.prompt("{q}", template="<{question}>{x}").startswith("<{q}\n Use") is True


def test_without_bm25s_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"'bm25s'.*pip install 'inlay\[retrieval\]'"):
        BM25Retriever([api("a")])
