r"""ROUGE and BLEU-4 as ChatGLM-6B's recipe for ADGEN has them (THUDM/ChatGLM-6B, ptuning/main.py).

ROUGE is taken on the words that jieba finds, and is that of the package rouge_chinese: with S_n(x) the *set* of n-grams
of x, LCS the longest common subsequence, and |x| the number of words,

    n = 1, 2    p = |S_n(h) & S_n(r)| / |S_n(h)|     q = |S_n(h) & S_n(r)| / |S_n(r)|
    l           p = LCS(h, r) / |h|                  q = LCS(h, r) / |r|
    F = 2 p q / (p + q + 1e-8)

BLEU-4 is taken on characters, each row alone, and is NLTK's `sentence_bleu` with smoothing method 3 (NIST's): with m_n
of c_n n-grams found in the reference (clipped), c_n at least 1, and k counting the m_n that are zero,

    BLEU = min(1, e^{1 - |r| / |h|}) * (p_1 p_2 p_3 p_4)^{1/4}     p_n = m_n / c_n, or 1 / (2^k c_n) where m_n = 0

and 0 if no character is found. Scores are percentages, rounded to four digits a row, then averaged. The recipe fails on
an empty prediction; here it scores 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from inlay.errors import optional


def scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The means of rouge-1, rouge-2, rouge-l and bleu-4, 0 to 100."""
    jieba = optional("jieba", "chinese")
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        # words are joined by spaces and split again there, so that white space is no word
        cut = [" ".join(jieba.cut(text)).split() for text in (prediction, reference)]
        row = {**rouge(*cut), "bleu-4": bleu4(prediction, reference)}
        rows.append({name: round(100 * value, 4) for name, value in row.items()})
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def rouge(words: Sequence[str], reference: Sequence[str]) -> dict[str, float]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1."""
    found = {}
    for n in (1, 2):
        own, wanted = set(_ngrams(words, n)), set(_ngrams(reference, n))
        found[f"rouge-{n}"] = _f(len(own & wanted), len(own), len(wanted))
    return {**found, "rouge-l": _f(_common(words, reference), len(words), len(reference))}


def bleu4(text: str, reference: str) -> float:
    """BLEU-4 on characters, 0 to 1."""
    zeros, log = 0, 0.0
    for n in range(1, 5):
        own, wanted = Counter(_ngrams(text, n)), Counter(_ngrams(reference, n))
        hits, count = (own & wanted).total(), max(1, own.total())
        if n == 1 and not hits:
            return 0.0
        zeros += not hits
        log += math.log(hits / count if hits else 1 / (2**zeros * count)) / 4
    return math.exp(log + min(0.0, 1 - len(reference) / len(text)))


def _ngrams(sequence: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]


def _f(hits: int, own: int, wanted: int) -> float:
    p, q = hits / own if own else 0.0, hits / wanted if wanted else 0.0
    return 2 * p * q / (p + q + 1e-8)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    above = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
        above = row
    return above[-1]
