"""Batches that say which rows they are made of."""

from __future__ import annotations

from typing import Any

import torch


class Numbered:
    """A data set whose items say which rows of the source they are."""

    def __init__(self, items: Any):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every item."""
        return list(self.items.lengths)

    def __getitem__(self, i: int) -> dict[str, Any]:
        packs = getattr(self.items, "packs", None)
        numbers = [self.items.rows[i]] if packs is None else [self.items.prepared.rows[j] for j in packs[i]]
        return {**self.items[i], "rows": numbers}


class WithRows:
    """A collator that passes on the rows' numbers where items have them."""

    def __init__(self, collate: Any):
        self.collate = collate

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(items)
        numbers = [number for item in items for number in item.get("rows", ())]
        return {**batch, "rows": torch.tensor(numbers)} if numbers else batch
