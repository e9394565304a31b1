"""Exporting a SOURCE: a run, an adapter, or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, did_you_mean
from inlay.exporting.exports import FORMS, export
from inlay.exporting.result import Export
from inlay.io import plain
from inlay.io.disk import check_free
from inlay.runs.opened import adapter_folder, find_source
from inlay.runs.run import FINISHED, check_tokenizer


def export_source(
    source: str | Path, to: str, out: str | Path | None = None, *, base: Any = None, **options: Any
) -> Export:
    """`inlay.export` of what `inlay.runs.opened` finds: with the run's base as its recipe says, and its own tokenizer.

    A run that trained all weights is exported as the model it made; it has no form "peft".

    Args:
        out: by default RUN/FORM, or for an adapter or a model FOLDER-FORM.
        base: a model, or the name of one, in place of the base that a run or an adapter names.
        options: `inlay.export`'s dtype, name, verify, probes and tolerance.

    Raises as `open_source` and `inlay.export`.
    """
    if to not in FORMS:
        raise ConfigError.of("to", to, f"one of {FORMS}", did_you_mean(str(to), FORMS).strip())
    found = find_source(source)
    beside = Path(source).with_name(f"{found.name}-{to}") if Path(source).is_dir() else Path(f"{found.name}-{to}")
    target = Path(out) if out is not None else found.run.folder / to if found.run else beside
    check_free(target)
    if to == "peft":
        folder = adapter_folder(source)
        if (folder / FINISHED).is_file():
            check_tokenizer(folder, plain.read_json(folder / FINISHED))
        return export(folder, to, target, base=base, **options)
    opened = found.open(base=base)
    return export(opened.model, to, target, tokenizer=opened.tokenizer, **{"name": found.name, **options})
