"""The modules `peft`, `peft.tuners`, ...: made from the table in `inlay.peft.names`, one lookup per name.

`peft.x` is `inlay`'s own object, so `isinstance` means the same on both sides. A name of peft's that Inlay does not
have raises a sentence: ImportError for `from peft import X`, AttributeError for `peft.X` (so `hasattr` says no).
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from inlay.peft.names import MODULES, VERSION, lacking


class Finder:
    """Finds and loads every module of the table below `peft`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of a module of the table. ImportError, with a sentence, for anything else below `peft`.

        All of them are packages: only of those does Python come here for a name that it has not found.
        """
        if name in MODULES and name != "peft":
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        if name.startswith("peft.") and not name.endswith("__"):
            raise ImportError(lacking(name), name=name)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None: an ordinary module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Gives `module` its names; each is imported when first used."""
        fill(module)


def fill(module: ModuleType) -> None:
    """Makes `module` offer what the table says it does."""
    offered = MODULES[module.__name__]

    def get(name: str) -> Any:
        if f"{module.__name__}.{name}" in MODULES:
            return importlib.import_module(f"{module.__name__}.{name}")
        if name not in offered:
            raise AttributeError(lacking(f"{module.__name__}.{name}"), name=name, obj=module)
        home, _, attribute = offered[name].partition(":")
        value = getattr(importlib.import_module(home), attribute or name)
        setattr(module, name, value)
        return value

    vars(module).update(
        __getattr__=get,
        __dir__=lambda: sorted({*vars(module), *offered}),
        __all__=sorted(offered),
        __doc__=f"{module.__name__}, as Inlay offers it.",
    )


def take_over(package: ModuleType) -> None:
    """Makes `package`, which is being imported as `peft`, and all below it Inlay's."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    package.__path__ = []
    fill(package)
    vars(package).update(__version__=VERSION, __provider__="inlay")
