"""Where virtual tokens stand among the tokens of a batch.

    given       mask (b, L), 1 for tokens, 0 for padding
    decoders    [v v x x x 0]  [v v 0 x x x]   positions count the tokens before: padding takes none
    encoders    [v v x x x 0]  [v v x x x 0]   leading padding moves behind, so that relative positions are right too

so that what a token sees depends neither on padding nor on its side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inlay.errors import StateError


class Layout:
    """P virtual tokens before each row of a batch.

    Args:
        count: P.
        mask: (b, L) the attention mask, or None if there is no padding.
        moves: leading padding goes behind the tokens.

    Raises:
        StateError: the mask is not of shape (b, L).
    """

    def __init__(self, count: int, mask: Any, moves: bool):
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise StateError(
                "Virtual tokens need an attention mask of shape (batch, length), got one made for a static cache or by "
                "hand: generate with the default (dynamic) cache, and pass the tokenizer's mask."
            )
        self.count = count
        self.order: Tensor | None = None  # (b, P + L): which token stands where
        if moves and mask is not None:
            leading = torch.nn.functional.pad(mask.cumsum(-1) == 0, (count, 0))
            self.order = leading.long().argsort(dim=-1, stable=True)
        # (b, P + L): the mask with the virtual tokens
        self.mask: Tensor | None = None if mask is None else self.before(mask, mask.new_ones(()))

    @property
    def positions(self) -> Tensor | None:
        """(b, P + L) of each token the number of tokens before it, padding not counted."""
        return None if self.mask is None else (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    def before(self, values: Tensor, virtual: Tensor) -> Tensor:
        """(b, L, ...) -> (b, P + L, ...): the virtual tokens' values, one or (b or 1, P, ...), put before."""
        shape = (values.shape[0], self.count, *values.shape[2:])
        joined = torch.cat([virtual.to(values.dtype).expand(shape), values], dim=1)
        return joined if self.order is None else joined.gather(1, _like(self.order, joined))

    def take(self, outputs: Tensor) -> Tensor:
        """(b, P + L, d) -> (b, L, d): what stands at the given tokens, in the given order."""
        if self.order is None:
            return outputs[:, self.count :]
        places = self.order.argsort(dim=-1)[:, self.count :]
        return outputs.gather(1, _like(places, outputs))


def _like(index: Tensor, values: Tensor) -> Tensor:
    """`index` (b, n), expanded to the trailing dimensions of `values` (b, m, ...)."""
    trailing = values.shape[2:]
    return index.reshape(*index.shape, *([1] * len(trailing))).expand(*index.shape, *trailing)
