"""The skeleton of a model: new module objects over the same weights.

`clone_skeleton(model)` shares the `_parameters` and `_buffers` *dict objects* with the original, so `.to()`, `.half()`,
`load_state_dict(assign=True)` and sharding reach both alike and nothing is held twice. Everything that refers back to a
module (bound methods, partials, closures, hook handles, small containers) is rebuilt to refer to the clone. Otherwise
an instance-level `forward`, as accelerate's hooks install, would go on calling the original's children.

Private to the clone: batch-norm statistics, `config` and `generation_config`, hooks, and flags such as `training`.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

_SHARED = frozenset({"_parameters", "_buffers", "_non_persistent_buffers_set"})
_DROPPED = frozenset({"_compiled_call_impl"})
_CONFIGS = frozenset({"config", "generation_config"})
_ATOMS = frozenset({int, float, bool, str, bytes, complex, type, type(None), torch.dtype, torch.device, torch.Size})


def clone_skeleton(model: nn.Module, class_of: Callable[[nn.Module], type] = type) -> Any:
    """New module objects over `model`'s weights; shared submodules stay shared.

    Args:
        model: any module; one returned by `torch.compile` is unwrapped first.
        class_of: the class of each clone, by default the module's own.
    """
    model = getattr(model, "_orig_mod", model)
    modules = list(model.modules())
    memo: dict[int, Any] = {id(m): object.__new__(class_of(m)) for m in modules}
    configs: dict[int, Any] = {}
    later: list[tuple[dict[str, Any], str, Any]] = []
    for module in modules:
        state = memo[id(module)].__dict__
        for key, value in module.__dict__.items():
            kind = type(value)
            if kind in _ATOMS or key in _SHARED:
                state[key] = value
            elif (kind is dict or kind is OrderedDict) and not value:
                state[key] = memo[id(value)] = kind()
            elif key in _CONFIGS:
                state[key] = copy.deepcopy(value, configs)
            elif key not in _DROPPED:
                state[key] = None  # keeps the order of attributes
                later.append((state, key, value))
        if isinstance(module, _NormBase):
            state["_buffers"] = {k: None if b is None else b.clone() for k, b in module._buffers.items()}
    # hook dicts first, so that handles find their clones
    later.sort(key=lambda entry: "hooks" not in entry[1])
    for state, key, value in later:
        state[key] = _rebind(value, memo)
    return memo[id(model)]


def _rebind(value: Any, memo: dict[int, Any]) -> Any:
    """`value` with every reference to a cloned module replaced by its clone."""
    known = memo.get(id(value))
    if known is not None:
        return known
    kind = type(value)
    again = functools.partial(_rebind, memo=memo)
    if kind in _ATOMS:
        return value
    if kind is types.MethodType:
        return types.MethodType(again(value.__func__), again(value.__self__))
    if kind is functools.partial:
        call = functools.partial(again(value.func), *map(again, value.args), **_items(value.keywords, again))
        call.__dict__.update(_items(value.__dict__, again))
        return call
    if kind is types.FunctionType:
        return _rebind_closure(value, memo)
    if kind is dict or kind is OrderedDict:
        clone = memo[id(value)] = kind()
        clone.update(_items(value, again))
        return clone
    if kind in (list, tuple, set):
        return kind(map(again, value))
    if kind is RemovableHandle:
        return _rebind_handle(value, memo)
    if kind is weakref.ReferenceType and id(value()) in memo:
        return weakref.ref(memo[id(value())])
    return value


def _items(mapping: Any, again: Callable[[Any], Any]) -> dict[Any, Any]:
    return {k: again(v) for k, v in mapping.items()}


def _rebind_closure(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """A function whose closure holds a cloned module (or something bound to one), over the clone instead."""
    try:
        contents = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # a cell that is still empty
        return function
    callables = (nn.Module, types.MethodType, functools.partial, types.FunctionType)
    rebound = [_rebind(c, memo) if isinstance(c, callables) and c is not function else c for c in contents]
    if all(new is old or new == old for new, old in zip(rebound, contents, strict=True)):
        return function
    clone = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(types.CellType(c) for c in rebound),
    )
    clone.__kwdefaults__ = function.__kwdefaults__
    clone.__dict__.update(function.__dict__)
    return clone


def _rebind_handle(handle: RemovableHandle, memo: dict[int, Any]) -> RemovableHandle:
    """A hook's handle that removes it from the clone's dict."""

    def moved(ref: Any) -> Any:
        target = ref() if ref is not None else None
        return weakref.ref(memo[id(target)]) if id(target) in memo else ref

    clone = RemovableHandle.__new__(RemovableHandle)
    clone.id = handle.id
    clone.hooks_dict_ref = moved(handle.hooks_dict_ref)
    clone.extra_dict_ref = tuple(map(moved, handle.extra_dict_ref or ()))
    return clone


def plain_view(module: Any) -> Any:
    """A second object of the module's original class over the *same* `__dict__`: adapters included, live both ways."""
    cls = getattr(type(module), "_original_class", type(module))
    view = object.__new__(cls)
    object.__setattr__(view, "__dict__", module.__dict__)
    return view
