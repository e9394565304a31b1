"""`compare`: base and adapters side by side, over one loaded base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from inlay.comparison.answers import Decoding, check_model, losses, write
from inlay.comparison.questions import PLAIN, Prompt, Question, questions_of
from inlay.comparison.result import Answer, Comparison, Row
from inlay.data import Prepared
from inlay.errors import ConfigError, StateError, did_you_mean
from inlay.io.folder import CONFIG_NAME, adapter_in
from inlay.model import PeftModel

Speaker = Callable[[], AbstractContextManager[Any]]
"""Gives the model of one column, for as long as it is asked."""

BASE = "base"


class Column(NamedTuple):
    """A model, and what it is asked."""

    speaker: Speaker
    questions: Sequence[Question]
    tokenizer: Any


def compare(
    model: Any,
    adapters: Sequence[str | Path | nn.Module] | Mapping[str, str | Path | nn.Module] | None = None,
    prompts: Sequence[Prompt] | Prepared = (),
    tokenizer: Any = None,
    references: Sequence[str | None] | None = None,
    *,
    format: str = PLAIN,
    decoding: Decoding | None = None,
    batch_size: int = 1,
) -> Comparison:
    """Asks the base and adapters the same prompts, with the same seeds. The base's weights are held once.

    Row i of every column is written with the seed `decoding.seed + i`. A row's loss is the mean over the reference's
    tokens, its end token included, given the prompt (`inlay.data` masks it).

    Args:
        model: the base, or a view of it; what it answers is as before afterwards.
        adapters: names of the view's adapters, folders of adapters or of runs, or models (other views, merged or full
            models), as a list or with names for the columns. None: all of the view's.
        prompts: texts, conversations (lists of messages), or a prepared data set.
        tokenizer: of transformers.
        references: wanted answers, one a prompt; None where there is none.
        format: how a text is put: "plain" as it is, "alpaca", "messages", ...: the format of the training data.
        decoding: greedy with 64 new tokens if not given.
        batch_size: how many greedy answers are written at a time. Padding may change the last digits.

    Raises:
        ConfigError: no causal language model, no adapters, unknown names, two columns of one name, a wrong argument.
        StateError: an adapter is merged, so that others cannot be switched to.
        DataError: there are no prompts. Errors of loading: a folder is not an adapter of this base.
    """
    check_model(model)
    if tokenizer is None:
        raise ConfigError.of("tokenizer", None, "the tokenizer that the adapters were trained with")
    decoding = decoding or Decoding()
    questions = questions_of(prompts, tokenizer, references, format)
    with _speakers(model, adapters) as speakers:
        columns = {name: Column(speaker, questions, tokenizer) for name, speaker in speakers.items()}
        put = prompts.report.format if isinstance(prompts, Prepared) else format
        return side_by_side(columns, decoding, batch_size, {"format": put})


def side_by_side(
    columns: Mapping[str, Column], decoding: Decoding, batch_size: int, settings: Mapping[str, Any]
) -> Comparison:
    """Asks one column after the other. Row i of each is the same prompt; what is shown of it is the first column's."""
    answers = []
    for speaker, questions, tokenizer in columns.values():
        with speaker() as speaks:
            rows = [q.row for q in questions if q.row is not None]
            known = iter(losses(speaks, rows, tokenizer, batch_size))
            means = [None if q.row is None else next(known).mean for q in questions]
            texts = write(speaks, questions, tokenizer, decoding, batch_size)
        answers.append([Answer(text, mean) for text, mean in zip(texts, means, strict=True)])
    shown = next(iter(columns.values())).questions
    rows_of = zip(shown, zip(*answers, strict=True), strict=True)
    made = tuple(Row(q.text, tuple(a), q.reference) for q, a in rows_of)
    return Comparison(tuple(columns), made, asdict(decoding) | dict(settings))


@contextmanager
def _speakers(model: Any, adapters: Any) -> Iterator[dict[str, Speaker]]:
    """Column -> its model. Loading an adapter freezes the base; afterwards it is as trainable as before."""
    base = model.unload() if isinstance(model, PeftModel) else model
    before = {p: p.requires_grad for m in (base, model) for p in m.parameters()}
    own = list(model.peft_config) if isinstance(model, PeftModel) else []
    try:
        speakers: dict[str, Speaker] = {BASE: _base_of(model)}
        for name, adapter in _named(own if adapters is None else adapters, own):
            if name in speakers:
                raise ConfigError.of(
                    "adapters", name, "columns of different names", "Give a dict from column name to adapter."
                )
            speakers[name] = _speaker(model, base, adapter, own)
        if len(speakers) == 1:
            raise ConfigError.of("adapters", adapters, "at least one adapter to compare with the base")
        yield speakers
    finally:
        for p, trainable in before.items():
            p.requires_grad_(trainable)


def _named(adapters: Any, own: Sequence[str]) -> list[tuple[str, Any]]:
    """Column's name and adapter."""
    if isinstance(adapters, (str, Path, nn.Module)):
        raise ConfigError.of("adapters", adapters, "a list of adapters", "Put it in brackets.")
    if isinstance(adapters, Mapping):
        return list(adapters.items())
    return [(_name(adapter, own), adapter) for adapter in adapters]


def _name(adapter: Any, own: Sequence[str]) -> str:
    if isinstance(adapter, PeftModel):
        return "+".join(adapter.active_adapters) or BASE
    if isinstance(adapter, nn.Module):
        return type(adapter).__name__
    if adapter in own:
        return str(adapter)
    return title(Path(adapter))


def title(folder: Path) -> str:
    """What an adapter's folder is called: as the run whose `adapter/` it is."""
    path = folder.absolute()
    return path.parent.name if path.name == "adapter" else path.name


def _base_of(model: Any) -> Speaker:
    @contextmanager
    def base() -> Iterator[Any]:
        with model.disable_adapter():
            yield model

    return base if isinstance(model, PeftModel) else lambda: nullcontext(model)


def _speaker(model: Any, base: Any, adapter: Any, own: Sequence[str]) -> Speaker:
    if isinstance(adapter, nn.Module):
        check_model(adapter)
        return lambda: nullcontext(adapter)
    if adapter in own:
        if model._inlay.merged:
            raise StateError(
                f"{', '.join(map(repr, model._inlay.merged))} is merged into the weights: call unmerge_adapter() "
                "before comparing adapters."
            )
        return lambda: _switched(model, str(adapter))
    folder = adapter_in(adapter)
    if folder is None:
        raise ConfigError.of(
            "adapters",
            str(adapter),
            f"an adapter of the view ({', '.join(own) or 'none'}), a run's folder, or a folder with {CONFIG_NAME}",
            did_you_mean(str(adapter), own).strip(),
        )
    view = PeftModel.from_pretrained(base, str(folder))
    return lambda: nullcontext(view)


@contextmanager
def _switched(view: Any, name: str) -> Iterator[Any]:
    """The view with one adapter active."""
    index = view._inlay
    before = index.active.names
    index.activate([name])
    try:
        with index.active.switched(disabled=False):
            yield view
    finally:
        index.active.set(before)
