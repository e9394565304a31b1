"""Rows as one batch of tensors, padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inlay.data.layout import IGNORE_INDEX
from inlay.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Collator:
    """Pads input_ids and labels to one length, and says with attention_mask what is padding.

    The mask is made of the rows' lengths, never of their ids, so a pad token that is also the end token does no harm.

    Args:
        pad_token_id: the id to pad with. Any id will do, as what is padded is neither attended to nor trained.
        side: "right" or "left".
        pad_to_multiple_of: makes lengths multiples of it.
        pad_to: pads to this length instead of that of the longest row, e.g. for compiled models.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        side: str = "right",
        pad_to_multiple_of: int | None = None,
        pad_to: int | None = None,
    ):
        if side not in ("right", "left"):
            raise ConfigError.of("side", side, "'right' or 'left'")
        if not isinstance(pad_token_id, int):
            raise ConfigError.of(
                "pad_token_id", pad_token_id, "a token id", "Set tokenizer.pad_token, e.g. to tokenizer.eos_token."
            )
        self.pad_token_id, self.side = pad_token_id, side
        self.pad_to_multiple_of, self.pad_to = pad_to_multiple_of, pad_to

    @classmethod
    def of(cls, tokenizer: Any, **options: Any) -> Collator:
        """With the tokenizer's pad token, or else its end token."""
        pad: Any = getattr(tokenizer, "pad_token_id", None)
        return cls(getattr(tokenizer, "eos_token_id", None) if pad is None else pad, **options)  # type: ignore[arg-type]

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """input_ids, labels and attention_mask, each (rows, length), int64."""
        import torch

        filled = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0}
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        length = self._length(max(len(i) for i in ids))
        batch = {name: torch.full((len(rows), length), value) for name, value in filled.items()}
        for n, (row, i) in enumerate(zip(rows, ids, strict=True)):
            at = slice(0, len(i)) if self.side == "right" else slice(length - len(i), length)
            batch["input_ids"][n, at] = i
            batch["labels"][n, at] = torch.as_tensor(row["labels"], dtype=torch.long)
            batch["attention_mask"][n, at] = 1
        return batch

    def _length(self, longest: int) -> int:
        if self.pad_to is not None:
            if longest > self.pad_to:
                raise ConfigError.of("pad_to", self.pad_to, f"at least the length of the longest row, {longest}")
            return self.pad_to
        multiple = self.pad_to_multiple_of or 1
        return -(-longest // multiple) * multiple
