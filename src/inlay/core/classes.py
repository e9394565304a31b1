"""Dynamic classes: a module becomes `mixin + its own class`, under its own name.

torch's `parametrize` and FSDP2 swap classes the same way. The name, qualified name and module stay the
original's, because transformers and accelerate key behaviour on them; `repr` shows what the object is.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import nn

# to a type checker a mixin is the module it will be mixed into
if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class Derived(_Module):
    """Base of the mixins. An instance's class is made by `derive`; constructing that class builds the original."""

    _original_class: type[nn.Module]
    _mixin: type[Derived]
    _label: str
    _behind: tuple[type, ...] = ()  # bases that come after the original: whatever that has of its own stays

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return cls._original_class(*args, **kwargs)  # e.g. nn.Sequential slicing calls type(self)(...)
        return object.__new__(cls)  # nn.DataParallel makes replicas so

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (self._mixin, self._original_class), self.__dict__.copy()

    def __repr__(self) -> str:
        text, name = super().__repr__(), self._original_class.__name__
        return f"{self._label}[{name}]{text[len(name) :]}" if text.startswith(name) else text


_DERIVED: dict[tuple[type, type], type] = {}


def derive(mixin: type[Derived], original: type[nn.Module]) -> Any:
    """The class `mixin + original`, with `original`'s names and the signature of its `forward`. Made once per pair."""
    if (mixin, original) not in _DERIVED:
        _DERIVED[mixin, original] = _derive(mixin, original)
    return _DERIVED[mixin, original]


def _derive(mixin: type[Derived], original: type[nn.Module]) -> type:

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    names = {k: getattr(original, k) for k in ("__module__", "__qualname__", "__doc__")}
    body = {**names, "_original_class": original, "_mixin": mixin, "forward": forward}
    metaclass: Any = type(original)
    return metaclass(original.__name__, (mixin, original, *mixin._behind), body)  # type: ignore[no-any-return]


def _rebuild(mixin: type[Derived], original: type[nn.Module]) -> Any:
    return object.__new__(derive(mixin, original))


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class `module` had before Inlay derived from it (its own class if it did not)."""
    return getattr(type(module), "_original_class", type(module))
