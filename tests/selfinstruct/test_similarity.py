"""ROUGE-L by rapidfuzz against the rouge-score package and a table of our own: equal to the last bit."""

# ruff: noqa: RUF001
from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.errors import MissingExtraError
from inlay.selfinstruct.similarity import Jieba, Pool, any_tokens, rouge_tokens

for needed in ("rapidfuzz", "numpy"):
    pytest.importorskip(needed)


def reference(a: list[str], b: list[str]) -> float:
    """F of the longest common subsequence, from a table."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


TEXT = st.one_of(
    st.lists(
        st.sampled_from(["the", "a", "cat", "dog", "9", "sat", "on,", "It's", "Hat-trick", "mat"]), max_size=90
    ).map(" ".join),
    st.text(max_size=60),
)


@settings(deadline=None)
@given(TEXT, st.lists(TEXT, max_size=6))
def test_scores_are_those_of_a_table(text: str, others: list[str]) -> None:
    for tokens in (rouge_tokens, any_tokens):
        expected = [reference(tokens(text), tokens(other)) for other in others]
        assert Pool(tokens, others).scores(text).tolist() == expected


@settings(deadline=None)
@given(TEXT, TEXT)
def test_scores_are_those_of_rouge_score(text: str, other: str) -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs rouge-score as an oracle")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    assert rouge_tokens(text) == scorer._tokenizer.tokenize(text)
    assert Pool(rouge_tokens, [other]).scores(text)[0] == scorer.score(other, text)["rougeL"].fmeasure


def test_more_tokens_than_a_byte_and_than_the_first_plane_can_name() -> None:
    """Ids reach surrogates and the second plane; more than 64 tokens need more than one machine word."""
    words = [f"w{i}" for i in range(70_000)]
    pool = Pool(rouge_tokens, [" ".join(words[i : i + 700]) for i in range(0, 70_000, 700)])
    text = " ".join(words[55_000:55_350] + words[65_600:65_950])
    scores = pool.scores(text)
    assert np.flatnonzero(scores).tolist() == [78, 79, 93, 94]
    assert scores[78] == reference(rouge_tokens(text), words[54_600:55_300])


def test_closest_are_the_ten_best() -> None:
    pool = Pool(rouge_tokens, [f"say {'word ' * n}" for n in range(12)] + ["other thing", "other thing two"])
    scores = pool.scores("say word word word")
    closest = pool.closest(scores)
    assert len(closest) == 10 and next(iter(closest)) == "say word word word "
    assert list(closest.values()) == sorted(closest.values(), reverse=True) and "other thing" not in closest
    assert pool.closest(scores, 1) == {"say word word word ": 1.0}


def test_of_equal_ones_the_latest_comes_first() -> None:
    pool = Pool(rouge_tokens, ["b a", "a c", "d"])
    assert list(pool.closest(pool.scores("a"))) == ["a c", "b a", "d"]


def test_an_empty_pool_and_texts_without_tokens() -> None:
    assert Pool(rouge_tokens).scores("a").tolist() == []
    assert Pool(rouge_tokens, ["", "a"]).scores("!?").tolist() == [0.0, 0.0]
    assert Pool(rouge_tokens, ["", "a"]).scores("a").tolist() == [0.0, 1.0]


def test_chinese_has_tokens_only_in_its_own_profiles() -> None:
    """Alpaca's measure finds nothing in common between identical Chinese texts; ours does."""
    text = "请写一首关于春天的诗"
    assert Pool(rouge_tokens, [text]).scores(text)[0] == 0.0
    assert Pool(any_tokens, [text]).scores(text)[0] == 1.0
    assert any_tokens("写一首2024年的poem，好吗？") == ["写", "一", "首", "2024", "年", "的", "poem", "好", "吗"]
    assert any_tokens("Größe ÉTÉ лес ＡＢＣ") == ["grösse", "été", "лес", "abc"]


@pytest.mark.filterwarnings("ignore:invalid escape sequence", "ignore:pkg_resources", "ignore::SyntaxWarning")
def test_jieba_finds_words() -> None:
    pytest.importorskip("jieba", reason="needs jieba")
    assert Jieba()("请写一首关于春天的诗，谢谢！") == ["请", "写", "一首", "关于", "春天", "的", "诗", "谢谢"]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz.process", None)
    with pytest.raises(MissingExtraError, match=r"inlay\[generate\]"):
        Pool(rouge_tokens)
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(MissingExtraError, match=r"inlay\[chinese\]"):
        Jieba()("诗")


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "selfinstruct.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--known", "40", "--new", "3", "--reference", "3"])
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    assert "40 known instructions; scores of 3 new ones equal to the last bit" in out and "ratio" in out
