"""The order in which rows are trained, where it is not a plain shuffle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from torch.utils.data import Sampler

from inlay.data import by_length


class ByLength(Sampler[int]):
    """Rows of about the same length one after the other (`inlay.data.by_length`).

    The order depends on seed and epoch alone, so that a run that goes on has it again. transformers' own sampler draws
    from the global random state, which by then is another.

    Args:
        lengths: of the rows.
        group: rows that should be alike: those of an optimizer step, over all processes.
    """

    def __init__(self, lengths: Sequence[int], group: int, seed: int):
        self._lengths, self._group, self._seed, self._epoch = lengths, group, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        batches = by_length(self._lengths, self._group, seed=self._seed, epoch=self._epoch)
        return iter(chain.from_iterable(batches))
