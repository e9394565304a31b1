"""Several rows in one sequence, without any of them seeing another.

Positions start again at 0 with every row, the first label of a row is not trained (it would be predicted from the row
before), and attention stays within a row. How the last is said to the model differs; a collator each:

    FlatCollator    one sequence without padding. transformers reads the rows' bounds from position_ids (SDPA, eager,
                    flex) or, with `bounds=True`, from cu_seq_lens (flash attention). Layers that mix tokens by other
                    means than attention (Mamba) read neither: there rows cannot be packed.
    BlockCollator   padded sequences with a block-diagonal mask (batch, 1, length, length), for any model with
                    attention that takes one.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

from inlay.data.layout import IGNORE_INDEX
from inlay.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.data.prepared import Prepared


@dataclass
class Packed:
    """Packs of rows: `packed[i]` is {"input_ids", "labels", "position_ids", "length"}.

    Attributes:
        prepared: the rows; `packs`: the indices of the rows in each pack; `max_length`: of a pack.
    """

    prepared: Prepared
    packs: list[list[int]]
    max_length: int

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        rows = [self.prepared[j] for j in self.packs[i]]
        lengths = [row["length"] for row in rows]
        return {
            "input_ids": list(chain.from_iterable(row["input_ids"] for row in rows)),
            "labels": list(chain.from_iterable([IGNORE_INDEX, *row["labels"][1:]] for row in rows)),
            "position_ids": list(chain.from_iterable(map(range, lengths))),
            "length": sum(lengths),
        }

    @property
    def lengths(self) -> list[int]:
        """The length of every pack."""
        lengths = self.prepared.lengths
        return [sum(lengths[i] for i in pack) for pack in self.packs]

    @property
    def filled(self) -> float:
        """The share of all places that hold a token."""
        return sum(self.prepared.lengths) / (len(self) * self.max_length) if self.packs else 0.0


def pack(prepared: Prepared, max_length: int) -> Packed:
    """Every row in a pack of at most `max_length` tokens: the longest first, each where the least room is left over.

    O(n log n) for n rows, up to the number of different rooms. Raises ConfigError if a row is longer than `max_length`.
    """
    lengths = prepared.lengths
    if lengths and max(lengths) > max_length:
        raise ConfigError.of("max_length", max_length, f"at least the length of the longest row, {max(lengths)}")
    packs: list[list[int]] = []
    rooms: list[int] = []  # the different rooms left, in order
    having: dict[int, list[int]] = {}  # room -> packs that have it
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(rooms, lengths[i])
        if at == len(rooms):
            which, room = len(packs), max_length
            packs.append([])
        else:
            room = rooms[at]
            which = having[room].pop()
            if not having[room]:
                del having[room], rooms[at]
        packs[which].append(i)
        left = room - lengths[i]
        if left not in having:
            having[left] = []
            bisect.insort(rooms, left)
        having[left].append(which)
    return Packed(prepared, packs, max_length)


class FlatCollator:
    """Packs, or rows, as one sequence: input_ids, labels and position_ids, each (1, length).

    With `bounds`, also what flash attention takes: cu_seq_lens_q and cu_seq_lens_k, int32 (rows + 1,), max_length_q and
    max_length_k. The names and the layout are those of transformers' DataCollatorWithFlattening, with one thing
    more: use_cache=False. A model that makes a cache does not look at the bounds, and its rows would see one another.
    """

    def __init__(self, bounds: bool = False):
        self.bounds = bounds

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """One batch."""
        import torch

        lengths = list(chain.from_iterable(_row_lengths(row) for row in rows))
        labels = chain.from_iterable([IGNORE_INDEX, *row["labels"][1:]] for row in rows)
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([list(chain.from_iterable(row["input_ids"] for row in rows))]),
            "labels": torch.tensor([list(labels)]),
            "position_ids": torch.tensor([list(chain.from_iterable(map(range, lengths)))]),
            "use_cache": False,
        }
        if self.bounds:
            ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
            longest = max(lengths)
            batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        return batch


class BlockCollator:
    """Packs as padded sequences with a mask that is 0 within a row, causally, and the least number elsewhere.

    Args:
        pad_token_id: the id to pad with.
        dtype: of the mask, that of the model's activations ("float32", "bfloat16", ...).
    """

    def __init__(self, pad_token_id: int, dtype: str = "float32"):
        self.pad_token_id, self.dtype = pad_token_id, dtype

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """input_ids, labels and position_ids (packs, length), attention_mask (packs, 1, length, length)."""
        import torch

        length = max(len(row["input_ids"]) for row in rows)
        dtype = getattr(torch, self.dtype)
        of, ids, labels, positions = [], [], [], []
        for row in rows:
            lengths, fill = _row_lengths(row), length - len(row["input_ids"])
            of.append([*chain.from_iterable([n] * size for n, size in enumerate(lengths)), *[-1] * fill])
            ids.append([*row["input_ids"], *[self.pad_token_id] * fill])
            labels.append([IGNORE_INDEX, *row["labels"][1:], *[IGNORE_INDEX] * fill])
            positions.append([*chain.from_iterable(map(range, lengths)), *range(fill)])
        which = torch.tensor(of)  # padding is a row of its own: it attends to itself, so that no softmax is empty
        seen = (which[:, :, None] == which[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "position_ids": torch.tensor(positions),
            "attention_mask": mask[:, None],
        }


def _row_lengths(row: Any) -> list[int]:
    """The lengths of the rows in a pack; of a row that is none, its own.

    They are read off the positions, as Trainer takes away what the model's `forward` has no argument for.
    """
    positions = row.get("position_ids")
    starts = [0] if positions is None else [i for i, position in enumerate(positions) if position == 0]
    return [end - start for start, end in pairwise([*starts, len(row["input_ids"])])]
