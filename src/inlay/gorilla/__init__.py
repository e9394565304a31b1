"""Gorilla: models that call APIs, with retrieval.

    records      API databases, questions, responses and APIBench rows, read and checked
    prompt       what a model is shown: the question, with documentation, among documents
    retriever    one interface, and BM25 over the records; `embedding` has the one over embeddings
    rows         training rows: zero-shot, with the oracle's or a retrieved document, RAFT
    score        AST-based accuracy and hallucination; `syntax` reads the code of responses

Formats and rules are those of Gorilla (Patil et al. 2023, 2305.15334) and RAFT (Zhang et al. 2024, 2403.10131), as in
their repository. `docs/gorilla.md` shows a whole round.
"""

from inlay.gorilla.embedding import EmbeddingRetriever, openai_endpoint, sentence_transformer
from inlay.gorilla.records import (
    Example,
    Question,
    Response,
    read_apis,
    read_examples,
    read_questions,
    read_responses,
)
from inlay.gorilla.retriever import BM25Retriever, Hit, Retriever
from inlay.gorilla.rows import as_prompts, oracle, raft, retrieved, zero_shot
from inlay.gorilla.score import HUBS, Report, Verdict, score

__all__ = [
    "HUBS",
    "BM25Retriever",
    "EmbeddingRetriever",
    "Example",
    "Hit",
    "Question",
    "Report",
    "Response",
    "Retriever",
    "Verdict",
    "as_prompts",
    "openai_endpoint",
    "oracle",
    "raft",
    "read_apis",
    "read_examples",
    "read_questions",
    "read_responses",
    "retrieved",
    "score",
    "sentence_transformer",
    "zero_shot",
]
