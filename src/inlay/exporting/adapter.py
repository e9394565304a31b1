"""An adapter's folder, with the tokenizer beside it, checked against what other programs read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError
from inlay.exporting.readers import rejected_by_vllm
from inlay.exporting.result import Export
from inlay.io.folder import open_folder

_OF_TRAINING = ("*.pt", "*.pth", "training_args.bin", "trainer_state.json")  # Trainer's, beside its checkpoints


def write_adapter(source: Any, folder: Path, tokenizer: Any, verify: bool) -> Export:
    """Saves the active adapter of a view, or copies the files of an adapter's folder (not its sub-folders)."""
    if isinstance(source, Path):
        open_folder(source)
        for file in (f for f in source.iterdir() if f.is_file() and not any(map(f.match, _OF_TRAINING))):
            shutil.copy2(file, folder / file.name)
    else:
        names = list(source.active_adapters)
        if len(names) != 1:
            raise ConfigError.of("source", f"a view with active adapters {names}", "a view with exactly one")
        source.save_pretrained(str(folder), selected_adapters=names, training_state=False)
        inner = folder / names[0]
        if names != ["default"]:  # such an adapter is saved in a folder of its name
            for file in list(inner.iterdir()):
                file.rename(folder / file.name)
            inner.rmdir()
    if tokenizer:
        tokenizer.save_pretrained(str(folder))
    open_folder(folder)
    return Export("peft", folder, rejections=rejected_by_vllm(folder) if verify else [])
