"""Which adapter class serves a config on a kind of host, and which glue serves a library's models.

    @adapter(LoraConfig, "linear")
    class LoraLinear(Adapter): ...

Nothing in `core` asks for a method's type: it asks this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from inlay.config import PeftConfig

if TYPE_CHECKING:
    from inlay.core.adapter import Adapter

    A = TypeVar("A", bound=type[Adapter])

_ADAPTERS: dict[tuple[type[PeftConfig], str, str], type[Adapter]] = {}

# top-level package of a model's class -> the module with the glue for such models, imported when one is seen
_GLUE = {"transformers": "inlay.hf.glue"}


ANY = "module"  # the kind of host that every module is


def adapter(config: type[PeftConfig], *kinds: str, variant: str = "") -> Callable[[A], A]:
    """Registers the decorated class as the adapter of `config` on hosts of these kinds (see `core.host`).

    Args:
        kinds: `"linear"`, ...; `"module"` for every module that none of the method's classes is registered for.
        variant: for configs that say so only (`PeftConfig.variant`).
    """

    def register(cls: A) -> A:
        for kind in kinds:
            _ADAPTERS[config, kind, variant] = cls
        return cls

    return register


def adapter_for(config: PeftConfig, kind: str) -> type[Adapter] | None:
    """The adapter class that serves `config` on hosts of `kind`, or None."""
    for of in (kind, ANY):
        for cls in type(config).__mro__:
            found = _ADAPTERS.get((cls, of, config.variant))
            if found is not None:
                return found
    return None


def kinds_of(config: PeftConfig) -> list[str]:
    """The kinds of host that `config`'s method can adapt."""
    return sorted({kind for (cls, kind, variant) in _ADAPTERS if isinstance(config, cls) and variant == config.variant})


def registered() -> dict[tuple[type[PeftConfig], str, str], type[Adapter]]:
    """A copy of the table: (config class, kind of host, variant) -> adapter class."""
    importlib.import_module("inlay.methods").register_all()
    return dict(_ADAPTERS)


def glue_for(model: object) -> ModuleType | None:
    """The glue module for `model`'s library (found by its class's packages), or None for plain torch models."""
    for cls in type(model).__mro__:
        name = _GLUE.get(cls.__module__.partition(".")[0])
        if name is not None:
            return importlib.import_module(name)
    return None
