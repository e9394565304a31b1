"""Tokenizers of transformers, by folder or name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inlay.errors import MissingFileError

TOKENIZER_CONFIG = "tokenizer_config.json"


def load_tokenizer(
    name: str | Path, trust_remote_code: bool = False, revision: str | None = None, gguf_file: str | None = None
) -> Any:
    """The tokenizer in a folder, or of a model on the Hub. Raises MissingFileError if there is none."""
    from transformers import AutoTokenizer

    if gguf_file is None and Path(name).is_dir() and not (Path(name) / TOKENIZER_CONFIG).is_file():
        raise MissingFileError(f"'{name}' has no {TOKENIZER_CONFIG}, so there is no tokenizer in it.")
    where = {k: v for k, v in {"revision": revision, "gguf_file": gguf_file}.items() if v is not None}
    try:
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=trust_remote_code, **where)
    except (OSError, ValueError) as error:
        raise MissingFileError(f"The tokenizer of '{name}' cannot be loaded: {str(error).splitlines()[0]}") from error
