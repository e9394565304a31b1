"""Trainer and views.

`transformers.Trainer` asks "is this a PEFT model" through module globals of `transformers.trainer_utils`, which are
filled only if a package `peft` is installed. Without an answer it can neither resume from a checkpoint that holds an
adapter only nor load the best one. `teach_trainer` gives these globals our classes, once, when the first view of a
transformers model is made; a real peft, if installed, stays recognised. Two functions are replaced: the predicate "is
peft there", and the one that would import peft to prepare FSDP1. It is the one change Inlay makes outside its own
modules; `forget_trainer()` undoes it.
"""

from __future__ import annotations

import sys
from typing import Any

_BEFORE: dict[tuple[str, str], Any] = {}  # (module, global) -> what stood there; empty when not taught
_ABSENT = object()
_FSDP1 = "update_fsdp_plugin_peft"

forgotten = False  # True from `forget_trainer()` until `teach_trainer()` is called by hand


def teach_trainer() -> None:
    """Makes `transformers.Trainer` treat views as the adapter models they are. Does nothing the second time."""
    global forgotten
    import transformers.trainer_utils  # noqa: F401

    forgotten = False
    _teach("transformers.trainer_utils")
    _teach("transformers.trainer")


def forget_trainer() -> None:
    """Restores what `teach_trainer` changed. Views made from now on do not change it again."""
    global forgotten
    forgotten = True
    for (module_name, name), before in _BEFORE.items():
        if before is _ABSENT:
            delattr(sys.modules[module_name], name)
        else:
            setattr(sys.modules[module_name], name, before)
    _BEFORE.clear()


def _teach(module_name: str) -> None:
    from inlay.model import PeftModel

    there = getattr(sys.modules.get(module_name), "__dict__", {})
    if there.get("is_peft_available", _yes) is _yes:  # not imported (so far), or taught
        return
    new: dict[str, Any] = {"is_peft_available": _yes}
    for name in ("PeftModel", "PeftMixedModel"):
        new[name] = (there[name], PeftModel) if there.get(name, PeftModel) is not PeftModel else PeftModel
    if _FSDP1 in there:
        new[_FSDP1] = _prepare_fsdp1
    for name, value in new.items():
        _BEFORE[module_name, name] = there.get(name, _ABSENT)
        there[name] = value


def _yes() -> bool:
    """`is_peft_available`. Every new Trainer asks, so `transformers.trainer` is taught even if it was imported late."""
    _teach("transformers.trainer")
    return True


def _prepare_fsdp1(model: Any, accelerator: Any) -> None:
    """`update_fsdp_plugin_peft`: views keep the wrap policy they were given. They need `use_orig_params`, the default.

    For peft's own models it is the original.
    """
    from inlay.errors import ConfigError
    from inlay.model import PeftModel

    if not isinstance(model, PeftModel):
        _BEFORE["transformers.trainer", _FSDP1](model, accelerator)
        return
    plugin = accelerator.state.fsdp_plugin
    if not plugin.use_orig_params:
        raise ConfigError.of(
            "use_orig_params", False, "True, which a view needs under FSDP1", "FSDP2 has no such flag."
        )
    storage = getattr(getattr(model.config, "quantization_config", None), "bnb_4bit_quant_storage", None)
    if storage is not None and storage.is_floating_point:
        plugin.set_mixed_precision(storage, override=True)
