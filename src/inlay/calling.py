"""How a view is called: as its base, with the active adapters, and with what is said of single rows."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from inlay.core.active import Facts
from inlay.core.adapted import Composite
from inlay.core.classes import original_class
from inlay.core.host import call_names
from inlay.core.index import AdapterIndex
from inlay.core.skeleton import plain_view

PER_ROW = ("adapter_names", "task_ids", "alora_offsets")  # arguments of a call that are not the base's


class Called(Composite):
    """The part of `PeftModel` that answers calls."""

    _inlay: AdapterIndex
    _hides = False  # whether a part of the base has a name that views have a meaning for (`base_model`)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's forward with the active adapters.

        Args:
            adapter_names: one adapter name per row of the batch, `"__base__"` for none.
            task_ids: (batch,) the task of each row, for methods that learn several.
            alora_offsets: (batch,) for Activated LoRA, the number of last tokens that it acts on in each row, where
                that is not to be seen in the tokens given.
        """
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._inlay.check_trainable()
        if not any(name in kwargs for name in PER_ROW) and not self._inlay.asked():
            return self._answer(*args, **kwargs)
        with self._per_row(args, kwargs):
            return self._answer(*args, **kwargs)

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        active, f = self._inlay.active, self._own_forward()
        if "adapters" in self._modules and not active.disabled:
            rows = active.rows
            f = self._compose(f, active.names if rows is None else rows[:1])
        penalty = self._inlay.penalty() if self.training and torch.is_grad_enabled() else None
        if penalty is None:
            return self._stamped(f(*args, **kwargs))
        return self._stamped(_with_penalty(f(*args, **kwargs), penalty, "labels" in kwargs))

    def _own_forward(self) -> Any:
        """The base's forward. Parts of the base are found in it, though views have other meanings for their names."""
        if not self._hides:
            return super().forward
        return types.MethodType(original_class(self).forward, plain_view(self))

    def _stamped(self, outputs: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._inlay.active.stamp(outputs)
        return outputs

    @contextmanager
    def _per_row(self, args: Sequence[Any], kwargs: dict[str, Any], generates: bool = False) -> Iterator[None]:
        """Takes what is said of single rows out of a call's arguments; it holds until the block ends."""
        names = () if len(args) < 2 else call_names(self)[1:]
        arguments = {**dict(zip(("input_ids", *names), args, strict=False)), **kwargs}
        rows, tasks, _ = (kwargs.pop(name, None) for name in PER_ROW)
        active = self._inlay.active
        with ExitStack() as stack:
            if rows is not None:
                stack.enter_context(self._inlay.rows(rows))
            task_ids = active.given.task_ids if tasks is None else torch.as_tensor(tasks)
            stack.enter_context(active.switched(facts=Facts(task_ids, self._inlay.tell(arguments, generates))))
            yield

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's `generate`; `adapter_names`, `task_ids` and `alora_offsets` as in `forward`."""
        with self._per_row(args[:1], kwargs, generates=True):
            return super().generate(*args, **kwargs)  # type: ignore[misc]


def _with_penalty(outputs: Any, penalty: Any, labelled: bool) -> Any:
    """`outputs` with `penalty` added to their loss, if they have one."""
    if isinstance(outputs, tuple) and labelled:
        return outputs[0] + penalty, *outputs[1:]
    if getattr(outputs, "loss", None) is not None:
        outputs.loss = outputs.loss + penalty
    return outputs
