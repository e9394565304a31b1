"""The skeleton of a model: new module objects over the same weights.

`clone_skeleton(model)` shares the `_parameters` and `_buffers` *dict objects* with the original, so `.to()`, `.half()`,
`load_state_dict(assign=True)` and sharding reach both alike and nothing is held twice. Everything that refers back to a
module (bound methods, partials, closures, hook handles, small containers) is rebuilt to refer to the clone. Otherwise
an instance-level `forward`, as accelerate's hooks install, would go on calling the original's children.

Private to the clone: batch-norm statistics (moving or casting is therefore done to clone and original each, where there
are any), `config` and `generation_config`, hooks, and flags such as `training`.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from inlay.core.classes import original_class

_SHARED = frozenset({"_parameters", "_buffers", "_non_persistent_buffers_set"})
_DROPPED = frozenset({"_compiled_call_impl"})
_CONFIGS = frozenset({"config", "generation_config"})
_ATOMS = frozenset({int, float, bool, str, bytes, complex, type, type(None), torch.dtype, torch.device, torch.Size})


def unwrapped(model: Any) -> Any:
    """The model that `torch.compile` returned a wrapper of; any other is itself."""
    return getattr(model, "_orig_mod", model)


def clone_skeleton(model: nn.Module, class_of: Callable[[nn.Module], type] = type) -> Any:
    """New module objects over `model`'s weights; shared submodules stay shared.

    Args:
        model: any module; one returned by `torch.compile` is unwrapped first.
        class_of: the class of each clone, by default the module's own.
    """
    model = unwrapped(model)
    modules = list(model.modules())
    memo: dict[int, Any] = {_identity(m): object.__new__(class_of(m)) for m in modules}
    configs: dict[int, Any] = {}
    later: list[tuple[dict[str, Any], str, Any]] = []
    for module in modules:
        state = memo[_identity(module)].__dict__
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
    return memo[_identity(model)]


def _rebind(value: Any, memo: dict[int, Any]) -> Any:
    """`value` with every reference to a cloned module replaced by its clone; containers are made anew in any case."""
    known = memo.get(_identity(value))
    if known is not None:
        return known
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict or kind is OrderedDict:
        clone = memo[id(value)] = kind()
        clone.update((k, _rebind(v, memo)) for k, v in value.items())
        return clone
    if kind in (list, tuple, set):
        return kind(_rebind(v, memo) for v in value)
    if kind is RemovableHandle:
        return _rebind_handle(value, memo)
    if not _refers(value, memo, set()):
        return value
    if kind is types.FunctionType:
        return _rebind_function(value, memo)
    if kind is types.MethodType:
        return types.MethodType(_led(value.__func__, memo), _led(value.__self__, memo))
    if kind is functools.partial:
        keywords = {k: _led(v, memo) for k, v in value.keywords.items()}
        partial = functools.partial(_led(value.func, memo), *(_led(v, memo) for v in value.args), **keywords)
        partial.__dict__.update((k, _led(v, memo)) for k, v in value.__dict__.items())
        return partial
    return weakref.ref(memo[_identity(value())])


def _identity(value: Any) -> int:
    """By what `value` is found in a memo: a module by its `__dict__`, which its plain views share."""
    return id(value.__dict__) if isinstance(value, nn.Module) else id(value)


def _led(value: Any, memo: dict[int, Any]) -> Any:
    """`_rebind(value)` if a cloned module can be reached from `value`, else `value` itself, which it may share."""
    return _rebind(value, memo) if _refers(value, memo, set()) else value


def _refers(value: Any, memo: dict[int, Any], seen: set[int]) -> bool:
    """True if a cloned module can be reached from `value`. `seen`: what was looked at already."""
    if _identity(value) in memo:
        return True
    if type(value) in _ATOMS or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_refers(part, memo, seen) for part in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    """What `_rebind` looks at in `value`."""
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        return list(value.values())
    if kind in (list, tuple, set):
        return list(value)
    if kind is types.MethodType:
        return [value.__func__, value.__self__]
    if kind is functools.partial:
        return [value.func, *value.args, *value.keywords.values(), *value.__dict__.values()]
    if kind is types.FunctionType:
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *value.__dict__.values()]
    return [value()] if kind is weakref.ReferenceType else []


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _rebind_function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """A function over whose closure or defaults a module is reached, over the clone instead; other cells are shared."""
    own = [_refers(_content(cell), memo, set()) for cell in function.__closure__ or ()]
    cells = tuple(types.CellType() if mine else c for mine, c in zip(own, function.__closure__ or (), strict=True))
    clone = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    memo[id(function)] = clone  # before its cells: functions may hold each other
    for mine, cell, before in zip(own, cells, function.__closure__ or (), strict=True):
        if mine:
            cell.cell_contents = _rebind(before.cell_contents, memo)
    clone.__defaults__ = function.__defaults__ and tuple(_led(v, memo) for v in function.__defaults__)
    clone.__kwdefaults__ = {k: _led(v, memo) for k, v in (function.__kwdefaults__ or {}).items()} or None
    clone.__dict__.update((k, _led(v, memo)) for k, v in function.__dict__.items())
    clone.__qualname__, clone.__doc__ = function.__qualname__, function.__doc__
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
    view = object.__new__(original_class(module))
    object.__setattr__(view, "__dict__", module.__dict__)
    return view
