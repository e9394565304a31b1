"""Finding the API records that belong to a question: one interface, BM25 as Gorilla's reference has it.

`EmbeddingRetriever` is in `inlay.gorilla.embedding`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.data.templates import GORILLA
from inlay.errors import ConfigError, optional
from inlay.gorilla.prompt import filled, with_reference
from inlay.gorilla.records import Record

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Hit:
    """A record that was found: the record, its place in the database, and how well it fits."""

    record: Record
    index: int
    score: float


class Retriever(ABC):
    """Finds records of an API database. A subclass says how well each fits; everything else is here."""

    def __init__(self, records: Sequence[Record]):
        if not records:
            raise ConfigError.of("records", records, "at least one API record")
        self.records = list(records)

    @abstractmethod
    def scores(self, questions: Sequence[str]) -> NDArray[float64]:
        """How well each record fits each question, (questions, records); more is better."""

    def search(self, questions: Sequence[str], k: int = 1) -> list[list[Hit]]:
        """The `k` best records for each question, best first; of equals the earlier one.

        Raises ConfigError if `k` is not from 1 to the number of records, or `questions` is one string.
        """
        import numpy as np

        if isinstance(questions, str):
            raise ConfigError.of("questions", questions, "a list of questions")
        if not isinstance(k, int) or not 1 <= k <= len(self.records):
            raise ConfigError.of("k", k, f"an integer from 1 to {len(self.records)}, the number of records")
        if not questions:
            return []
        scores = self.scores(questions)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [
            [Hit(self.records[i], int(i), float(row[i])) for i in found]
            for row, found in zip(scores, best, strict=True)
        ]

    def instruction(self, question: str, k: int = 1) -> str:
        """The question with the documentation of the `k` best records, as training rows have it."""
        return self.instructions([question], k)[0]

    def instructions(self, questions: Sequence[str], k: int = 1) -> list[str]:
        """`instruction` of each question."""
        found = zip(questions, self.search(questions, k), strict=True)
        return [with_reference(question, [hit.record for hit in hits]) for question, hits in found]

    def prompt(self, question: str, k: int = 1, template: str = GORILLA) -> str:
        """The model's prompt: `instruction(question, k)` in `template`, by default the one of Gorilla's own models."""
        return filled(template, self.instruction(question, k))


class BM25Retriever(Retriever):
    r"""Okapi BM25 over `str(record)`, in words split at single spaces.

        score(q, d) = sum over words w of q:  idf(w) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|))
        idf(w)      = ln((N - n + 1/2) / (n + 1/2)),  where negative: epsilon times the mean idf of all words

    f: how often w is in d; |d|: words of d; N: records; n: records with w. Case and punctuation count. This is what
    Gorilla uses, BM25Okapi of the package rank_bm25 with its constants; `bm25s` computes it over a sparse matrix.

    Raises MissingExtraError without `inlay[retrieval]`.
    """

    def __init__(self, records: Sequence[Record], k1: float = 1.5, b: float = 0.75, epsilon: float = 0.25):
        super().__init__(records)
        documents = [str(record).split(" ") for record in self.records]
        self._words = {word for words in documents for word in words}
        self._index = _okapi(documents, k1, b, epsilon)

    def scores(self, questions: Sequence[str]) -> NDArray[float64]:
        """BM25 of each record for each question, (questions, records)."""
        import numpy as np

        words = [[word for word in question.split(" ") if word in self._words] for question in questions]
        nothing = np.zeros(len(self.records))
        return np.stack([self._index.get_scores(known) if known else nothing for known in words])


def _okapi(documents: list[list[str]], k1: float, b: float, epsilon: float) -> Any:
    """A bm25s index of these words. Its own idf are all non-negative, so each word's column is scaled to Okapi's."""
    import numpy as np

    index = optional("bm25s", "retrieval").BM25(k1=k1, b=b, method="atire", idf_method="lucene", dtype="float64")
    index.index(documents, show_progress=False)
    in_documents = np.diff(index.scores["indptr"]).astype(np.float64)  # n of each word
    rest = len(documents) - in_documents
    idf = np.log((rest + 0.5) / (in_documents + 0.5))
    idf = np.where(idf < 0, epsilon * idf[in_documents > 0].mean(), idf)  # bm25s may know a word that no document has
    lucene = np.log1p((rest + 0.5) / (in_documents + 0.5))
    index.scores["data"] = index.scores["data"] * np.repeat(idf / lucene, in_documents.astype(np.int64))
    return index
