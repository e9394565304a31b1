"""Parts of text as token ids, so that the boundary between what is trained and what is not falls between two tokens.

A row's prompt is tokenised alone, as it will be when the model is asked; so is what follows it. Tokenising all at once
and cutting at the prompt's length is wrong wherever a token spans the boundary.

Some tokenizers put a space before any text they are given (sentencepiece). Within a row that space would be one too
many, so there a part is tokenised behind an anchor, whose tokens are then taken off:

    continuation(x) = ids(anchor + x)[len(ids(anchor)):]        if ids(anchor + x) begins with ids(anchor)

Under the condition no token spans the anchor's end, so the rest are the tokens of x alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from inlay.data.schema import BadRow, Part
from inlay.errors import DataError, did_you_mean

_ANCHORS = ("\n", ":", ".", "|", "0", "a", "#", "=")
_PROBES = ("Yes", "a b", "7", "(x)")


class Segment(NamedTuple):
    """Tokens of one part."""

    ids: list[int]
    trained: bool


class Encoder:
    """A tokenizer, and what it does around a text.

    Attributes:
        head: the ids it begins a sequence with.
        end: the ids a row ends with: the end token, or what the tokenizer ends a sequence with if it has none.
        prefixed: whether it puts a space before a text.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        (bare,), (full,) = self.ids(["a"]), self.ids(["a"], special=True)
        at = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), None)
        if at is None:
            raise DataError(f"{type(tokenizer).__name__} changes a text's tokens when it adds special ones to them.")
        eos = getattr(tokenizer, "eos_token_id", None)
        self.head = full[:at]
        self.end = [eos] if eos is not None else full[at + len(bare) :]
        self._anchors = self._usable_anchors()
        plain = self.ids(_PROBES)
        behind = [pair for a in self._anchors for pair in zip(self._behind(a, _PROBES), plain, strict=True)]
        compared = [rest == alone for rest, alone in behind if rest is not None]
        self.prefixed = bool(compared) and not any(compared)

    def ids(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Token ids of each text."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=special, padding=False, truncation=False, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        return encoded["input_ids"]  # type: ignore[no-any-return]

    def continuations(self, texts: Sequence[str]) -> list[list[int] | None]:
        """Token ids of texts that stand behind others; None where no anchor serves."""
        if not self.prefixed:
            return list(self.ids(texts))
        found: list[list[int] | None] = [None] * len(texts)
        for anchor in self._anchors:
            missing = [i for i, ids in enumerate(found) if ids is None]
            if not missing:
                break
            for i, ids in zip(missing, self._behind(anchor, [texts[i] for i in missing]), strict=True):
                found[i] = ids
        return found

    def rows(self, rows: Sequence[Sequence[Part]]) -> list[list[Segment] | BadRow]:
        """Rows of parts as segments. Neighbours that are both trained, or both not, are one text."""
        joined = [join(row) for row in rows]
        first = iter(self.ids([row[0].text for row in joined if row]))
        later = iter(self.continuations([part.text for row in joined for part in row[1:]]))
        found: list[list[Segment] | BadRow] = []
        for row in joined:
            segments = [Segment(next(first), part.trained) for part in row[:1]]
            rest = [(next(later), part.trained) for part in row[1:]]
            segments += [Segment(ids, trained) for ids, trained in rest if ids is not None]
            whole = len(segments) == len(row)
            found.append(segments if whole else BadRow("a part of it cannot be tokenised apart from the one before it"))
        return found

    def _behind(self, anchor: str, texts: Sequence[str]) -> list[list[int] | None]:
        ((*alone,),) = self.ids([anchor])
        joint = self.ids([anchor + text for text in texts])
        return [ids[len(alone) :] if ids[: len(alone)] == alone else None for ids in joint]

    def _usable_anchors(self) -> list[str]:
        """Those the tokenizer knows: unknown ones might be fused with what follows."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return [a for a, ids in zip(_ANCHORS, self.ids(_ANCHORS), strict=True) if ids and unknown not in ids]


def join(parts: Iterable[Part]) -> list[Part]:
    """The parts without empty ones, neighbours of the same kind joined."""
    joined: list[Part] = []
    for part in parts:
        if joined and part.text and joined[-1].trained == part.trained:
            joined[-1] = Part(joined[-1].text + part.text, part.trained)
        elif part.text:
            joined.append(part)
    return joined


LOSS_ON = ("answers", "last", "all")


def trained_on(parts: Sequence[Part], loss_on: str) -> list[Part]:
    """The parts with the loss on all answers, on the last one, or on everything."""
    if loss_on not in LOSS_ON:
        raise DataError(f"loss_on={loss_on!r} is not known: expected one of {LOSS_ON}.{did_you_mean(loss_on, LOSS_ON)}")
    if loss_on == "all":
        return [Part(part.text, True) for part in parts]
    if loss_on == "answers":
        return list(parts)
    last = max((i for i, part in enumerate(parts) if part.trained), default=-1)
    return [Part(part.text, part.trained and i == last) for i, part in enumerate(parts)]
