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
        """The spec of a module of the table. ImportError, with a sentence, for what peft has and Inlay has not."""
        if name in MODULES and name != "peft":
            inner = any(other.startswith(name + ".") for other in MODULES)
            return ModuleSpec(name, self, is_package=inner)  # type: ignore[arg-type]
        if name.startswith("peft."):
            sentence = lacking(name)
            if sentence is not None:
                raise ImportError(sentence, name=name)
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
        if name not in offered:
            sentence = lacking(f"{module.__name__}.{name}")
            raise AttributeError(sentence or f"module {module.__name__!r} has no attribute {name!r}")
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
        sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    package.__path__ = []
    fill(package)
    vars(package).update(__version__=VERSION, __provider__="inlay")
