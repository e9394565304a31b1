"""Where in each row of a batch an Activated LoRA is invoked (`variants.alora`).

A *span* (first, end) says of a row that the adapter acts on positions from `first` on, of the `end` that there are so
far: those in a key-value cache and those of the call. Layers are given the last of them, so they count from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.core.active import Call
from inlay.errors import StateError

NEVER = 1 << 62  # the first position of a row that does not invoke the adapter


def spans(tokens: Sequence[int], call: Call) -> Tensor:
    """(rows, 2): the span of each row of a call, with the invocation `tokens`.

    In `generate` the prompt decides: what is generated neither invokes the adapter nor begins a span anew, as tokens
    that are cached could not be taken back.

    Raises:
        StateError: there are no token ids to look in, or the invocation may be among tokens that are cached.
    """
    given = call.arguments
    ids, cache = given.get("input_ids"), given.get("past_key_values")
    ids = given.get("inputs") if ids is None else ids
    seen = given.get("inputs_embeds") if ids is None else ids
    cached = 0 if cache is None or call.generates else cache.get_seq_length()
    if call.before is not None and isinstance(seen, Tensor):
        if cache is None and seen.shape[1] < int(call.before[0, 1]):
            raise StateError(
                "Activated LoRA counts the tokens that are cached, but this model's cache does not say how many there "
                "are: call generate with use_cache=False."
            )
        return _joined(call.before[:, 0], cached + seen.shape[1])
    offsets = given.get("alora_offsets")
    if offsets is not None and isinstance(seen, Tensor):
        return _since(_counts(offsets, seen), cached + seen.shape[1])
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        raise StateError(
            "Activated LoRA looks for its invocation in the tokens: give the model input_ids of shape (batch, length), "
            "or say how many of each row's last tokens are to be adapted: alora_offsets=[...]."
        )
    counts = last_occurrence(ids, tokens)
    if cache is not None and not call.generates:
        _check_found(counts, call.rows, cached)
    return _since(counts, cached + ids.shape[1])


def last_occurrence(ids: Tensor, tokens: Sequence[int]) -> Tensor:
    """(rows,) how many tokens of each row there are from the last `tokens` in it on, these included; 0 if none are."""
    length, n = ids.shape[1], len(tokens)
    if length < n:
        return torch.zeros_like(ids[:, :1]).sum(1)
    found = (ids.unfold(1, n, 1) == torch.tensor(tokens, device=ids.device)).all(-1)  # (rows, length - n + 1)
    last: Tensor = (found * torch.arange(length - n + 1, device=ids.device)).amax(1)
    return (length - last) * found.any(1)


def _since(counts: Tensor, end: Any) -> Tensor:
    return _joined(torch.where(counts > 0, end - counts, NEVER), end)


def _joined(first: Tensor, end: Any) -> Tensor:
    return torch.stack([first, torch.zeros_like(first) + end], 1)


def _counts(offsets: Any, seen: Tensor) -> Tensor:
    """`alora_offsets` as a tensor: a number of last tokens per row, None or 0 for none."""
    if not isinstance(offsets, Tensor):
        offsets = torch.tensor([0 if n is None else n for n in offsets])
    if offsets.is_floating_point() or offsets.shape != seen.shape[:1]:
        raise StateError(
            f"alora_offsets has {tuple(offsets.shape)} {offsets.dtype} for a batch of {seen.shape[0]} rows: give each "
            "row the number of its last tokens that are adapted, or None."
        )
    counts: Tensor = offsets.to(seen.device)
    return counts


def _check_found(counts: Tensor, rows: Sequence[int] | None, cached: Any) -> None:
    """Raises StateError if the invocation is not seen because it may be among the tokens that are cached."""
    mine = counts if rows is None else counts[list(rows)]
    if cached and not bool(mine.all()):
        raise StateError(
            f"The given tokens do not invoke the Activated LoRA in every row, but the {int(cached)} in the cache may "
            "have: call generate, which knows, or say how many of each row's last tokens are to be adapted: "
            "alora_offsets=[...] (0 where it is not invoked, all of them where it was before)."
        )
