"""A progress bar over the layers of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(items: Collection[T], text: str, show: bool) -> Iterable[T]:
    """`items`, with a bar on stderr, called `text`, if `show`."""
    if not show:
        return items
    from tqdm.auto import tqdm  # which huggingface_hub depends on

    bar: Iterable[T] = tqdm(items, desc=text)
    return bar
