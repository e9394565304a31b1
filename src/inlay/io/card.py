"""The model card: `README.md` with the metadata by which the Hub and transformers recognise an adapter."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from inlay.core.index import index_of
from inlay.errors import InlayWarning, StateError
from inlay.io.disk import replace_file

_TEXT = """
# {title}

A {method} adapter{base}, trained with Inlay. It is a small set of weights that changes the base model's behaviour;
the base itself is not part of it.

```python
from inlay import PeftModel
model = PeftModel.from_pretrained(base, "{folder}")
```
"""


def write_card(model: nn.Module, folder: str | Path, known_as: str | None = None) -> None:
    """Writes `README.md` into `folder`; of one that is there, only brings the metadata up to date.

    Args:
        known_as: what a new card calls the adapter, such as a repository's name; by default `folder`.

    Raises FileError if it cannot be written, StateError if there are no adapters. One that cannot be read as a card,
    or is a link, stays as it is.
    """
    from huggingface_hub import ModelCard, ModelCardData

    configs = index_of(model).configs
    if not configs:
        raise StateError("There is no adapter to write a card for: add one with add_adapter(name, config).")
    config = next(iter(configs.values()))
    base = config.base_model_name_or_path
    path = Path(folder) / "README.md"
    if path.is_symlink():
        return
    if path.is_file():
        try:
            card = ModelCard(path.read_bytes().decode("utf-8"), ignore_metadata_errors=True)
        except Exception as error:  # no UTF-8, no YAML, no dict: it is the user's, whatever it is
            warnings.warn(
                f"'{path}' is left as it is, without the adapter's metadata: it is not a model card "
                f"({type(error).__name__}).",
                InlayWarning,
                stacklevel=2,
            )
            return
    else:
        card = ModelCard("---\n{}\n---\n")
        known_as = known_as or str(folder)
        card.text = _TEXT.format(
            title=Path(known_as).resolve().name,
            method=config.peft_type,
            base=f" for `{base}`" if base else "",
            folder=known_as,
        )
    data: Any = card.data if card.data is not None else ModelCardData()
    tags = list(data.get("tags") or [])
    wanted = [str(config.peft_type).lower(), *(["transformers"] if hasattr(model, "config") else [])]
    if base and not os.path.exists(base):
        data["base_model"] = base
        wanted.append(f"base_model:adapter:{base}")
    data["library_name"] = "peft"
    data["tags"] = [*tags, *(t for t in wanted if t not in tags)]
    replace_file(path, str(card).encode("utf-8"))
