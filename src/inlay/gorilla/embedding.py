"""Retrieval by embeddings: any function from texts to vectors, an index on disk, and two such functions.

retriever = EmbeddingRetriever(records, sentence_transformer(model), cache="index.npz", name=model)
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import ConfigError, CorruptFileError, EndpointError, MissingFileError, NumericsError, optional
from inlay.gorilla.records import Record
from inlay.gorilla.retriever import Retriever

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

Embedding = Callable[[list[str]], Any]
"""Texts -> one vector for each, as an array (texts, width) or lists of numbers."""

BATCH = 2048  # what the reference sends at once, and OpenAI's endpoint allows


class EmbeddingRetriever(Retriever):
    r"""Cosine similarity between the embeddings of a question and of `str(record)`, with newlines as spaces.

        score(q, d) = e(q) . e(d) / (|e(q)| |e(d)|)

    With `cache`, a file, the records' vectors are kept there, by the hash of their text, and written after every
    `batch` of texts: what was embedded once is not embedded again, also after a stop or when records are added. A cache
    belongs to one embedding function, whose `name` is kept in it. Questions are not kept.

    Raises ConfigError if the function returns other than one vector of one width for each text, if `cache` is given
    without a name or is that of another; NumericsError if a vector is zero or not finite; CorruptFileError if the cache
    cannot be read.
    """

    def __init__(
        self,
        records: Sequence[Record],
        embed: Embedding,
        cache: str | os.PathLike[str] | None = None,
        name: str | None = None,
        batch: int = BATCH,
    ):
        super().__init__(records)
        if not isinstance(batch, int) or batch < 1:
            raise ConfigError.of("batch", batch, "an integer of at least 1")
        if cache is not None and not name:
            raise ConfigError.of("name", name, "the name of the embedding function, to which the cache belongs")
        self._embed, self._batch, self._name = embed, batch, name or ""
        self._vectors = self._index([str(record) for record in self.records], None if cache is None else Path(cache))

    def scores(self, questions: Sequence[str]) -> NDArray[float64]:
        """The cosine between each question and each record, (questions, records)."""
        import numpy as np

        parts = [questions[i : i + self._batch] for i in range(0, len(questions), self._batch)]
        return np.concatenate([self._unit(part) @ self._vectors.T for part in parts])

    def _index(self, texts: list[str], cache: Path | None) -> NDArray[float64]:
        import numpy as np

        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        known = _load(cache, self._name) if cache is not None and cache.exists() else {}
        missing = list({key: text for key, text in zip(keys, texts, strict=True) if key not in known}.items())
        for start in range(0, len(missing), self._batch):
            part = missing[start : start + self._batch]
            known.update(zip((key for key, _ in part), self._unit([text for _, text in part]), strict=True))
            if len({len(vector) for vector in known.values()}) > 1:
                kept = "before" if cache is None else f"those in '{cache}'"
                raise ConfigError(f"The embedding function returns vectors of another width than {kept}.")
            if cache is not None:
                _save(cache, self._name, known)
        return np.stack([known[key] for key in keys])

    def _unit(self, texts: Sequence[str]) -> NDArray[float64]:
        """One vector of length 1 for each text."""
        import numpy as np

        returned = self._embed([text.replace("\n", " ") for text in texts])
        try:
            vectors = np.asarray(returned, dtype=np.float64)
        except (TypeError, ValueError) as error:  # ragged lists, or no numbers
            raise ConfigError(f"The embedding function returned no array of numbers: {error}") from error
        if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.size:
            raise ConfigError(
                f"The embedding function returned {vectors.shape} for {len(texts)} texts: expected (texts, width)."
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        wrong = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
        if len(wrong):
            raise NumericsError(
                f"The embedding of text {wrong[0] + 1} of {len(texts)} is zero or not finite: {texts[wrong[0]]!r:.200}"
            )
        unit: NDArray[float64] = vectors / lengths
        return unit


def sentence_transformer(model: str | os.PathLike[str], **arguments: Any) -> Embedding:
    """The embeddings of a sentence-transformers model, a folder or a name. `arguments` go to `SentenceTransformer`.

    Raises MissingFileError if it is neither.
    """
    package = optional("sentence_transformers", "embeddings")
    try:
        loaded = package.SentenceTransformer(os.fspath(model), **arguments)
    except OSError as error:
        raise MissingFileError(
            f"The embedding model '{model}' cannot be loaded: {str(error).splitlines()[0]} "
            "It has to be a folder with a sentence-transformers model, or an id on the Hub."
        ) from error

    def embed(texts: list[str]) -> Any:
        return loaded.encode(texts, show_progress_bar=False)

    return embed


def openai_endpoint(
    model: str, base_url: str | None = None, api_key: str | None = None, attempts: int = 6, timeout: float = 60.0
) -> Embedding:
    """The embeddings of an OpenAI-compatible endpoint; without `base_url` and `api_key`, what `openai` itself takes.

    Rate limits, timeouts and errors of the server are tried again with growing waits, `attempts` times in all. Raises
    EndpointError then, and at once for a refused key or request; ConfigError without a key for OpenAI itself.
    """
    if not isinstance(attempts, int) or attempts < 1:
        raise ConfigError.of("attempts", attempts, "an integer of at least 1")
    package = optional("openai", "generate")
    own = base_url or os.environ.get("OPENAI_BASE_URL")
    key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if own else None)
    try:
        client = package.OpenAI(base_url=base_url, api_key=key, max_retries=attempts - 1, timeout=timeout)
    except package.OpenAIError as error:
        raise ConfigError("No API key: set the variable OPENAI_API_KEY or give api_key.", "api_key") from error

    def embed(texts: list[str]) -> Any:
        try:
            rows = client.embeddings.create(model=model, input=texts, encoding_format="float").data
        except package.AuthenticationError:  # what it says may quote a part of the key
            raise EndpointError("The endpoint refused the API key (401). Check OPENAI_API_KEY, or api_key.") from None
        except package.APIError as error:
            raise EndpointError(f"The endpoint gave no embeddings of {model!r}: {error}") from error
        return [row.embedding for row in sorted(rows, key=lambda row: row.index)]

    return embed


def _load(cache: Path, name: str) -> dict[str, NDArray[float64]]:
    import numpy as np

    try:
        with open(cache, "rb") as opened, np.load(opened, allow_pickle=False) as file:  # numpy leaves bad files open
            keys, vectors, kept = file["keys"].tolist(), file["vectors"], str(file["name"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"'{cache}' is no cache of embeddings: {error}. Remove it; it is made again.") from error
    if vectors.ndim != 2 or len(vectors) != len(keys) or vectors.dtype != np.float64 or not np.isfinite(vectors).all():
        raise CorruptFileError(
            f"'{cache}' is damaged: {len(keys)} keys, vectors {vectors.shape}. Remove it; it is made again."
        )
    if kept != name:
        raise ConfigError(
            f"'{cache}' holds embeddings of {kept!r}, not of {name!r}. Give each function a cache of its own."
        )
    return dict(zip(keys, vectors, strict=True))


def _save(cache: Path, name: str, known: dict[str, NDArray[float64]]) -> None:
    """Whole or not at all: written beside it, then renamed over it."""
    import numpy as np

    cache.parent.mkdir(parents=True, exist_ok=True)
    beside = cache.with_name(f".{cache.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            np.savez(file, name=np.array(name), keys=np.array(list(known)), vectors=np.stack(list(known.values())))
        os.replace(beside, cache)
    finally:
        beside.unlink(missing_ok=True)
