"""VB-LoRA beside peft: numbers, files, and files of the chosen shares alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .both import (
    agree,
    compare,
    differ,
    into_inlay,
    layout,
    of_inlay,
    of_peft,
    output,
    peft,
    same_tensors,
    swap,
)
from .models import FAMILIES

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"r": 3, "vector_length": 8, "num_vectors": 7, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "gpt2": {"vector_length": 16, "num_vectors": 6, "topk": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    "bert": {"vector_length": 16, "num_vectors": 300, "topk": 1},
}


def config(name: str, **fields: Any) -> dict[str, Any]:
    return {"method": "VBLoRAConfig", "task_type": FAMILIES[name].task_type, **FIELDS[name], **fields}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_numbers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], config(name, topk=2), tmp_path, dtype)


@pytest.mark.parametrize("name", FIELDS)
def test_files(name: str, tmp_path: Path) -> None:
    swap(FAMILIES[name].base(), config(name), FAMILIES[name].batch(0), tmp_path)


@pytest.mark.parametrize("name", FIELDS)
def test_files_of_the_shares_alone(name: str, tmp_path: Path) -> None:
    base, batch = FAMILIES[name].base(), FAMILIES[name].batch(0)
    fields = config(name, save_only_topk_weights=True)
    theirs, mine = of_peft(base, fields, tmp_path / "peft"), of_inlay(base, fields, tmp_path / "inlay")
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")
    assert any(dtype in ("U8", "I16") for dtype, _ in layout(tmp_path / "inlay").values())
    loaded = into_inlay(base, tmp_path / "peft")
    agree(output(loaded, batch), output(theirs, batch))
    differ(output(theirs, batch), output(base, batch))
    again = peft.PeftModel.from_pretrained(FAMILIES[name].base(), str(tmp_path / "inlay"))
    agree(output(again.eval(), batch), output(mine, batch))
    loaded.save_pretrained(str(tmp_path / "again"))
    same_tensors(peft.load_peft_weights(str(tmp_path / "again")), peft.load_peft_weights(str(tmp_path / "peft")))
    assert layout(tmp_path / "again") == layout(tmp_path / "peft")
