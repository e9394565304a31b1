"""How the segments of a row become one sequence: which special tokens, in which order, cut at which length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple, Protocol

from inlay.data.schema import BadRow
from inlay.data.tokenize import Segment

IGNORE_INDEX = -100
"""The label that a loss leaves out."""


class Tokens(NamedTuple):
    """One row: its ids, which of them are trained, whether it was cut, and the end token it is trained to write."""

    ids: list[int]
    trained: list[bool]
    cut: bool
    end: int | None

    @property
    def labels(self) -> list[int]:
        """The ids that are trained, and -100 for the others."""
        return [i if t else IGNORE_INDEX for i, t in zip(self.ids, self.trained, strict=True)]


class Layout(Protocol):
    """Anything that makes a sequence of a row's segments. `complete` rows hold their special tokens already."""

    def __call__(self, segments: Sequence[Segment], complete: bool) -> Tokens:
        """Raises BadRow for a row that does not fit it."""
        ...


@dataclass(frozen=True)
class Causal:
    """head + segments + end, the end being trained; cut on the right at `max_length`.

    An answer that ends with the end token already gets no second one. A row that is cut has none: it does not end
    there. `ends` are tokens that end a complete row's answer.
    """

    head: Sequence[int]
    end: Sequence[int]
    max_length: int
    ends: frozenset[int] = frozenset()

    def __call__(self, segments: Sequence[Segment], complete: bool) -> Tokens:
        """See `Layout`."""
        ids = list(chain([] if complete else self.head, *(s.ids for s in segments)))
        trained = list(chain(*(repeat(s.trained, len(s.ids)) for s in segments)))
        trained = [False] * (len(ids) - len(trained)) + trained
        if not complete and not (trained and trained[-1] and ids[-len(self.end) :] == list(self.end)):
            ids.extend(self.end)
            trained.extend([True] * len(self.end))
        cut = len(ids) > self.max_length
        ids, trained = ids[: self.max_length], trained[: self.max_length]
        return Tokens(ids, trained, cut, None if cut else self._end(ids, trained))

    def _end(self, ids: list[int], trained: list[bool]) -> int | None:
        """The end token, if it is the last trained one; where all is trained, so is what a template puts behind it."""
        ends = self.ends.union(self.end[-1:])
        written = (i for i, t in zip(reversed(ids), reversed(trained), strict=True) if t)
        if all(trained):
            return next((i for i in written if i in ends), None)
        last = next(written, None)
        return last if last in ends else None


@dataclass(frozen=True)
class ChatGLM:
    """ChatGLM-6B's rows, prompt a and answer b (THUDM/ChatGLM-6B, ptuning):

        a[: max_source - 1] + [gmask, bos] + b[: max_target - 2] + [eop]

    trained from bos on: bos itself is a label. The defaults are the ids of the published model (vocabulary 130,528)
    and the lengths of its ADGEN recipe. `padded` gives rows of the one length that its recipe trains on.
    """

    gmask: int = 130001
    bos: int = 130004
    eop: int = 130005
    pad: int = 3
    max_source: int = 64
    max_target: int = 64

    def __call__(self, segments: Sequence[Segment], complete: bool = False) -> Tokens:
        """See `Layout`."""
        if [s.trained for s in segments] != [False, True]:
            raise BadRow("ChatGLM's layout takes one prompt and one answer")
        return self.row(segments[0].ids, segments[1].ids)

    def row(self, prompt: Sequence[int], answer: Sequence[int]) -> Tokens:
        """The row of a prompt and an answer that were tokenised without special tokens."""
        a, b = prompt[: self.max_source - 1], answer[: self.max_target - 2]
        ids = [*a, self.gmask, self.bos, *b, self.eop]
        cut = len(a) < len(prompt) or len(b) < len(answer)
        return Tokens(ids, [False] * (len(a) + 1) + [True] * (len(b) + 2), cut, self.eop)

    def padded(self, row: Tokens) -> tuple[list[int], list[int]]:
        """Ids and labels, filled on the right to max_source + max_target."""
        fill = self.max_source + self.max_target - len(row.ids)
        return row.ids + [self.pad] * fill, row.labels + [IGNORE_INDEX] * fill
