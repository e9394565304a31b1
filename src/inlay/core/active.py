"""Which adapters take part in a forward pass: one object per model, shared by all its hosts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree

from inlay.errors import StateError

BASE = "__base__"  # the name that means "no adapter" in a mixed batch

State = tuple[tuple[str, ...], tuple[str, ...] | None]


class ActiveAdapters:
    """The active names, in order, and for a mixed batch one name per row; `task_ids`: (batch,) the task of each row.

    Switching adapters writes this object and nothing else. Under activation checkpointing a layer's forward
    runs again during backward; if the active set is then another than it was in the forward pass, gradients would be
    those of other adapters. `stamp` marks a forward pass's outputs with its state and `check` compares when a host
    is recomputed, so that this raises instead.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.rows: tuple[str, ...] | None = None
        self.task_ids: torch.Tensor | None = None
        self.disabled = False
        self._expected: State | None = None

    @property
    def state(self) -> State:
        """What decides a forward pass's result; equal states compute the same function."""
        return (() if self.disabled else self.names), self.rows

    def set(self, names: Sequence[str]) -> None:
        """Makes `names` the active adapters, applied in this order."""
        self.names = tuple(names)
        self._expected = None

    @contextmanager
    def switched(
        self, *, rows: Sequence[str] | None = None, disabled: bool | None = None, task_ids: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Per-row names, no adapter at all, or other task ids, until the block ends."""
        before = self.rows, self.disabled, self.task_ids
        self.task_ids = self.task_ids if task_ids is None else task_ids
        self.rows = self.rows if rows is None else tuple(rows)
        self.disabled = self.disabled if disabled is None else disabled
        self._expected = None
        try:
            yield
        finally:
            self.rows, self.disabled, self.task_ids = before
            self._expected = None

    def stamp(self, outputs: Any) -> None:
        """Remembers the present state on the autograd nodes of `outputs`: their backward expects it back."""
        state = self.state

        def expect(_: Any) -> None:
            self._expected = state

        for tensor in _pytree.tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(expect)

    def check(self) -> None:
        """Raises StateError in a recomputation whose forward pass had other active adapters."""
        if self._expected is None or torch._C._current_graph_task_id() == -1:
            return
        if self._expected != self.state:
            then, now = (rows or names or "none" for names, rows in (self._expected, self.state))
            raise StateError(
                "The active adapters changed between forward and backward under activation checkpointing: the forward "
                f"pass ran with {then}, now {now} would be recomputed. Call backward() before switching adapters, or "
                "turn gradient checkpointing off."
            )
