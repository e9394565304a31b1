"""A model behind an OpenAI-compatible API, asked through the `openai` package (the extra `generate`)."""

from __future__ import annotations

import email.utils
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inlay.errors import ConfigError, EndpointError, optional
from inlay.selfinstruct.generate import Answer, Busy, Overflow, Reply, Sampling

# what servers say when prompt and max_tokens are longer than the context (OpenAI, vLLM, llama.cpp, TGI and others)
_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size|context (length|window|size)|reduce (your|the) (prompt|length)"
    r"|max_(completion_|new_)?tokens'?\W+(is |are )?too large|too many tokens|tokens\S* must be <=",
    re.IGNORECASE,
)
_BUSY = {408, 409, 425, 429}


def _chat(client: Any, prompts: list[str], fields: Mapping[str, Any]) -> Any:
    return client.chat.completions.create(messages=[{"role": "user", "content": prompts[0]}], **fields)


def _completions(client: Any, prompts: list[str], fields: Mapping[str, Any]) -> Any:
    return client.completions.create(prompt=prompts, **fields)


APIS: dict[str, tuple[Callable[..., Any], Callable[[str, Any], str]]] = {
    "chat": (_chat, lambda prompt, choice: continued(prompt, choice.message.content or "")),
    "completions": (_completions, lambda prompt, choice: choice.text or ""),
}
"""API -> how it is asked, and the text of a choice."""


class Endpoint:
    """A model by its name at an endpoint.

    Args:
        model: its name there.
        base_url: where; default the variable OPENAI_BASE_URL, then OpenAI.
        api_key: default the variable OPENAI_API_KEY; endpoints of one's own often need none. Held in memory only: never
            written to a file, a message or the repr.
        api: "chat", one prompt a call, or "completions", `batch` prompts a call as Alpaca did.
        batch: prompts per call; 1 for chat, 5 for completions.
        concurrency: calls at a time.
        timeout: seconds until a call counts as failed.
        token_field: the name of the completion budget; some chat models want "max_completion_tokens".

    Raises ConfigError for values that are not allowed or without a key for OpenAI, MissingExtraError without `openai`.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        api: str = "chat",
        batch: int | None = None,
        concurrency: int = 5,
        timeout: float = 120.0,
        token_field: str = "max_tokens",
    ):
        if api not in APIS:
            raise ConfigError.of("api", api, f"one of {', '.join(map(repr, APIS))}")
        batch = batch or (1 if api == "chat" else 5)
        if batch < 1 or (api == "chat" and batch != 1):
            raise ConfigError.of("batch", batch, "1 for chat, at least 1 for completions")
        if concurrency < 1:
            raise ConfigError.of("concurrency", concurrency, "an integer of at least 1")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
        if api_key is None and base_url is None:
            raise ConfigError(
                "No API key: set the variable OPENAI_API_KEY or give api_key, or give the base_url of an endpoint that "
                "needs none.",
                "api_key",
            )
        self.name, self.batch, self.concurrency = model, batch, concurrency
        self._token_field = token_field
        self._key = api_key
        self._openai = optional("openai", "generate")
        self._client = self._openai.OpenAI(api_key=api_key or "none", base_url=base_url, timeout=timeout, max_retries=0)
        self._request, self._text = APIS[api]

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> Reply:
        """One request. Raises Overflow, Busy, or EndpointError where asking again would not help."""
        fields: dict[str, Any] = {
            "model": self.name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._token_field: sampling.max_tokens,
            "extra_body": dict(sampling.extra) or None,
        }
        if sampling.stop:
            fields["stop"] = list(dict.fromkeys(sampling.stop))
        openai = self._openai
        try:
            reply = self._request(self._client, list(prompts), fields)
        except openai.APIStatusError as error:
            raise self._judged(error) from None
        except openai.APIConnectionError as error:  # a timeout is one
            raise Busy(self._said(error)) from None
        except (openai.APIError, json.JSONDecodeError) as error:
            raise Busy(f"an answer that cannot be read ({type(error).__name__})") from None
        try:  # the package checks no types: a proxy's page of HTML arrives as a text
            choices = sorted(reply.choices, key=lambda choice: choice.index or 0)
            pairs = zip(prompts, choices, strict=False)
            answers = tuple(Answer(self._text(prompt, choice), choice.finish_reason or "") for prompt, choice in pairs)
        except (AttributeError, TypeError):
            raise Busy("an answer without choices") from None
        if len(choices) != len(prompts):
            raise Busy(f"{len(choices)} answers to {len(prompts)} prompts")
        usage = reply.usage
        return Reply(answers, getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))

    def _said(self, error: Exception) -> str:
        """The error's message, short, on one line and without the key."""
        text = " ".join(str(error).split())
        return (text.replace(self._key, "***") if self._key else text)[:300]

    def _judged(self, error: Any) -> Exception:
        """What an answer with an error status means."""
        status = error.status_code
        said = self._said(error).removeprefix(f"Error code: {status} - ")
        code = str(getattr(error, "code", None) or "")
        if status == 401:  # what the server says may quote a part of the key
            return EndpointError("The endpoint refused the API key (401). Check OPENAI_API_KEY, or the api_key given.")
        if status == 403:
            return EndpointError(f"The API key may not use {self.name!r} (403). Use another model, or a key that may.")
        if status == 404:
            return EndpointError(f"The endpoint has no model {self.name!r} (404). Check its name, base_url and api.")
        if status == 402 or code == "insufficient_quota":
            return EndpointError(f"The account behind the API key has no credit left ({status}). Top it up.")
        if status in (400, 413, 422) and _OVERFLOW.search(f"{code} {said}"):
            return Overflow(said)
        if status in _BUSY or status >= 500:
            return Busy(f"{status}: {said}", retry_after(error.response.headers))
        return EndpointError(f"The endpoint rejects the request ({status}): {said}")


def continued(prompt: str, text: str) -> str:
    """The answer without the prompt's last line, which chat models repeat before they go on."""
    last = prompt.rsplit("\n", 1)[-1]
    start = text.lstrip().removeprefix("###").lstrip()
    return start[len(last) :] if start.startswith(last) else text


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """The seconds that an answer asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now())
        except ValueError:
            pass
    return None
