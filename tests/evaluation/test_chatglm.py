"""ChatGLM's metrics, against NLTK, rouge-score on words that occur once, and values computed by hand."""

from __future__ import annotations

import random

import pytest

from inlay.evaluation.chatglm import bleu4, rouge, scores

pytestmark = pytest.mark.filterwarnings("ignore:pkg_resources:UserWarning")  # jieba

ALPHABETS = ["ab", "abcdef", "宽松裙长的上衣版型显瘦", "a b。"]


def pairs(count: int = 300) -> list[tuple[str, str]]:
    rng = random.Random(0)
    made = []
    for _ in range(count):
        alphabet = rng.choice(ALPHABETS)
        made.append(tuple("".join(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(2)))
    return made  # type: ignore[return-value]


def test_bleu_is_nltks_with_method_3() -> None:
    translate = pytest.importorskip("nltk.translate.bleu_score", reason="the oracle of BLEU")
    smoothing = translate.SmoothingFunction().method3
    seen = set()
    for text, reference in pairs():
        wanted = translate.sentence_bleu([list(reference)], list(text), smoothing_function=smoothing)
        assert bleu4(text, reference) == pytest.approx(wanted, rel=1e-12, abs=1e-12), (text, reference)
        seen.add(wanted)
    assert len(seen) > 100 and 0 in seen


def test_rouge_is_that_of_rouge_score_where_no_ngram_occurs_twice() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the oracle of ROUGE").RougeScorer(
        ["rouge1", "rouge2", "rougeL"]
    )
    rng = random.Random(1)
    for _ in range(100):
        own, wanted = (rng.sample("abcdefghij", rng.randint(1, 8)) for _ in range(2))
        theirs = scorer.score(" ".join(wanted), " ".join(own))
        ours = rouge(own, wanted)
        for name, other in (("rouge-1", "rouge1"), ("rouge-2", "rouge2"), ("rouge-l", "rougeL")):
            assert ours[name] == pytest.approx(theirs[other].fmeasure, abs=1e-7)


def test_rouge_counts_a_repeated_ngram_once() -> None:
    found = rouge(["a", "a", "a", "b"], ["a", "b", "b"])
    assert found["rouge-1"] == pytest.approx(1.0, abs=1e-7)  # {a, b} of {a, b}
    assert found["rouge-2"] == pytest.approx(0.5, abs=1e-7)  # {ab} of {aa, ab} and {ab, bb}
    assert found["rouge-l"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3), abs=1e-7)


def test_a_row_by_hand() -> None:
    """jieba: 我 爱 北京 / 我 爱 上海. BLEU-4 of 4 characters: 2/4, 1/3, then 1/(2*2) and 1/(4*1)."""
    pytest.importorskip("jieba", reason="cuts Chinese into words")
    found = scores(["我爱北京"], ["我爱上海"])
    assert found["rouge-1"] == pytest.approx(66.6667, abs=1e-4) and found["rouge-2"] == pytest.approx(50.0, abs=1e-4)
    assert found["rouge-l"] == pytest.approx(66.6667, abs=1e-4)
    assert found["bleu-4"] == round(100 * (2 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25, 4)


def test_empty_texts_score_nothing_and_do_not_fail() -> None:
    pytest.importorskip("jieba", reason="cuts Chinese into words")
    nothing = {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0, "bleu-4": 0.0}
    for text, reference in (("", "上衣"), ("上衣", ""), ("", ""), (" \n", "上衣")):
        assert scores([text], [reference]) == nothing
    half = scores(["", "我爱北京"], ["x", "我爱北京"])
    assert half["bleu-4"] == 50.0 and half["rouge-1"] == pytest.approx(50.0, abs=1e-4)
