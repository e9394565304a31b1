"""How good a model is on a data set: loss, perplexity, and metrics on the texts that it writes.

scores       `evaluate`
table        several models on the same rows
metrics      exact match, ROUGE, BLEU; `register` adds one
chatglm      ROUGE and BLEU-4 as ChatGLM-6B's recipe computes them
"""

from __future__ import annotations

from inlay.evaluation.metrics import METRICS, register
from inlay.evaluation.scores import Evaluation, evaluate
from inlay.evaluation.table import Evaluations

__all__ = ["METRICS", "Evaluation", "Evaluations", "evaluate", "register"]
