"""The methods that come with Inlay: module -> the public names in it. One line each.

Importing a method's module registers it (`inlay.registry.adapter`); `register_all` does so when a method is first
looked up. Importing this package imports none of them.
"""

from __future__ import annotations

import importlib

METHODS = {
    "inlay.methods.lora": ["LoraConfig"],
}


def register_all() -> None:
    """Imports every method's module."""
    for module in METHODS:
        importlib.import_module(module)
