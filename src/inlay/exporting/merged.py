"""A view as a plain model of transformers: weights with the adapter in them, config, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inlay.core.classes import original_class
from inlay.errors import ConfigError
from inlay.exporting.probes import Probes, answers, compared, inputs_of
from inlay.exporting.result import Export
from inlay.quant import is_quantised


def write_merged(
    view: Any, folder: Path, tokenizer: Any, verify: bool, probes: Probes | None, tolerance: float | None
) -> Export:
    """Merges the active adapters and saves the result; quantised layers become dense, so that nothing is rounded twice.

    Verifying loads what was written and compares its logits with the view's.
    """
    cls: Any = original_class(view)
    if not hasattr(cls, "from_pretrained"):
        raise ConfigError.of("source", cls.__name__, "a view of a model of transformers")
    if not view.active_adapters:
        raise ConfigError.of("source", "a view without an active adapter", "one that answers with an adapter")
    inputs = inputs_of(probes, view, tokenizer) if verify else []
    wanted = answers(view, inputs)
    with view.disable_adapter():
        base = answers(view, inputs)
    dense = any(is_quantised(module) for module in view.modules())
    plain = view.merge_and_unload(dequantize=dense)
    made = Export("merged", folder)
    if dense:
        made.notes.append(f"the base is quantised; the merged model is dense, in {plain.dtype}")
    plain.save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    if not verify:
        return made
    dtype = plain.dtype
    device = next(view.parameters()).device
    del plain
    written = cls.from_pretrained(folder, dtype="auto").to(device)
    found = answers(written, inputs)
    made.difference = compared(wanted, base, found, [_computed_in(view), dtype, written.dtype], tolerance)
    if made.difference.effect == 0:
        made.notes.append("the adapter changes nothing on the probes: it is untrained, or they do not reach it")
    elif made.difference.largest > made.difference.effect / 10:
        made.notes.append("the difference is more than a tenth of what the adapter does: merge into a wider dtype")
    return made


def _computed_in(view: Any) -> torch.dtype:
    return view.dtype if view.dtype.is_floating_point else torch.float32
