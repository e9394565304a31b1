"""ADGEN, ChatGLM's advertisements: `content`, `summary`, and the rounds before them where there is a `history`."""

from __future__ import annotations

from typing import Any

from inlay.data.chat import Chat
from inlay.data.schema import BadRow, Format, Part, Row, register, valid_text
from inlay.data.templates import chatglm_rounds


def _parts(row: Row, chat: Chat) -> list[Part]:
    content, summary = row.text("content"), row.text("summary")
    for name, text in (("content", content), ("summary", summary)):
        if not text:  # ChatGLM leaves such rows out, too
            raise BadRow(f"{name} is empty")
    if "history" in row.columns:
        content = chatglm_rounds(content, _rounds(row.values.get("history") or []))
    return [Part(content), Part(summary, True)]


def _rounds(history: Any) -> list[tuple[str, str]]:
    if not isinstance(history, (list, tuple)) or any(not isinstance(h, (list, tuple)) or len(h) != 2 for h in history):
        raise BadRow("history is not a list of [question, answer] pairs")
    return [(valid_text(q, "a question of history"), valid_text(a, "an answer of history")) for q, a in history]


ADGEN = register(Format("adgen", (("content", "summary"),), _parts, optional=("history",)))
