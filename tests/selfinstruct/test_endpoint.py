"""The endpoint, over real HTTP against a fake server with injected faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from inlay.errors import ConfigError, EndpointError
from inlay.selfinstruct import Endpoint, Reply, Retry, Sampling
from inlay.selfinstruct.endpoint import _OVERFLOW, continued, retry_after
from inlay.selfinstruct.generate import ask
from tests.selfinstruct import endpoint as fake
from tests.selfinstruct.endpoint import KEY, FakeEndpoint, Fault, rate_limit

pytest.importorskip("openai", reason="needs the extra generate")

PROMPT = "Go on\n###\n4. Instruction:"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


Call = Callable[..., tuple[Reply, FakeEndpoint, list[float]]]


@pytest.fixture
def call() -> Iterator[Call]:
    """Asks a server with these faults once. Returns (reply, server, waits)."""
    opened: list[Any] = []

    def run(*faults: Fault, sampling: Sampling | None = None, **kwargs: Any) -> Any:
        ours = {k: kwargs.pop(k) for k in ("timeout", "api_key", "token_field") if k in kwargs}
        opened.append(server := FakeEndpoint(faults=faults, **kwargs).__enter__())
        opened.append(model := Endpoint("m", base_url=server.url, **{"api_key": KEY, **ours}))
        waits: list[float] = []
        run.server = server  # type: ignore[attr-defined]
        reply = ask(model, [PROMPT], sampling or Sampling(), Retry(attempts=4), waits.append, 0)
        return reply, server, waits

    yield run
    for each in reversed(opened):
        each.__exit__(None, None, None)


def test_chat(call: Call) -> None:
    reply, server, _ = call(sampling=Sampling(extra={"logit_bias": {"50256": -100}}))
    assert reply.answers[0].text == fake.tasks(PROMPT) and reply.answers[0].finish_reason == "stop"
    ((path, request, answer),) = server.served
    assert path == "/v1/chat/completions"
    assert request == {
        "model": "m",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 3072,
        "temperature": 1.0,
        "top_p": 1.0,
        "stop": ["\n20", "20."],
        "logit_bias": {"50256": -100},
    }
    assert (reply.prompt_tokens, reply.completion_tokens) == tuple(answer["usage"].values())[:2]


def test_completions_answer_a_batch_in_order(call: Call) -> None:
    """The server sends its choices in the wrong order; `index` says which is which."""
    with (
        FakeEndpoint(write=lambda p: p[:1]) as server,
        Endpoint("m", base_url=server.url, api_key=KEY, api="completions") as m,
    ):
        assert m.batch == 5
        reply = m.ask(["a.", "b.", "c."], Sampling(), 0)
    assert [a.text for a in reply.answers] == ["a", "b", "c"]
    assert server.served[0][0] == "/v1/completions" and server.served[0][1]["prompt"] == ["a.", "b.", "c."]


def test_truncated_answers_say_so_and_usage_may_be_missing(call: Call) -> None:
    reply, _, _ = call(finish=lambda prompt: "length", usage=False)
    assert reply.answers[0].finish_reason == "length" and reply.prompt_tokens is None


@pytest.mark.parametrize(
    "fault",
    [
        rate_limit(),
        fake.SERVER_ERROR,
        Fault(503, {"message": "overloaded"}),
        fake.HANG_UP,
        fake.NO_JSON,
        fake.OTHER_JSON,
    ],
)
def test_passing_faults_are_tried_again(call: Call, fault: Fault) -> None:
    reply, server, waits = call(fault, fault)
    assert len(server.served) == 1 and len(server.refused) == 2 and reply.answers
    assert len(waits) == 2 and 1 <= waits[0] < 2 <= waits[1] < 4


def test_a_silent_server_times_out(call: Call) -> None:
    reply, server, waits = call(fake.SILENCE, timeout=0.3)
    assert reply.answers and server.refused == [-1] and len(waits) == 1


def test_faults_without_end_are_bounded(call: Call) -> None:
    with pytest.raises(EndpointError, match=r"m did not answer in 4 attempts; the last one: 500: .*The server"):
        call(*[fake.SERVER_ERROR] * 99)
    assert len(call.server.refused) == 4  # type: ignore[attr-defined]


def test_retry_after_is_honoured(call: Call) -> None:
    _, _, waits = call(
        rate_limit(**{"retry-after": "17"}), rate_limit(**{"retry-after-ms": "2500", "retry-after": "9"})
    )
    assert 17 <= waits[0] <= 18.7 and 2.5 <= waits[1] <= 2.75


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": formatdate(1030, usegmt=True)}, now=lambda: 1000.0) == 30.0
    assert retry_after({"retry-after": formatdate(990, usegmt=True)}, now=lambda: 1000.0) == 0.0
    assert retry_after({"retry-after": "1.5"}) == 1.5


def test_the_budget_shrinks_until_the_context_holds_it(call: Call) -> None:
    reply, server, waits = call(context=2000)
    assert reply.max_tokens == 1965 and server.refused == [400, 400] and waits == []
    assert server.served[0][1]["max_tokens"] == 1965


def test_a_prompt_that_leaves_no_room_is_skipped(call: Call) -> None:
    reply, server, _ = call(context=8)
    assert reply.skipped and server.served == [] and 20 < len(server.refused) < 30


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4097 tokens. Please reduce your prompt; or completion length.",
        "'max_tokens' or 'max_completion_tokens' is too large: 3072. This model's maximum context length is 2048",
        "max_tokens is too large: 30720. This model supports at most 16384 completion tokens",
        "the request exceeds the available context size, try increasing it",
        "`inputs` tokens + `max_new_tokens` must be <= 4096",
        "Please reduce the length of the messages or completion.",
    ],
)
def test_how_servers_say_that_the_context_is_too_short(said: str) -> None:
    assert _OVERFLOW.search(said)
    assert not _OVERFLOW.search("temperature must be <= 2")
    assert not _OVERFLOW.search("Unsupported parameter: 'max_tokens'")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            Fault(401, {"message": f"Incorrect API key provided: {KEY}"}),
            r"refused the API key \(401\)\. Check OPENAI_API_KEY",
        ),
        (Fault(403, {"message": "no"}), r"may not use 'm' \(403\)"),
        (Fault(404, {"message": "no"}), r"has no model 'm' \(404\)\. Check its name, base_url and api"),
        (fake.NO_QUOTA, r"no credit left \(429\)"),
        (Fault(400, {"message": f"Unsupported parameter 'stop' {KEY}"}), r"rejects the request \(400\): .*Unsupported"),
        (rate_limit(**{"retry-after": "7200"}), "asks to wait 7200 s, more than 600 s"),
    ],
)
def test_what_will_not_help_stops_at_once(call: Call, fault: Fault, message: str) -> None:
    with pytest.raises(EndpointError, match=message) as caught:
        call(fault)
    assert len(call.server.refused) == 1 and KEY not in str(caught.value)  # type: ignore[attr-defined]


def test_a_bad_key_and_an_unknown_model(call: Call) -> None:
    with pytest.raises(EndpointError, match=r"\(401\)") as caught:
        call(api_key="sk-wrong-key")
    assert "sk-wrong" not in str(caught.value) and "sk-wrong" not in repr(caught.value.__context__ or "")
    with pytest.raises(EndpointError, match=r"no model 'm' \(404\)"):
        call(models=["other"])


def test_where_the_key_comes_from(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"No API key: set the variable OPENAI_API_KEY or give api_key"):
        Endpoint("m")
    _, server, _ = call(api_key=None, key="none")  # an endpoint of one's own needs none
    assert len(server.served) == 1
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    call(api_key=None)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with Endpoint("m") as model:
        assert KEY not in repr(model) and str(model._client.base_url).rstrip("/") == server.url


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"api": "chats"}, r"api='chats' is not allowed: expected one of 'chat', 'completions'"),
        ({"batch": 5}, "batch=5 is not allowed: expected 1 for chat"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Endpoint("m", api_key=KEY, **arguments)


def test_the_name_of_the_budget_can_be_another() -> None:
    with (
        FakeEndpoint() as server,
        Endpoint("m", base_url=server.url, api_key=KEY, token_field="max_completion_tokens") as m,
    ):
        m.ask([PROMPT], Sampling(stop=()), 0)
    request = server.served[0][1]
    assert request["max_completion_tokens"] == 3072 and "max_tokens" not in request and "stop" not in request


def test_chat_models_that_repeat_the_last_line() -> None:
    assert continued(PROMPT, " Name it") == " Name it"
    for echo in ("4. Instruction: Name it", "\n###\n4. Instruction: Name it", "### 4. Instruction: Name it"):
        assert continued(PROMPT, echo) == " Name it"
    assert continued(PROMPT, "5. Instruction: Name it") == "5. Instruction: Name it"


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_only_chat_answers_are_read_so(api: str) -> None:
    """A completion is Alpaca's: what it says goes on exactly where the prompt ended."""
    echo = "4. Instruction: Name it"
    with FakeEndpoint(write=lambda p: echo) as server, Endpoint("m", base_url=server.url, api_key=KEY, api=api) as m:
        assert m.ask([PROMPT], Sampling(), 0).answers[0].text == (" Name it" if api == "chat" else echo)
