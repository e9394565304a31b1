"""Two texts, of which the second is trained, and one text, of which all is. Nothing is put between or around them."""

from __future__ import annotations

from collections.abc import Callable

from inlay.data.chat import Chat
from inlay.data.schema import Format, Part, Row, register


def _pair(between: str, *names: tuple[str, str]) -> Callable[[Row, Chat], list[Part]]:
    def parts(row: Row, chat: Chat) -> list[Part]:
        asked, answered = next((n for n in names if row.columns.issuperset(n)), names[0])
        return [Part(row.text(asked) + between), Part(row.text(answered), True)]

    return parts


def _text(row: Row, chat: Chat) -> list[Part]:
    return [Part(row.text("text"), True)]


_PROMPTS = (("prompt", "completion"), ("prompt", "response"), ("input", "output"))
PROMPT = register(Format("prompt", _PROMPTS, _pair("", *_PROMPTS)))
QUESTION = register(Format("question", (("question", "answer"),), _pair("\n", ("question", "answer"))))
TEXT = register(Format("text", (("text",),), _text, last_resort=True))
