"""A fake endpoint that speaks the OpenAI protocol over HTTP on the loopback interface, for tests of any part.

    with FakeEndpoint() as server:
        Endpoint("fake", base_url=server.url, api_key="key")

`write(prompt) -> str` writes the answers; by default numbered tasks that differ between prompts and depend on the
prompt alone, so that two runs that ask the same get the same. `faults` are used up one a request, before anything is
answered. Requests that were answered are kept in `served`.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

KEY = "sk-test-0123456789abcdef"
_VERBS = ["Explain", "Describe", "Compare", "Invent", "Summarise", "Translate", "Count", "Sort", "Defend", "Question"]
_NOUNS = (
    *("anchor", "basket", "candle", "dragon", "ember", "falcon", "garden", "harbour", "island", "jungle", "kettle"),
    *("lantern", "meadow", "needle", "orchard", "pepper", "quarry", "ribbon", "saddle", "temple", "umbrella"),
    *("valley", "walnut", "yarrow", "zephyr", "bridge", "copper", "desert", "engine", "forest", "glacier"),
)


class Fault(NamedTuple):
    """One failed request.

    Attributes:
        status: of the answer; 0 closes the connection without one, -1 answers nothing until the client gives up,
            -2 answers 200 with a body that is no JSON, -3 with JSON of another form.
        body: of the error, under "error".
        headers: for instance {"retry-after": "1"}.
    """

    status: int
    body: dict[str, Any] = {}
    headers: dict[str, str] = {}


def rate_limit(**headers: str) -> Fault:
    """429, as asked too often."""
    return Fault(429, {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}, headers)


SERVER_ERROR = Fault(500, {"message": "The server had an error", "type": "server_error"})
NO_QUOTA = Fault(429, {"message": "You exceeded your current quota", "code": "insufficient_quota"})
HANG_UP, SILENCE, NO_JSON, OTHER_JSON = Fault(0), Fault(-1), Fault(-2), Fault(-3)


def tasks(prompt: str, n: int = 4) -> str:
    """A continuation of `prompt`: its first unwritten task and those after it, n in all."""
    rng = random.Random(hashlib.sha256(prompt.encode()).hexdigest())
    first = int(prompt.rsplit("\n", 1)[-1].split(".")[0])
    pieces = []
    for number in range(first, first + n):
        words = " ".join(rng.sample(_NOUNS, 6))
        instruction = f"{rng.choice(_VERBS)} how {words} fit together {rng.randrange(10**6)}"
        given = "<noinput>" if rng.random() < 0.5 else f"the {rng.choice(_NOUNS)}"
        body = f"{number}. Input:\n{given}\n{number}. Output:\nAn answer about {words}.\n"
        pieces.append(f"{'' if number == first else f'{number}. Instruction:'} {instruction}\n{body}")
    return "###\n".join(pieces)


class FakeEndpoint:
    """The server; it runs from `__enter__` to `__exit__`.

    Attributes:
        url: the base URL, once it runs.
        served: (path, request, reply) of each answered request.
        refused: statuses of the requests that failed.
        models: the names it knows; None for any.
        context: tokens (of four bytes) that prompt and completion may have together; None for no limit.
        delay: seconds before an answer, or a function of the prompt.
        most_at_once: the largest number of requests that were in work at a time.
    """

    def __init__(
        self,
        write: Callable[[str], str] = tasks,
        faults: Iterable[Fault] = (),
        key: str = KEY,
        models: Iterable[str] | None = None,
        context: int | None = None,
        delay: float | Callable[[str], float] = 0.0,
        finish: Callable[[str], str] = lambda prompt: "stop",
        usage: bool = True,
    ):
        self.write, self.key, self.context, self.delay = write, key, context, delay
        self.models = None if models is None else set(models)
        self.finish, self.usage = finish, usage
        self.faults = deque(faults)
        self.served: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.refused: list[int] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> FakeEndpoint:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with fake._lock:
                    fake._at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake._at_once)
                try:
                    fake._answer(self)
                except (BrokenPipeError, ConnectionResetError):  # the client has gone: killed, or out of patience
                    self.close_connection = True
                finally:
                    with fake._lock:
                        fake._at_once -= 1

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:  # a client that was killed
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def prompts(self) -> list[str]:
        """Every prompt that was answered, in the order of the answers."""
        return [prompt for path, request, _ in self.served for prompt in _prompts(path, request)]

    def _answer(self, http: BaseHTTPRequestHandler) -> None:
        request = json.loads(http.rfile.read(int(http.headers["content-length"])))
        fault = self._fault(http, request)
        if fault is not None:
            with self._lock:
                self.refused.append(fault.status)
            self._fail(http, fault)
            return
        prompts = _prompts(http.path, request)
        self._over.wait(self.delay(prompts[0]) if callable(self.delay) else self.delay)
        texts = [self.write(prompt) for prompt in prompts]
        chat = http.path.endswith("/chat/completions")
        reply: dict[str, Any] = {
            "id": "fake",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {
                    "index": i,
                    "finish_reason": self.finish(prompt),
                    "logprobs": None,
                    **({"message": {"role": "assistant", "content": text}} if chat else {"text": text}),
                }
                for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
            ][::-1],
        }
        if self.usage:
            read, written = (sum(_tokens(t) for t in ts) for ts in (prompts, texts))
            reply["usage"] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        with self._lock:
            self.served.append((http.path, request, reply))
        _send(http, 200, json.dumps(reply).encode())

    def _fault(self, http: BaseHTTPRequestHandler, request: dict[str, Any]) -> Fault | None:
        """What is wrong with the request, or the next fault in line."""
        if http.headers["authorization"] != f"Bearer {self.key}":
            shown = str(http.headers["authorization"])[:12]
            return Fault(401, {"message": f"Incorrect API key provided: {shown}", "code": "invalid_api_key"})
        if self.models is not None and request["model"] not in self.models:
            return Fault(404, {"message": f"The model {request['model']} does not exist", "code": "model_not_found"})
        with self._lock:
            if self.faults:
                return self.faults.popleft()
        budget = request.get("max_tokens", request.get("max_completion_tokens", 0))
        wanted = budget + max(_tokens(p) for p in _prompts(http.path, request))
        if self.context is not None and wanted > self.context:
            text = f"This model's maximum context length is {self.context} tokens, you requested {wanted} tokens"
            return Fault(400, {"message": f"{text}. Please reduce your prompt.", "code": "context_length_exceeded"})
        return None

    def _fail(self, http: BaseHTTPRequestHandler, fault: Fault) -> None:
        if fault.status > 0:
            _send(http, fault.status, json.dumps({"error": fault.body}).encode(), fault.headers)
        elif fault == NO_JSON:
            _send(http, 200, b"<html>gateway</html>")
        elif fault == OTHER_JSON:
            _send(http, 200, b'{"choices": null}')
        else:
            if fault == SILENCE:
                self._over.wait(30)
            http.close_connection = True


def _prompts(path: str, request: dict[str, Any]) -> list[str]:
    if path.endswith("/chat/completions"):
        return [request["messages"][-1]["content"]]
    prompt = request["prompt"]
    return [prompt] if isinstance(prompt, str) else prompt


def _tokens(text: str) -> int:
    return len(text.encode()) // 4


def _send(http: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    http.send_response(status)
    for name, value in {"content-type": "application/json", **(headers or {})}.items():
        http.send_header(name, value)
    http.send_header("content-length", str(len(body)))
    http.end_headers()
    http.wfile.write(body)
