"""`export`: a view or an adapter's folder, in the form that another program reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, MissingFileError, StateError, did_you_mean
from inlay.exporting.adapter import write_adapter
from inlay.exporting.merged import write_merged
from inlay.exporting.probes import Probes
from inlay.exporting.result import Export
from inlay.hf.auto import AutoPeftModel
from inlay.hf.tokenizers import TOKENIZER_CONFIG, load_tokenizer
from inlay.io.folder import CONFIG_NAME
from inlay.io.load import load_config
from inlay.model import PeftModel

FORMS = ("merged", "peft")


def export(
    source: Any,
    to: str,
    out: str | Path,
    *,
    tokenizer: Any = None,
    base: Any = None,
    verify: bool = True,
    probes: Probes | None = None,
    tolerance: float | None = None,
) -> Export:
    """Writes an adapter to a folder that does not exist yet; it appears there when it is complete and verified.

    "merged": a folder that transformers loads without Inlay: weights with the adapter in them, config, tokenizer and
    chat template. Verifying loads it and compares its logits with those of base and adapter.

    "peft": the adapter's files and the tokenizer's. Verifying lists what vLLM would refuse.

    Args:
        source: a view, whose active adapters are taken, or the folder of an adapter.
        tokenizer: to put beside it. None: the one in the adapter's folder or else the base's. False: none, for models
            that have none.
        base: for a folder, the model or the name to use in place of the one that the adapter names.
        verify: False leaves the check out.
        probes: texts, or a dict of the model's arguments, to compare logits on; by default drawn token ids.
        tolerance: the difference allowed, as a share of the largest logit; by default after the dtype.

    Raises:
        ConfigError: an unknown form, no tokenizer, or an argument that does not fit.
        StateError: `out` is there and not empty, or the method cannot be merged.
        NumericsError: the merged model computes something else; the message says by how much.
        FileError: the folder is not an adapter, or is damaged.
    """
    if to not in FORMS:
        raise ConfigError.of("to", to, f"one of {FORMS}", did_you_mean(str(to), FORMS).strip())
    folder = None if isinstance(source, PeftModel) else _adapter_folder(source)
    with _appearing(Path(out)) as staged:
        if to == "peft":
            beside = folder is not None and (folder / TOKENIZER_CONFIG).is_file()  # copied with the folder
            found = tokenizer if tokenizer is not None or beside else _tokenizer(source, folder)
            made = write_adapter(folder or source, staged, found, verify)
        else:
            view = source if folder is None else _view(folder, base)
            found = _tokenizer(view, folder) if tokenizer is None else tokenizer
            made = write_merged(view, staged, found, verify, probes, tolerance)
    made.folder = Path(out)
    return made


def _adapter_folder(source: Any) -> Path:
    if not isinstance(source, (str, Path)):
        raise ConfigError.of("source", type(source).__name__, "a view (get_peft_model), or the folder of an adapter")
    if not (Path(source) / CONFIG_NAME).is_file():
        raise MissingFileError(f"'{source}' has no {CONFIG_NAME}, so it is not the folder of an adapter.")
    return Path(source)


def _view(folder: Path, base: Any) -> Any:
    if base is None or isinstance(base, (str, Path)):
        config = load_config(folder)
        if base is not None:
            config = config.replaced(base_model_name_or_path=str(base))
        return AutoPeftModel.from_pretrained(str(folder), config=config, dtype="auto")
    return PeftModel.from_pretrained(base, str(folder))


def _tokenizer(view: Any, folder: Path | None) -> Any:
    """The tokenizer in the adapter's folder, or else the base's."""
    if folder is not None and (folder / TOKENIZER_CONFIG).is_file():
        return load_tokenizer(folder)
    name = _base_name(view, folder)
    try:
        if name:
            return load_tokenizer(name)
    except MissingFileError as error:
        raise _no_tokenizer(str(error)) from error
    raise _no_tokenizer("The base was not loaded from a folder or the Hub.")


def _base_name(view: Any, folder: Path | None) -> str | None:
    if isinstance(view, PeftModel):
        return getattr(view.config, "name_or_path", None) or None
    return load_config(folder).base_model_name_or_path if folder is not None else None


def _no_tokenizer(why: str) -> ConfigError:
    hint = f"{why} Pass the tokenizer, or False if the model has none."
    return ConfigError.of("tokenizer", None, "a tokenizer, as none is beside the adapter or its base", hint)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end, or goes away with an error."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StateError(f"'{out}' is there and not empty: remove it, or export to another folder.")
    staged = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    staged.mkdir(parents=True)
    try:
        yield staged
        if out.exists():
            out.rmdir()
        staged.rename(out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
