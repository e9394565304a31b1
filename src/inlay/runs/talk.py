"""Talking to models: a question at a time, the answer heard while it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from inlay.comparison.answers import Decoding, write
from inlay.comparison.questions import PLAIN, Question, questions_of
from inlay.data import known_formats
from inlay.errors import DataError
from inlay.runs.said import Say, to_nobody
from inlay.runs.sides import sides_of

LONG = Decoding(max_new_tokens=256)


class Talk:
    """One model, asked one question after the other.

    A model that was trained on conversations, or one that has a chat template and was trained on nothing that is known,
    is given what was said before. One that was trained on single questions is given each alone, as in its training.

    Attributes:
        name: the model's, to show.
        messages: what was said, from the first that is still remembered.
        remembers: whether a question is put with what was said before.
    """

    def __init__(
        self, model: Any, tokenizer: Any, format: str = PLAIN, decoding: Decoding | None = None, name: str = ""
    ):
        self.name, self.messages = name, list[dict[str, str]]()
        self._model, self._tokenizer, self._format = model, tokenizer, format
        self._decoding, self._asked = decoding or LONG, 0
        known = known_formats().get(format)
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self.remembers = has_template if format == PLAIN else known is not None and known.complete

    def ask(self, text: str, hear: Callable[[str], None] = to_nobody, say: Say = to_nobody) -> str:
        """The answer.

        Answer i is drawn with the seed `decoding.seed + i`. Ctrl-C ends the answer where it is.

        Args:
            hear: is given the answer in pieces, while it is written.
            say: is told if the oldest turns are forgotten because the model can read no more.

        Raises:
            DataError: the question alone is too long.
        """
        question = self._fitting(text, say)
        heard = _Heard(self._tokenizer, hear)
        limit, used = self._limit, len(question.ids)
        most = self._decoding.max_new_tokens if limit is None else min(self._decoding.max_new_tokens, limit - used)
        decoding = replace(self._decoding, max_new_tokens=most, seed=self._decoding.seed + self._asked)
        self._asked += 1
        try:
            (answer,) = write(self._model, [question], self._tokenizer, decoding, streamer=heard)
        except KeyboardInterrupt:
            answer = "".join(heard.pieces)
        if self.remembers:
            self.messages += [_message("user", text), _message("assistant", answer)]
        return answer

    def reset(self) -> None:
        """Forgets what was said."""
        self.messages.clear()
        self._asked = 0

    def _fitting(self, text: str, say: Say) -> Question:
        """The question with as many of the last turns as leave room for an answer."""
        limit, dropped = self._limit, 0
        room = None if limit is None else limit - min(self._decoding.max_new_tokens, limit // 2)
        while True:
            question = self._question(text)
            if room is None or len(question.ids) <= room:
                break
            if not self.messages:
                raise DataError(
                    f"The question has {len(question.ids)} tokens, and at most {room} are allowed: '{self.name}' reads "
                    f"{limit}, and some are kept for the answer."
                )
            del self.messages[:2]
            dropped += 1
        if dropped:
            say(f"'{self.name}' reads {limit} tokens: its first {dropped} turns are forgotten.")
        return question

    def _question(self, text: str) -> Question:
        asked: Any = [*self.messages, _message("user", text)] if self.remembers else text
        (question,) = questions_of([asked], self._tokenizer, format=self._format)
        return question

    @property
    def _limit(self) -> int | None:
        """How many tokens the model can read and write."""
        config = self._model.config
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        adapters = getattr(self._model, "peft_config", {}).values()
        virtual = max((getattr(a, "num_virtual_tokens", None) or 0 for a in adapters), default=0)
        return None if most is None else most - virtual


@contextmanager
def talks(
    source: str | Path, others: Sequence[str | Path] = (), *, decoding: Decoding | None = None, device: Any = None
) -> Iterator[list[Talk]]:
    """A talk with a SOURCE, and with each of others (SOURCEs, and "base"), over one base that is loaded once.

    Raises as `inlay.runs.together.compare_sources`.
    """
    sides = sides_of(source, others, device)
    with ExitStack() as stack:
        yield [Talk(stack.enter_context(s.speaker()), s.tokenizer, s.format, decoding, s.name) for s in sides]


class _Heard(TextStreamer):  # type: ignore[misc]  # transformers is not followed
    """What is written, without the prompt, in whole words."""

    def __init__(self, tokenizer: Any, hear: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.hear, self.pieces = hear, list[str]()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.pieces.append(text)
            self.hear(text)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
