"""Several SOURCEs side by side, over one base: runs, adapters, models, and the base itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from inlay.comparison.columns import BASE
from inlay.comparison.questions import PLAIN
from inlay.errors import BaseMismatchError, ConfigError
from inlay.runs.opened import Source, find_source


class Side:
    """One of them. The base, and a model of unknown format, are asked as the first is.

    Attributes:
        name: of its column.
        tokenizer: the one it was trained with.
        format: of the data it was trained on.
        trained: whether it was trained on that.
    """

    def __init__(self, name: str, source: Source | None, first: Source, base: Callable[[], Any], device: Any):
        self.name, self._source, self._base, self._device = name, source, base, device
        self.tokenizer = (source or first).load_tokenizer()
        own = source.format if source is not None else None
        self.format, self.trained = own or first.format or PLAIN, own is not None

    @contextmanager
    def speaker(self) -> Iterator[Any]:
        """The model, for as long as it is asked. Adapters stand on the one base; a whole model is loaded for it."""
        if self._source is None:
            yield self._base()
        elif self._source.adapter is not None:
            yield self._view
        else:
            yield self._source.load_model(device=self._device)

    def check(self) -> None:
        """Raises BaseMismatchError if it is an adapter of another base."""
        if self._source is not None and self._source.adapter is not None:
            _ = self._view

    @cached_property
    def _view(self) -> Any:
        assert self._source is not None
        try:
            return self._source.load_model(self._base())
        except BaseMismatchError as error:
            raise BaseMismatchError(
                f"'{self._source.text}' is an adapter of another base than the others. {error}"
            ) from error


def sides_of(source: str | Path, others: Sequence[str | Path] = (), device: Any = None) -> list[Side]:
    """The base if it is among the others, the source, the others. Only tokenizers are loaded; a model when it speaks.

    Args:
        source: a SOURCE (`inlay.runs.opened`).
        others: SOURCEs, and "base".
        device: where to; None for a GPU if there is one.

    Raises:
        ConfigError: two of them are the same, or there is no base.
        MissingFileError, StateError, CorruptFileError: as `inlay.runs.opened.open_source`.
    """
    if isinstance(others, (str, Path)):
        raise ConfigError.of("with_", str(others), "a list of runs, and 'base'", "Put it in brackets.")
    first = find_source(source)
    found: dict[str, Source | None] = {}
    if BASE in others:
        if first.adapter is None and first.run is None:
            raise ConfigError(f"'{source}' is a model, which has no base beside it: name a run to set beside it.")
        found[BASE] = None
    for one in [first, *(find_source(text) for text in others if text != BASE)]:
        if any(other is not None and other.place == one.place for other in found.values()):
            raise ConfigError(f"'{one.text}' is named twice.")
        found[one.text if one.name in found else one.name] = one
    place = first.device if device is None else device

    @cache
    def base() -> Any:
        known = (one for one in found.values() if one is not None)
        owner = next((one for one in known if one.adapter is not None or one.run is not None), first)
        return owner.load_base(place)

    return [Side(name, one, first, base, place) for name, one in found.items()]
