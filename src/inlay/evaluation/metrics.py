"""Metrics on texts, by name: (predictions, references) -> score's name -> value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inlay.errors import optional
from inlay.evaluation import chatglm

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]

METRICS: dict[str, Metric] = {}
"""Name -> metric."""


def register(name: str, metric: Metric) -> Metric:
    """Makes a metric known; one that is registered again replaces the first."""
    METRICS[name] = metric
    return metric


def exact(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of predictions that are their reference, white space around both aside."""
    hits = [p.strip() == r.strip() for p, r in zip(predictions, references, strict=True)]
    return {"accuracy": sum(hits) / len(hits)}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The means of ROUGE-1, ROUGE-2 and ROUGE-L (F, 0 to 1, no stemming) of the package rouge-score.

    Its words are Latin letters and digits; for Chinese there is "chatglm".
    """
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = optional("rouge_score.rouge_scorer", "eval").RougeScorer(names)
    scores = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    return {name: sum(s[name].fmeasure for s in scores) / len(scores) for name in names}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The corpus BLEU (0 to 100) of the package sacrebleu, with its defaults (tokenizer 13a)."""
    return {"bleu": float(optional("sacrebleu", "eval").corpus_bleu(list(predictions), [list(references)]).score)}


register("exact", exact)
register("rouge", rouge)
register("bleu", bleu)
register("chatglm", chatglm.scores)
