"""Conversations: `messages` with role and content, and ShareGPT's `conversations` with from and value.

The tokenizer's chat template writes them. The turns of the assistant are trained, each with its end token.
"""

from __future__ import annotations

from typing import Any

from inlay.data.chat import Chat
from inlay.data.schema import BadRow, Format, Part, Row, register

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "function_response", "observation"), "tool"),
}


def _messages(row: Row, chat: Chat) -> list[Part]:
    messages = _listed(row, "messages")
    if any(not isinstance(m.get("role"), str) for m in messages):
        raise BadRow("a message has no role")
    return _rendered(messages, row, chat, tools=row.values.get("tools"))


def _sharegpt(row: Row, chat: Chat) -> list[Part]:
    system = row.optional("system")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in _listed(row, "conversations"):
        speaker = turn.get("from")
        if speaker not in _ROLES:
            raise BadRow(f"a turn is from {speaker!r}, expected one of {sorted(_ROLES)}")
        messages.append({"role": _ROLES[speaker], "content": turn.get("value")})
    return _rendered(messages, row, chat)


def _rendered(messages: list[dict[str, Any]], row: Row, chat: Chat, tools: Any = None) -> list[Part]:
    if any(chat.holds_special(message.get("content")) for message in messages):
        row.notes.append("a message holds a special token, which is read as one")
    return chat.parts(messages, tools)


def _listed(row: Row, name: str) -> list[dict[str, Any]]:
    turns = row.get(name)
    if not isinstance(turns, (list, tuple)) or any(not isinstance(turn, dict) for turn in turns):
        raise BadRow(f"{name} is not a list of objects")
    if not turns:
        raise BadRow(f"{name} is empty")
    return list(turns)


MESSAGES = register(Format("messages", (("messages",),), _messages, optional=("tools",), complete=True))
SHAREGPT = register(Format("sharegpt", (("conversations",),), _sharegpt, optional=("system",), complete=True))
