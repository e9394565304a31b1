"""A folder of transformers: weights, config, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inlay.errors import NumericsError
from inlay.exporting.whole import WIDTHS, Form


def _write(model: Any, folder: Path, tokenizer: Any, name: str, dtype: str) -> tuple[Path, list[str]]:
    for key, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise NumericsError(
                f"{key} has numbers that {dtype} cannot hold, or that are none. Nothing was kept. Check the adapter, "
                "or export in bfloat16 or float32."
            )
    model.save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    return folder, []


def _read(folder: Path, cls: Any, config: Any) -> Any:
    return cls.from_pretrained(folder, dtype="auto")


MERGED = Form(
    "merged", tuple(WIDTHS), WIDTHS, lambda model, tokenizer: None, _write, _read, lambda folder, tokenizer: []
)
"""What transformers, vLLM and others load."""
