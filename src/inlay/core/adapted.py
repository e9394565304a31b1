"""Adapted hosts: a module whose `forward` composes the active adapters around its own."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import nn

from inlay.core.active import BASE, ActiveAdapters
from inlay.core.adapter import Adapter
from inlay.core.classes import Derived, derive, original_class
from inlay.core.host import UNMERGED, UNMERGED_ATTRIBUTES
from inlay.core.skeleton import clone_skeleton
from inlay.errors import StateError, TargetError


class Composite(Derived):
    """Mixin of what adapters can sit in: hosts, and the root of a view.

    With active adapters a1, a2: f0 = the host's own forward, f1 = a1 around f0, f2 = a2 around f1; the output is f2(x).
    """

    adapters: nn.ModuleDict
    active: ActiveAdapters
    _modules: dict[str, Any]

    def _compose(self, f: Any, names: tuple[str, ...]) -> Any:
        placed = self.adapters._modules
        live: list[Any] = []
        for name in names:
            adapter = placed.get(name)
            if adapter is not None and not adapter.merged:
                live.append(adapter)
        if len(live) > 1:
            live.sort(key=lambda adapter: not adapter.reads_weight)
        for adapter in live:
            f = functools.partial(adapter, f, host=self)
        return f


class Adapted(Composite):
    """Mixin of an adapted host. Adds `adapters` and overrides `forward`; parameters keep their names."""

    _label = "Adapted"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        active = self.active
        if not torch.compiler.is_compiling():
            active.check()
        if active.disabled:
            return self._composed(())(*args, **kwargs)
        if active.rows is None:
            return self._composed(active.names)(*args, **kwargs)
        # where none of the names has an adapter nothing is split, as e.g. an attention's mask and cache would not be
        rows = tuple([name if name in self.adapters else BASE for name in active.rows])
        if args:
            return self._forward_rows(rows, *args, **kwargs)
        if len(set(rows)) > 1:
            raise StateError("A host that is called by keywords only cannot mix adapters in one batch.")
        return self._composed(() if rows[0] == BASE else rows[:1])(**kwargs)

    def _composed(self, names: tuple[str, ...]) -> Any:
        return self._compose(super().forward if len(self._modules) == 1 else self._forward_alone, names)

    def _forward_alone(self, *args: Any, **kwargs: Any) -> Any:
        """The host's own forward where it has children, over which it may iterate: `adapters` is none of them."""
        return self._original_class.forward(stand_in(self), *args, **kwargs)

    def _forward_rows(self, rows: tuple[str, ...], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """One adapter name per row of the batch; a row may stand for several consecutive ones (beams)."""
        each, rest = divmod(x.shape[0], len(rows))
        if rest or not each:
            raise StateError(
                f"adapter_names has {len(rows)} names, but a host received a batch of {x.shape[0]} rows: "
                "give one name per row of the input."
            )
        present = dict.fromkeys(rows)
        if len(present) == 1:
            return self._composed(() if rows[0] == BASE else (rows[0],))(x, *args, **kwargs)
        out = None
        for name in present:
            mine = [i * each + k for i, row in enumerate(rows) if row == name for k in range(each)]
            index = torch.tensor(mine, device=x.device)
            own = [name] * len(mine)
            with self.active.switched(rows=own, facts=self.active.facts.of(index, x.shape[0])):
                y = self._composed(() if name == BASE else (name,))(x.index_select(0, index), *args, **kwargs)
            out = y.new_zeros((x.shape[0], *y.shape[1:])) if out is None else out
            out = out.index_copy(0, index, y)
        return out


def stand_in(host: nn.Module, **changed: Any) -> Any:
    """A plain object of an adapted host's own class, with all it has but its adapters, and some attributes changed."""
    plain = object.__new__(original_class(host))
    children = {name: m for name, m in host._modules.items() if name != "adapters"}
    plain.__dict__.update(host.__dict__, _modules=children, **changed)
    return plain


def unmerged(host: nn.Module) -> Any:
    """`host` as it is without any merged adapter: itself, or a stand-in."""
    if UNMERGED not in host.__dict__:
        return host
    return stand_in(host, _parameters=host.__dict__[UNMERGED], **host.__dict__.get(UNMERGED_ATTRIBUTES, {}))


def is_adapted(module: nn.Module) -> bool:
    """True if adapters sit in `module`."""
    return isinstance(module, Composite) and "adapters" in module._modules


def adapt(host: Any, active: ActiveAdapters, mixin: type[Adapted] = Adapted) -> None:
    """Makes `host` an adapted one, in place, of a class with `mixin`; the root of a view keeps its class.

    Raises TargetError if an instance-level `forward` hides the class's.
    """
    before = original_class(host)
    check_reachable(host)
    if before is type(host):
        host.__class__ = derive(mixin, before)
        redirect(host, before)
    host.adapters = nn.ModuleDict()
    host.active = active


def restore(host: Any) -> None:
    """Undoes `adapt`."""
    adapted: type[nn.Module] = type(host)
    del host.adapters, host.active
    if issubclass(adapted, Adapted):
        host.__class__ = original_class(host)
        redirect(host, adapted)


def place(host: Any, name: str, adapter: Adapter) -> None:
    """Puts `adapter` into an adapted host under `name`."""
    adapter.train(host.training)
    host.adapters[name] = adapter


def clone_unadapted(module: nn.Module) -> Any:
    """A skeleton of `module` in its original classes, over the same weights, without its adapters."""
    clone = clone_skeleton(module, class_of=original_class)
    for m, source in zip(list(clone.modules()), module.modules(), strict=True):
        redirect(m, type(source))
        if m.__dict__.pop("active", None) is not None:
            del m._modules["adapters"]
    return clone


def redirect(module: nn.Module, before: type[nn.Module]) -> None:
    """Points instance attributes that hold `before`'s forward bound to `module` at its new class's forward."""
    for key, value in list(module.__dict__.items()):
        if _holds_forward(value, module, before):
            module.__dict__[key] = types.MethodType(type(module).forward, module)


def check_reachable(module: nn.Module) -> None:
    """Raises TargetError if `module` has an instance-level `forward` that does not lead to its class's `forward`.

    accelerate's hooks leave the inner method in an attribute, which `redirect` replaces; anything else would hide the
    adapters.
    """
    before = original_class(module)
    if "forward" in module.__dict__ and not any(_holds_forward(v, module, before) for v in module.__dict__.values()):
        raise TargetError(
            f"This {before.__name__} has a `forward` set on the instance that does not call its class's: adapters "
            "in it would have no effect. Remove it (`del module.forward`) or set it after adding adapters."
        )


def _holds_forward(value: Any, module: nn.Module, before: type[nn.Module]) -> bool:
    return isinstance(value, types.MethodType) and value.__self__ is module and value.__func__ is before.forward
