"""Trainer and views.

`transformers.Trainer` asks "is this a PEFT model" through module globals of `transformers.trainer_utils`, which are
filled only if a package `peft` is installed. Without an answer it can neither resume from a checkpoint that holds an
adapter only nor load the best one. `teach_trainer` gives these globals our classes, once, when the first view of a
transformers model is made. No function is replaced but the predicate "is peft there", and a real peft, if installed,
stays recognised. It is the one change Inlay makes outside its own modules; `forget_trainer()` undoes it.
"""

from __future__ import annotations

import sys
from typing import Any

_BEFORE: dict[tuple[str, str], Any] = {}  # (module, global) -> what stood there; empty when not taught
_ABSENT = object()


def _yes() -> bool:
    return True


def teach_trainer() -> None:
    """Makes `transformers.Trainer` treat views as the adapter models they are. Does nothing the second time."""
    import transformers.trainer_utils as utils

    from inlay.model import PeftModel

    if _BEFORE and utils.is_peft_available is _yes:
        _teach("transformers.trainer", PeftModel)
        return
    for name in ("transformers.trainer_utils", "transformers.trainer"):
        _teach(name, PeftModel)


def _teach(module_name: str, view_class: type) -> None:
    module = sys.modules.get(module_name)
    if module is None or (module_name, "PeftModel") in _BEFORE:
        return
    for name in ("PeftModel", "PeftMixedModel"):
        real = getattr(module, name, _ABSENT)
        _BEFORE[module_name, name] = real
        setattr(module, name, view_class if real is _ABSENT else (real, view_class))
    _BEFORE[module_name, "is_peft_available"] = getattr(module, "is_peft_available", _ABSENT)
    vars(module)["is_peft_available"] = _yes


def forget_trainer() -> None:
    """Restores what `teach_trainer` changed."""
    for (module_name, name), before in _BEFORE.items():
        module = sys.modules[module_name]
        if before is _ABSENT:
            delattr(module, name)
        else:
            setattr(module, name, before)
    _BEFORE.clear()
