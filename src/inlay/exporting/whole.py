"""The whole model, with the adapter in its weights, in a form that another program reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inlay.core.classes import original_class
from inlay.core.skeleton import clone_skeleton
from inlay.errors import ConfigError, StateError
from inlay.exporting.probes import Checks, answers, compared, inputs_of
from inlay.exporting.result import Export
from inlay.merge.dense import make_dense
from inlay.model import PeftModel
from inlay.quant import is_quantised

WIDTHS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Form:
    """A way to write a model down.

    Attributes:
        dtypes: those that its weights may have.
        merged_in: of those, the ones that the model is made in; in any other it keeps its own until it is written.
        fit: (model, tokenizer). Raises if they cannot be written so.
        write: (model, folder, tokenizer, name, dtype) -> (what was written, notes).
        read: (what was written, the model's class and config) -> the model in it.
        check: (what was written, tokenizer) -> notes. Raises if the tokenizer in it is another.
    """

    name: str
    dtypes: tuple[str, ...]
    merged_in: Mapping[str, torch.dtype]
    fit: Callable[[Any, Any], object]
    write: Callable[[Any, Path, Any, str, str], tuple[Path, list[str]]]
    read: Callable[[Path, Any, Any], Any]
    check: Callable[[Path, Any], list[str]]


def write_whole(
    form: Form, source: Any, folder: Path, tokenizer: Any, name: str, dtype: str | None, checks: Checks | None
) -> Export:
    """Writes a model, or a view with its active adapters merged. Nothing of the source changes.

    Quantised layers become dense, so that nothing is rounded twice; the merged weights are rounded to the dtype once.

    Args:
        dtype: of what is written; None for the model's.
        checks: how to verify: reads what was written and compares its logits with the source's. None: not at all.
    """
    cls: Any = original_class(source)
    view = isinstance(source, PeftModel)
    if not hasattr(cls, "from_pretrained"):
        raise ConfigError.of("source", cls.__name__, "a view of a model of transformers")
    if view and not source.active_adapters:
        raise ConfigError.of("source", "a view without an active adapter", "one that answers with an adapter")
    if dtype is not None and dtype not in form.dtypes:
        raise ConfigError.of("dtype", dtype, f"one of {form.dtypes} for {form.name!r}")
    form.fit(source, tokenizer)
    inputs = [] if checks is None else inputs_of(checks.probes, source, tokenizer)
    wanted, base = answers(source, inputs), None
    if view:
        with source.disable_adapter():
            base = answers(source, inputs)
    plain, notes = _plain(source, form.merged_in.get(dtype or ""))
    dtype = dtype or str(plain.dtype).removeprefix("torch.")
    computed, device = _computed_in(source), next(source.parameters()).device
    path, more = form.write(plain, folder, tokenizer, name, dtype)
    made = Export(form.name, folder, notes=[*notes, *more])
    if path != folder:
        made.file = path.name
    if checks is None:
        return made
    config = plain.config
    del plain
    if tokenizer:
        made.notes += form.check(path, tokenizer)
    found = answers(form.read(path, cls, config).to(device), inputs)
    made.difference = compared(wanted, base, found, [computed, dtype], checks.tolerance)
    made.notes += made.difference.notes()
    return made


def _plain(source: Any, dtype: torch.dtype | None) -> tuple[Any, list[str]]:
    """A model without adapters and quantised layers, with weights of a dtype (None: as they are); and notes."""
    quantised = any(is_quantised(module) for module in source.modules())
    # a model read from a GGUF file is dense, and keeps the mark of being quantised: it is dropped as of one that is
    marked = getattr(getattr(source, "config", None), "quantization_config", None) is not None
    dense: Any = dtype if dtype is not None else quantised or marked
    if isinstance(source, PeftModel):
        try:
            plain = source.merge_and_unload(dequantize=dense)
        except StateError as error:
            raise StateError(f"{error} The form 'peft' needs no merging.") from error
    else:
        plain = clone_skeleton(source)  # whose config is its own: saving writes to it
        if dense is not False:
            make_dense(plain, {}, dtype)
    return plain, [f"the base is quantised; what is written is dense, in {plain.dtype}"] if quantised else []


def _computed_in(model: Any) -> str:
    dtype = model.dtype if model.dtype.is_floating_point else torch.float32
    return str(dtype).removeprefix("torch.")
