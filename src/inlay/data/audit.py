"""Looking at rows once more: whether what is trained is what the format says, and whose special tokens they hold.

The first rows are read again from their source. For each the trained text is what its tokens decode to where they are
trained, and it has to be the answer's text as its format gives it, then the end token. Of a conversation the roles are
looked at besides, since a chat template says with {% generation %} what is trained, and may say it wrongly.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from inlay.data.chat import Chat, Message
from inlay.data.preparation import renamed
from inlay.data.prepared import Prepared, decoded
from inlay.data.schema import BadRow, Format, Part, Row, known_formats
from inlay.data.sources import read
from inlay.data.tokenize import join, trained_on

_ROWS = 20
_WORDS = 12  # letters of a text that is not in another by chance
_MARK = re.compile(r"<\|[^|<>\s]{1,32}\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]")


def mask_faults(
    source: Any,
    prepared: Prepared,
    tokenizer: Any,
    *,
    format: str | Format | None = None,
    loss_on: str = "answers",
    columns: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    rows: int = _ROWS,
) -> list[str]:
    """What is wrong with the labels of the first rows, a sentence each; with the arguments of `prepare`.

    `prepared` has the layout of `prepare`'s default.
    """
    found = known_formats()[prepared.report.format] if format is None else format
    if isinstance(found, str):
        found = known_formats()[found]
    wanted = {number: i for i, number in enumerate(prepared.rows[:rows])}
    chat, faults = _Heard(tokenizer, chat_template), list[str]()
    cut, seen = set(prepared.report.truncated), frozenset(prepared.report.columns)
    numbered = renamed(read(source).rows, columns or {})
    for number, values in takewhile(lambda row: row[0] <= max(wanted, default=0), numbered):
        if number not in wanted or isinstance(values, BadRow):
            continue
        chat.messages = []
        parts = trained_on(found.parts(Row(values, seen), chat), loss_on)
        text = _trained_text(prepared, wanted[number], tokenizer)
        fault = _text_fault(text, join(parts), tokenizer, number in cut)
        if fault is None and loss_on != "all":
            fault = _role_fault(text, chat.messages, tokenizer, loss_on, number in cut)
        faults += [f"Row {number} {fault}"] if fault else []
    return faults


def foreign_marks(prepared: Prepared, tokenizer: Any, own: str = "", rows: int = _ROWS) -> list[tuple[str, int]]:
    """Marks such as <|im_start|> in the first rows that this tokenizer has no token for, and how many each becomes.

    Those that stand in `own`, the chat template that came with the tokenizer, are left out.
    """
    texts = (decoded(tokenizer, prepared.tokens(i)[0]) for i in range(min(rows, len(prepared))))
    marks = dict.fromkeys(mark for text in texts for mark in _MARK.findall(text) if mark not in own)
    lengths = [(mark, len(tokenizer(mark, add_special_tokens=False)["input_ids"])) for mark in marks]
    return [(mark, length) for mark, length in lengths if length > 1]


class _Heard(Chat):
    """Keeps the conversation that a format writes."""

    messages: Sequence[Message] = ()

    def parts(self, messages: Sequence[Message], tools: Any = None) -> list[Part]:
        self.messages = messages
        return super().parts(messages, tools)


def _trained_text(prepared: Prepared, i: int, tokenizer: Any) -> list[str]:
    """The text of each run of trained tokens."""
    ids, trained = prepared.tokens(i)
    return [decoded(tokenizer, ids[start:end]) for start, end in _runs(trained)]


def _runs(trained: bytes) -> Iterator[tuple[int, int]]:
    return (match.span() for match in re.finditer(b"\x01+", trained))


def _text_fault(runs: list[str], parts: list[Part], tokenizer: Any, cut: bool) -> str | None:
    """Compared as the tokenizer writes the texts, without spaces, of which some tokenizers add or drop one."""
    told = [_bare(_written(part.text, tokenizer)) for part in parts if part.trained]
    want, got = "".join(told), _bare("".join(runs))
    got = got.rstrip("\ufffd") if cut else got  # a character of several tokens, of which some were cut off
    if got.startswith(want) or (cut and want.startswith(got)):
        rest = got[len(want) :]
        if not rest or rest in map(_bare, tokenizer.all_special_tokens):
            return None
    answer = " ... ".join(part.text for part in parts if part.trained)
    return (
        f"trains {_shown(''.join(runs))}, but its answer is {_shown(answer)}: the tokenizer does not give the text "
        "back. Compare tokenizer.decode(tokenizer(text)['input_ids']) with the text."
    )


def _role_fault(runs: list[str], messages: Sequence[Message], tokenizer: Any, loss_on: str, cut: bool) -> str | None:
    got = _bare("".join(runs))
    said = [(m.get("role"), m["content"]) for m in messages if isinstance(m.get("content"), str)]
    bare = {text: _bare(_written(text, tokenizer)) for _, text in said}
    answers = [text for role, text in said if role == "assistant" and bare[text]]
    known = "".join(bare[text] for text in answers)
    fix = (
        "The chat template marks the wrong parts with {% generation %}: put that around what the assistant writes, "
        "or take the marks out, and the turns are found."
    )
    for role, text in said:
        if role != "assistant" and len(bare[text]) >= _WORDS and bare[text] in got and bare[text] not in known:
            return f"trains what the {role} says, {_shown(text)}. {fix}"
    wanted = answers[-1:] if loss_on == "last" else answers
    if wanted and not cut and not any(bare[text] in got for text in wanted):
        return f"does not train what the assistant says, {_shown(wanted[0])}. {fix}"
    return None


def _written(text: str, tokenizer: Any) -> str:
    return decoded(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def _bare(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
