"""RandLoRA beside peft: the same random bases, numbers and files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay

from .both import agree, compare, into_inlay, layout, of_inlay, of_peft, output, peft, swap
from .models import FAMILIES

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"r": 5, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]},
    "gpt2": {"r": 8, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "bert": {"r": 40, "projection_prng_key": 7},
}


def config(name: str, **fields: Any) -> dict[str, Any]:
    given = {"method": "RandLoraConfig", "task_type": FAMILIES[name].task_type, "randlora_alpha": 2}
    return {**given, **FIELDS[name], **fields}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FIELDS)
def test_numbers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], config(name), tmp_path, dtype)


@pytest.mark.parametrize("fields", [{}, {"sparse": True}, {"very_sparse": True}, {"init_weights": False}], ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_files(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    swap(FAMILIES[name].base(), config(name, **fields), FAMILIES[name].batch(0), tmp_path)


@pytest.mark.parametrize("fields", [{}, {"sparse": True}, {"very_sparse": True}, {"projection_prng_key": 3}], ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_a_new_adapter_is_the_same(name: str, fields: dict[str, Any]) -> None:
    base = FAMILIES[name].base()
    mine, theirs = (
        lib.get_peft_model_state_dict(make(base, config(name, **fields), prepare=lambda _: None))
        for lib, make in ((inlay, of_inlay), (peft, of_peft))
    )
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(mine[key], value), key


def test_files_without_the_bases(tmp_path: Path) -> None:
    base, batch = FAMILIES["llama"].base(), FAMILIES["llama"].batch(0)
    fields = config("llama", save_projection=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not", UserWarning)  # peft's advice against it
        theirs = of_peft(base, fields, tmp_path / "peft")
        mine = of_inlay(base, fields, tmp_path / "inlay")
        again = peft.PeftModel.from_pretrained(FAMILIES["llama"].base(), str(tmp_path / "inlay")).eval()
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")
    assert not any("randlora_A" in key for key in layout(tmp_path / "inlay"))
    agree(output(into_inlay(base, tmp_path / "peft"), batch), output(theirs, batch))
    agree(output(again, batch), output(mine, batch))
