"""What models are asked: prompts as token ids, and with a reference the row that a loss is taken of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from inlay.data import Causal, Chat, Part, Prepared, Tokens
from inlay.data.templates import GORILLA, alpaca
from inlay.data.tokenize import Encoder, Segment
from inlay.errors import ConfigError, DataError, did_you_mean

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]

_LONGEST = 2**31


def _said(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


ASKED: dict[str, Callable[[str], Prompt]] = {
    "plain": str,
    "alpaca": alpaca,
    "apibench": lambda text: GORILLA.format(question=text),
    "question": lambda text: text + "\n",
    "messages": _said,
    "sharegpt": _said,
    **dict.fromkeys(("adgen", "prompt", "text"), str),
}
"""The format that a model was trained in -> what it is asked for a text."""


class Question(NamedTuple):
    """One prompt.

    Attributes:
        text: what is shown of it.
        ids: what the model is given.
        reference: the answer that is wanted, if one is known.
        row: prompt and reference as they would be trained on, the prompt masked.
    """

    text: str
    ids: list[int]
    reference: str | None = None
    row: Tokens | None = None


def questions_of(
    prompts: Sequence[Prompt] | Prepared,
    tokenizer: Any,
    references: Sequence[str | None] | None = None,
    format: str = "plain",
) -> list[Question]:
    """The questions that prompts are: texts, conversations (lists of messages), or the rows of a prepared data set.

    A text is put as `format` puts it; a conversation goes through the tokenizer's chat template. Of a prepared row the
    prompt is what stands before the first trained token, and the reference the trained tokens that follow.

    Raises:
        ConfigError: an unknown format, or references that are not one for each prompt.
        DataError: there are no prompts, or one of them is empty.
    """
    if isinstance(prompts, Prepared):
        if references is not None:
            raise ConfigError.of("references", "...", "None with a prepared data set", "Its rows hold them.")
        return [_of_row(prompts, i, tokenizer) for i in range(len(prompts))]
    if isinstance(prompts, str):
        raise ConfigError.of("prompts", prompts, "a list of prompts", f"Give [{prompts[:20]!r}] for one.")
    if format not in ASKED:
        raise ConfigError.of("format", format, f"one of {sorted(ASKED)}", did_you_mean(format, ASKED).strip())
    if references is not None and len(references) != len(prompts):
        raise ConfigError.of("references", f"{len(references)} texts", f"one for each of the {len(prompts)} prompts")
    if not prompts:
        raise DataError("There are no prompts: give at least one.")
    encoder, chat = Encoder(tokenizer), Chat(tokenizer)
    layout = Causal(encoder.head, encoder.end, _LONGEST)
    found = []
    for number, prompt in enumerate(prompts, 1):
        reference = None if references is None else references[number - 1]
        put = ASKED[format](prompt) if isinstance(prompt, str) else prompt
        question = _of_text(put, reference, encoder, chat, layout)
        if not question.ids:
            raise DataError(f"Prompt {number} is empty, and the tokenizer begins no text with a token of its own.")
        found.append(question._replace(text=_shown(prompt)))
    return found


def _of_text(put: Prompt, reference: str | None, encoder: Encoder, chat: Chat, layout: Causal) -> Question:
    complete = not isinstance(put, str)
    if isinstance(put, str):
        parts = [Part(put), Part(reference or "", True)]
        ids = [*encoder.head, *encoder.ids([put])[0]]
    else:
        messages = [dict(message) for message in put]
        text = chat.tokenizer.apply_chat_template(
            messages, chat_template=chat.template, tokenize=False, add_generation_prompt=True
        )
        parts = chat.parts([*messages, {"role": "assistant", "content": reference or ""}])
        ids = encoder.ids([text])[0]
    if reference is None:
        return Question("", ids)
    (segments,) = encoder.rows([parts])
    if not isinstance(segments, list):
        raise segments
    return Question("", ids, reference, layout(_segments(segments), complete))


def _segments(segments: list[Segment]) -> list[Segment]:
    return [s for s in segments if s.ids]


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0].get("content"))
    return "\n".join(f"{m.get('role')}: {m.get('content')}" for m in prompt)


def _of_row(prepared: Prepared, i: int, tokenizer: Any) -> Question:
    ids, trained = prepared.tokens(i)
    start = trained.find(1)
    end = trained.find(0, start)
    asked, wanted = ids[:start], ids[start : end if end >= 0 else len(ids)]
    prompt, reference = (tokenizer.decode(part, skip_special_tokens=True) for part in (asked, wanted))
    return Question(prompt, asked, reference, Tokens(ids, list(map(bool, trained)), False, None))
