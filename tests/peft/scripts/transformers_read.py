"""Loads what `transformers_models.py` wrote, perhaps under the other library.

Arguments: the folder that it wrote to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from common import ids, llama, report, vit
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

FOLDER = Path(sys.argv[1])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids()).logits.flatten()[:20]


def into(make: Any, name: str) -> list[torch.Tensor]:
    """The logits of a model with an adapter loaded in place, and of a view with it."""
    model = make()
    model.load_adapter(str(FOLDER / name))
    return [logits(model), logits(PeftModel.from_pretrained(make(), str(FOLDER / name)))]


def classifier() -> Any:
    return AutoModelForSequenceClassification.from_pretrained(FOLDER / "classifier")


def images(name: str) -> list[torch.Tensor]:
    pixels = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    model = vit()
    model.load_adapter(str(FOLDER / name))
    with torch.no_grad():
        return [m(pixels).logits.flatten() for m in (model, PeftModel.from_pretrained(vit(), str(FOLDER / name)))]


if __name__ == "__main__":
    found = {name: into(llama, name) for name in ("in_place", "view", "tokens", "embedding", "patterns", "ia3", "oft")}
    found |= {name: into(classifier, name) for name in ("head_of_view", "head_in_place")}
    found["vit"] = images("vit")
    found["automatic"] = [
        logits(AutoModelForCausalLM.from_pretrained(FOLDER / "in_place")),
        logits(AutoPeftModelForCausalLM.from_pretrained(str(FOLDER / "in_place"))),
    ]
    report(**found)
