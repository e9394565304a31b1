"""`evaluate`: against the loss of transformers, and the metrics' own packages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.comparison import Decoding
from inlay.data import Collator, prepare
from inlay.errors import ConfigError, DataError, MissingExtraError
from inlay.evaluation import METRICS, Evaluation, evaluate, register
from inlay.evaluation.scores import Prediction
from tests.comparison.lm import TOKENIZER, base, view

ROWS = [
    {"instruction": "Name three rivers.", "output": "Rhine"},
    {"instruction": "Count", "output": "2, 3, 5, 7, and the seasons"},
    {"instruction": "Write", "input": "bread", "output": "A poem: the house is red."},
]
SHORT = Decoding(max_new_tokens=5)


def data(rows: Any = ROWS) -> Any:
    return prepare(rows, TOKENIZER)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_loss_is_that_of_all_tokens_together(batch_size: int) -> None:
    model, prepared = view(), data()
    found = evaluate(model, prepared, TOKENIZER, batch_size=batch_size)
    batch = Collator.of(TOKENIZER)(list(prepared))
    with torch.no_grad():
        own = model(**batch).loss.item()  # transformers' mean over the batch's tokens
    assert found.loss == pytest.approx(own, rel=1e-5) and found.perplexity == pytest.approx(math.exp(own), rel=1e-4)
    assert found.rows == 3 and found.tokens == sum(prepared.trained_counts())
    assert found.scores == {} and found.predictions == []


def test_the_adapter_counts() -> None:
    assert evaluate(view(), data(), TOKENIZER).loss != evaluate(base(), data(), TOKENIZER).loss


def test_a_model_that_writes_the_references_is_right() -> None:
    """The references are the model's own greedy answers."""
    model = view()
    written = evaluate(model, data(), TOKENIZER, ["exact"], decoding=SHORT)
    assert written.scores == {"accuracy": 0.0} and [p.reference for p in written.predictions] == [
        r["output"] for r in ROWS
    ]
    register("echo", lambda predictions, references: {"echo": float(len(set(predictions)))})
    try:
        assert evaluate(model, data(), TOKENIZER, "echo", decoding=SHORT).scores["echo"] >= 2
    finally:
        del METRICS["echo"]


def test_exact_match() -> None:
    assert METRICS["exact"](["a ", "b", "C"], ["a", "\nb", "c"]) == {"accuracy": pytest.approx(2 / 3)}


def test_rouge_and_bleu_are_their_packages() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="ROUGE").RougeScorer(["rouge1", "rouge2", "rougeL"])
    sacrebleu = pytest.importorskip("sacrebleu", reason="BLEU")
    own, wanted = ["the cat sat on the mat today", "a dog", ""], ["the cat is on the mat", "a dog", "x"]
    each = [scorer.score(r, p) for p, r in zip(own, wanted, strict=True)]
    for name, value in METRICS["rouge"](own, wanted).items():
        assert value == pytest.approx(sum(s[name].fmeasure for s in each) / 3)
    assert METRICS["bleu"](own, wanted) == {"bleu": sacrebleu.corpus_bleu(own, [wanted]).score}
    assert METRICS["bleu"](own, wanted)["bleu"] > 0


@pytest.mark.filterwarnings("ignore:pkg_resources:UserWarning")  # jieba
def test_all_metrics_together_survive_an_untrained_model() -> None:
    for package in ("jieba", "sacrebleu", "rouge_score"):
        pytest.importorskip(package, reason="a metric's package")
    found = evaluate(base(), data(), TOKENIZER, list(METRICS), decoding=SHORT)
    assert set(found.scores) == {
        *("accuracy", "rouge1", "rouge2", "rougeL", "bleu", "rouge-1", "rouge-2", "rouge-l", "bleu-4")
    }
    assert all(math.isfinite(v) for v in found.to_dict().values())
    assert "perplexity" in str(found) and "3 rows" in str(found)


def test_predictions_are_saved_as_chatglm_does(tmp_path: Path) -> None:
    made = Evaluation(1, 1, 0.5, {}, [Prediction("上衣\n", "裙")])
    made.save_predictions(tmp_path / "generated_predictions.txt")
    text = (tmp_path / "generated_predictions.txt").read_text(encoding="utf-8")
    assert text == '{"labels": "裙", "predict": "上衣\\n"}\n' and json.loads(text)["predict"] == "上衣\n"


def test_a_hopeless_loss_has_an_infinite_perplexity() -> None:
    assert Evaluation(1, 1, 800.0).perplexity == math.inf


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"metrics='rogue' is not allowed.*Did you mean 'rouge'"):
        evaluate(base(), data(), TOKENIZER, ["rogue"])
    with pytest.raises(DataError, match="no rows to evaluate"):
        evaluate(base(), data().select([]), TOKENIZER)
    texts = prepare([{"text": "abc"}], TOKENIZER)
    assert evaluate(base(), texts, TOKENIZER).tokens == len(texts[0]["input_ids"]) - 1
    with pytest.raises(DataError, match="Row 1 has no prompt"):
        evaluate(base(), texts, TOKENIZER, ["exact"])
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'inlay\[eval\]'"):
        evaluate(base(), data(), TOKENIZER, ["bleu"])
    assert inlay.evaluate is evaluate
