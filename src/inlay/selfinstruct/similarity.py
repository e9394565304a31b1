r"""ROUGE-L between one text and many, over token ids.

    F(a, b) = 2 p r / (p + r)      p = LCS(a, b) / |a|      r = LCS(a, b) / |b|      0 where LCS(a, b) = 0

LCS is the length of the longest common subsequence of tokens. Each token has an id, each id is one character of a
string, and rapidfuzz finds the LCS of such strings with bit-parallel machine words; nothing is approximated, so F is
equal to the last bit to that of the tables which the rouge-score package fills in Python.
Source: Lin, 2004, ROUGE; Hyyrö, 2004, bit-parallel LCS.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable
from typing import Any

from inlay.errors import optional

Tokens = Callable[[str], list[str]]

_ALPHANUMERIC = re.compile(r"[a-z0-9]+")
# scripts that are written without spaces: each character is a token
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_ANY = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def rouge_tokens(text: str) -> list[str]:
    """Runs of a-z and 0-9 of the lowered text: the rouge-score package's tokens (it knows no other script)."""
    return _ALPHANUMERIC.findall(text.lower())


def any_tokens(text: str) -> list[str]:
    """Words in any script, and characters where a script puts no space between words (Chinese, Japanese, Thai...)."""
    return _ANY.findall(unicodedata.normalize("NFKC", text).casefold())


class Jieba:
    """Chinese words, by the jieba package; tokens without a letter or digit are left out."""

    def __init__(self) -> None:
        self._cutter: Any = None

    def __call__(self, text: str) -> list[str]:
        if self._cutter is None:
            self._cutter = optional("jieba", "chinese").Tokenizer()
        words = self._cutter.lcut(unicodedata.normalize("NFKC", text).casefold())
        return [word for word in words if any(map(str.isalnum, word))]


class Pool:
    """Texts, and how similar another one is to each of them.

    Attributes:
        texts: in the order in which they came.
    """

    def __init__(self, tokens: Tokens, texts: Iterable[str] = ()):
        self.texts: list[str] = []
        self._tokens = tokens
        self._ids: dict[str, int] = {}
        self._coded: list[str] = []
        self._lengths = array("d")
        self._cdist = optional("rapidfuzz.process", "generate").cdist
        self._lcs = optional("rapidfuzz.distance.LCSseq", "generate").similarity
        self._numpy = optional("numpy", "generate")
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self.texts)

    def _code(self, text: str) -> str:
        """The token ids as characters: there are 1,114,112, and only their equality matters."""
        return "".join(chr(self._ids.setdefault(token, len(self._ids))) for token in self._tokens(text))

    def add(self, text: str) -> None:
        """Compare with this text, too, from now on."""
        code = self._code(text)
        self.texts.append(text)
        self._coded.append(code)
        self._lengths.append(len(code))

    def scores(self, text: str) -> Any:
        """F of `text` with each of `texts`: float64 of shape (len(self),)."""
        numpy = self._numpy
        code = self._code(text)
        lengths = numpy.array(self._lengths)
        if not code or not len(self):
            return numpy.zeros(len(self))
        common = self._cdist([code], self._coded, scorer=self._lcs, dtype=numpy.int64)[0]
        # the same operations in the same order as rouge-score, so that the last bit is the same
        precision, recall = common / len(code), common / numpy.maximum(lengths, 1)
        return 2 * precision * recall / numpy.maximum(precision + recall, numpy.finfo(float).tiny)

    def closest(self, scores: Any, n: int = 10) -> dict[str, float]:
        """The `n` texts of highest score, best first; of equal ones the latest first."""
        order = self._numpy.argsort(scores, kind="stable")[-n:][::-1]
        return {self.texts[i]: float(scores[i]) for i in order}
