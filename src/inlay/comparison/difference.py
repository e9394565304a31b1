"""Differences between two texts, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import NamedTuple

# a word, one character of a script that writes none apart, white space, or a sign
_WORDS = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]|[^\W\u2e80-\u9fff\uf900-\ufaff]+|\s+|[^\w\s]")


class Piece(NamedTuple):
    """A part of a text, and whether the other text lacks it."""

    text: str
    differs: bool


def words(text: str) -> list[str]:
    """The text in words, signs and spaces; joined they are the text."""
    return _WORDS.findall(text)


def difference(text: str, others: Sequence[str]) -> list[Piece]:
    """The text in pieces; one differs if its words are in none of the others, at a place that corresponds.

    White space is of the words beside it: it differs between two that do, and beside one that does it does not.
    """
    own = words(text)
    kept: set[int] = set()
    for other in others:
        for block in SequenceMatcher(None, words(other), own, autojunk=False).get_matching_blocks():
            kept.update(range(block.b, block.b + block.size))
    differ = [bool(others) and i not in kept for i in range(len(own))]
    for i in range(1, len(own) - 1):
        if own[i].isspace() and (differ[i - 1] or differ[i + 1]):
            differ[i] = differ[i - 1] and differ[i + 1]
    marked = zip(own, differ, strict=True)
    return [Piece("".join(w for w, _ in run), differs) for differs, run in groupby(marked, key=lambda m: m[1])]
