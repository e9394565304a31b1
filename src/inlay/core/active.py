"""Which adapters take part in a forward pass: one object per model, shared by all its hosts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree

from inlay.errors import StateError

BASE = "__base__"  # the name that means "no adapter" in a mixed batch

State = tuple[tuple[str, ...], tuple[str, ...] | None]


class Call(NamedTuple):
    """One call of the model, as `PeftConfig.per_call` sees it.

    Attributes:
        arguments: name -> argument, of `forward` or `generate`; what comes first is `input_ids`.
        rows: the rows of the batch that are the adapter's; None for all.
        before: the answer for the call of `generate` that this one is a step of.
        generates: whether it is a call of `generate`, whose `input_ids` include what is cached.
    """

    arguments: Mapping[str, Any]
    rows: Sequence[int] | None = None
    before: torch.Tensor | None = None
    generates: bool = False


class Facts(NamedTuple):
    """What is known of the rows of one call's batch beside their adapters; each tensor has one entry per row.

    Attributes:
        task_ids: (batch,) the task of each row.
        told: adapter's name -> what its config had to say of this call (`PeftConfig.per_call`).
    """

    task_ids: torch.Tensor | None = None
    told: Mapping[str, torch.Tensor] = {}  # read only

    def of(self, index: torch.Tensor, count: int) -> Facts:
        """The same of the rows at `index`, out of `count`: an entry may stand for several consecutive rows (beams)."""
        told = {name: _select(given, index, count) for name, given in self.told.items()}
        return Facts(None if self.task_ids is None else _select(self.task_ids, index, count), told)


def _select(given: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    if not len(given) or count % len(given):
        return given  # which fits no batch: who reads it says so
    return given[index.to(given.device) // (count // len(given))]


class ActiveAdapters:
    """The active names, in order, and for a mixed batch one name per row; `facts`: what else is known of the rows.

    Switching adapters writes this object and nothing else. Under activation checkpointing a layer's forward
    runs again during backward; if the active set is then another than it was in the forward pass, gradients would be
    those of other adapters. `stamp` marks a forward pass's outputs with its state and `check` compares when a host
    is recomputed, so that this raises instead. The facts are restored: recomputed is what was computed.
    """

    def __init__(self, index: Any = None) -> None:
        self.belong_to(index)
        self.names: tuple[str, ...] = ()
        self.rows: tuple[str, ...] | None = None
        self.given = Facts()
        self.disabled = False
        self._expected: tuple[State, Facts] | None = None

    def belong_to(self, index: Any) -> None:
        """Notes whose active names these are. Weakly, for the index leads to every host, and every host here."""
        self._index = None if index is None else weakref.ref(index)

    @property
    def index(self) -> Any:
        """The `AdapterIndex` whose active names these are; None once it is gone."""
        return None if self._index is None else self._index()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}  # a copied index says so itself

    @property
    def state(self) -> State:
        """What decides a forward pass's result; equal states compute the same function."""
        return (() if self.disabled else self.names), self.rows

    @property
    def facts(self) -> Facts:
        """Those of the call in progress (`given`); in a recomputation, those of the forward pass."""
        if torch.compiler.is_compiling() or self._expected is None or torch._C._current_graph_task_id() == -1:
            return self.given
        return self._expected[1]

    def set(self, names: Sequence[str]) -> None:
        """Makes `names` the active adapters, applied in this order."""
        self.names = tuple(names)
        self._expected = None

    @contextmanager
    def switched(
        self, *, rows: Sequence[str] | None = None, disabled: bool | None = None, facts: Facts | None = None
    ) -> Iterator[None]:
        """Per-row names, no adapter at all, or other facts, until the block ends."""
        before = self.rows, self.disabled, self.given
        self.given = self.given if facts is None else facts
        self.rows = self.rows if rows is None else tuple(rows)
        self.disabled = self.disabled if disabled is None else disabled
        self._expected = None
        try:
            yield
        finally:
            self.rows, self.disabled, self.given = before
            self._expected = None

    def stamp(self, outputs: Any) -> None:
        """Remembers the present state on the autograd nodes of `outputs`: their backward expects it back."""
        state = self.state, self.given

        def expect(_: Any) -> None:
            self._expected = state

        for tensor in _pytree.tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(expect)

    def check(self) -> None:
        """Raises StateError in a recomputation whose forward pass had other active adapters."""
        if self._expected is None or torch._C._current_graph_task_id() == -1:
            return
        expected, _ = self._expected
        if expected != self.state:
            then, now = (rows or names or "none" for names, rows in (expected, self.state))
            raise StateError(
                "The active adapters changed between forward and backward under activation checkpointing: the forward "
                f"pass ran with {then}, now {now} would be recomputed. Call backward() before switching adapters, or "
                "turn gradient checkpointing off."
            )
