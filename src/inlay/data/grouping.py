"""Batches of rows of about the same length: less padding, and still another order in every epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence


def by_length(
    lengths: Sequence[int], batch_size: int, *, seed: int = 0, epoch: int = 0, pool: int = 50
) -> list[list[int]]:
    """Batches of indices, each of rows that are alike in length.

    Rows are shuffled and sorted within pools of `pool` batches. Then batches are shuffled, with the one that holds the
    longest row first: if that fits in memory, all do. The last batch may be smaller.
    """
    rng = random.Random(f"{seed}-{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    step = batch_size * pool
    ordered: list[int] = []
    for at in range(0, len(order), step):
        ordered += sorted(order[at : at + step], key=lengths.__getitem__, reverse=True)
    batches = [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    short = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
    rng.shuffle(batches)
    batches += short
    if batches:
        longest = max(range(len(batches)), key=lambda b: max(lengths[i] for i in batches[b]))
        batches.insert(0, batches.pop(longest))
    return batches
