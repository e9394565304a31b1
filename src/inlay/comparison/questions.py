"""What models are asked: prompts as token ids, and with a reference the row that a loss is taken of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from inlay.data import BadRow, Causal, Chat, Part, Prepared, Row, Tokens, known_formats
from inlay.data.tokenize import Encoder, Segment
from inlay.errors import ConfigError, DataError, did_you_mean

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]

PLAIN = "plain"
"""The format of a model that was trained on none: a text is put as it is."""

_LONGEST = 2**31
_PLACES = ("QUESTION", "FURTHER")  # words that no format writes itself


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
    format: str = PLAIN,
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
        frames = _frames(prompts.report.format, tokenizer)
        return [_of_row(prompts, i, tokenizer, frames) for i in range(len(prompts))]
    if isinstance(prompts, str):
        raise ConfigError.of("prompts", prompts, "a list of prompts", f"Give [{prompts[:20]!r}] for one.")
    formats = known_formats()
    if format not in (names := sorted([PLAIN, *formats])):
        raise ConfigError.of("format", format, f"one of {names}", did_you_mean(format, names).strip())
    if references is not None and len(references) != len(prompts):
        raise ConfigError.of("references", f"{len(references)} texts", f"one for each of the {len(prompts)} prompts")
    if not prompts:
        raise DataError("There are no prompts: give at least one.")
    encoder, chat = Encoder(tokenizer), Chat(tokenizer)
    layout = Causal(encoder.head, encoder.end, _LONGEST)
    found = []
    for number, prompt in enumerate(prompts, 1):
        reference = None if references is None else references[number - 1]
        put: Prompt = prompt
        if isinstance(prompt, str) and format != PLAIN:
            try:
                put = formats[format].asked(prompt, chat)
            except BadRow as error:
                raise DataError(f"Prompt {number} cannot be asked as {format!r}: {error}.") from error
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


def _of_row(prepared: Prepared, i: int, tokenizer: Any, frames: Sequence[re.Pattern[str]]) -> Question:
    ids, trained = prepared.tokens(i)
    start = trained.find(1)
    end = trained.find(0, start)
    asked, wanted = ids[:start], ids[start : end if end >= 0 else len(ids)]
    prompt, reference = (tokenizer.decode(part, skip_special_tokens=True) for part in (asked, wanted))
    found = next((match for match in (frame.fullmatch(prompt) for frame in frames) if match), None)
    shown = prompt if found is None else "\n".join(found.groups())
    return Question(shown, asked, reference, Tokens(ids, list(map(bool, trained)), False, None))


def _frames(name: str, tokenizer: Any) -> list[re.Pattern[str]]:
    """What a format puts around a row's own words, so that these are shown alone: found with words in their place."""
    format, chat, encoder = known_formats().get(name), Chat(tokenizer), Encoder(tokenizer)
    if format is None:
        return []
    own, more = _PLACES
    row = {**dict.fromkeys(format.shapes[0], "-"), format.shapes[0][0]: own}
    frames = []
    for column in (*format.optional, None):  # the longest first
        try:
            with_more = Row({**row, column: more}, frozenset(row) | {column}) if column else None
            put = format.asked(own, chat) if with_more is None else format.prompt(with_more, chat)
            ids = _of_text(put, None, encoder, chat, Causal([], [], _LONGEST)).ids
        except DataError:  # no chat template, or a column that holds no text
            continue
        text = re.escape(str(tokenizer.decode(ids, skip_special_tokens=True)))
        frames.append(re.compile(text.replace(own, "(.*)", 1).replace(more, "(.*)", 1), re.DOTALL))
    return frames
