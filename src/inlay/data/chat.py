"""Conversations as a tokenizer's chat template writes them, cut into what the assistant wrote and the rest.

A template that marks it (`{% generation %} ... {% endgeneration %}`) is believed. Of any other, what the assistant
writes in turn i is found by rendering twice. With T the whole text, and

    P = the messages before turn i, followed by the template's prompt for an answer
    F = the messages up to turn i

it is the part of T after P, up to the end of F; and there up to its end token, because no model writes what a
template puts behind that (mostly a line feed). This holds only if T begins with P and F. A template that writes a turn
differently once others follow (one that drops earlier reasoning) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from inlay.data.schema import BadRow, Part
from inlay.data.templates import PLAIN_CHAT
from inlay.errors import DataError, optional

Message = dict[str, Any]

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # no text holds them: they are set aside for uses like this one
_MARK = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class Chat:
    """The chat template of a tokenizer, or another one: its text, or "plain" for `templates.PLAIN_CHAT`."""

    def __init__(self, tokenizer: Any, template: str | None = None):
        self.tokenizer = tokenizer
        self._given = PLAIN_CHAT if template == "plain" else template

    @cached_property
    def template(self) -> str:
        """Raises DataError if there is none."""
        if self._given is not None:
            return self._given
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                "The data are conversations, and the tokenizer has no chat template. Give one with chat_template=: "
                "its text, or 'plain' for lines that begin with USER: and ASSISTANT:."
            )
        return str(self.tokenizer.get_chat_template())

    def parts(self, messages: Sequence[Message], tools: Any = None) -> list[Part]:
        """The conversation's text, with the assistant's turns trained. Raises BadRow, or DataError for a template."""
        text = self._render(self.template, messages, tools)
        if _OPEN in text or _CLOSE in text:
            raise BadRow("the conversation holds characters that are none (U+FDD0 or U+FDD1)")
        spans = self._marked(messages, tools, text) if self._marked_template else self._turns(messages, tools, text)
        parts, done = [], 0
        for start, end in spans:
            parts += [Part(text[done:start]), Part(text[start:end], True)]
            done = end
        return [*parts, Part(text[done:])]

    # --- templates that mark what the assistant writes ---

    @cached_property
    def _marked_template(self) -> str | None:
        """The template with marks in its output, or None. `if` blocks stand where the tags did: they trim alike."""
        if not any(not m[2] for m in _MARK.finditer(self.template)):
            return None
        return _MARK.sub(
            lambda m: "{%" + m[1] + " if true %}{{ '" + (_CLOSE if m[2] else _OPEN) + "' }}{% endif " + m[3] + "%}",
            self.template,
        )

    def _marked(self, messages: Sequence[Message], tools: Any, text: str) -> list[tuple[int, int]]:
        marked = self._render(str(self._marked_template), messages, tools)
        spans, length = [], 0
        for piece in re.split(f"({_OPEN}[^{_CLOSE}]*{_CLOSE})", marked):
            bare = piece.strip(_OPEN + _CLOSE)
            if bare != piece:
                spans.append((length, length + len(bare)))
            length += len(bare)
        if marked.replace(_OPEN, "").replace(_CLOSE, "") != text:
            raise DataError("The chat template uses {% generation %} in a way that cannot be followed.")
        return spans

    # --- templates that do not ---

    def _turns(self, messages: Sequence[Message], tools: Any, text: str) -> list[tuple[int, int]]:
        turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        return [self._turn(messages, i, tools, text) for i in turns]

    def _turn(self, messages: Sequence[Message], i: int, tools: Any, text: str) -> tuple[int, int]:
        before = self._render(self.template, messages[:i], tools, prompt=True)
        after = self._render(self.template, messages[: i + 1], tools) if i + 1 < len(messages) else text
        given = messages[i].get("content")
        content = given if isinstance(given, str) else ""
        same = after if text.startswith(after) else _common(after, text)
        written = same[len(before) :]
        if content not in written:
            content = content.strip()  # as many templates write it
        at = written.find(content)
        if not text.startswith(before) or (same != after and (not content or at < 0)):
            raise DataError(
                "The chat template writes an assistant's turn differently once other turns follow, so it cannot be "
                "told what to train. Give a template that marks it with {% generation %} (chat_template=), or rows "
                "of one answer each."
            )
        start = len(before)
        if at > 0 and written[:at].strip() and before == self._render(self.template, messages[:i], tools):
            start += at  # the template has no prompt for an answer, so what introduces one is not the model's
        alone = bool(content) and at >= 0 and not messages[i].get("tool_calls")  # tool calls follow, in special tokens
        ends = (
            [m.end() for m in self._special.finditer(written, at + len(content) if alone else 0)]
            if self._special
            else []
        )
        return start, len(before) + (ends[0 if alone else -1] if ends else len(written))

    def holds_special(self, text: Any) -> bool:
        """Whether a special token of the tokenizer stands in `text`, where it will be read as one."""
        return isinstance(text, str) and self._special is not None and self._special.search(text) is not None

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        tokens = {*self.tokenizer.all_special_tokens, *(t.content for t in added if t.special)} - {""}
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None

    def _render(self, template: str, messages: Sequence[Message], tools: Any, prompt: bool = False) -> str:
        jinja2 = optional("jinja2", "data")
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise BadRow(f"the chat template refuses the conversation: {error}") from error
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow("the conversation holds half of a surrogate pair, which is no character") from None
        return str(text)


def _common(a: str, b: str) -> str:
    """The start that two texts share."""
    return a[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))]
