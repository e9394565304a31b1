"""The model card: `README.md` with the metadata by which the Hub and transformers recognise an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from inlay.core.index import index_of

_TEXT = """
# {title}

A {method} adapter{base}, trained with Inlay. It is a small set of weights that changes the base model's behaviour;
the base itself is not part of it.

```python
from inlay import PeftModel
model = PeftModel.from_pretrained(base, "{folder}")
```
"""


def write_card(model: nn.Module, folder: str | Path) -> None:
    """Writes `README.md` into `folder`; of one that is there, only brings the metadata up to date."""
    from huggingface_hub import ModelCard, ModelCardData

    config = next(iter(index_of(model).configs.values()))
    base = config.base_model_name_or_path
    path = Path(folder) / "README.md"
    if path.is_symlink():
        return
    if path.is_file():
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    else:
        card = ModelCard("---\n{}\n---\n")
        text = _TEXT.format(
            title=Path(folder).resolve().name,
            method=config.peft_type,
            base=f" for `{base}`" if base else "",
            folder=folder,
        )
        card.text = text
    data: Any = card.data if card.data is not None else ModelCardData()
    tags = list(data.get("tags") or [])
    wanted = [str(config.peft_type).lower(), *(["transformers"] if hasattr(model, "config") else [])]
    if base and not Path(base).exists():
        data["base_model"] = base
        wanted.append(f"base_model:adapter:{base}")
    data["library_name"] = "peft"
    data["tags"] = [*tags, *(t for t in wanted if t not in tags)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    path.write_text(str(card), encoding="utf-8")
