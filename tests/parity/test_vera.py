"""VeRA beside peft: the same random projections, numbers and files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay

from .both import agree, compare, into_inlay, into_peft, layout, of_inlay, of_peft, output, peft, swap
from .models import FAMILIES

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"r": 5, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "gpt2": {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "bert": {"r": 3, "projection_prng_key": 7},
}


def config(name: str, **fields: Any) -> dict[str, Any]:
    return {"method": "VeraConfig", "task_type": FAMILIES[name].task_type, **FIELDS[name], **fields}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FIELDS)
def test_numbers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], config(name), tmp_path, dtype)


@pytest.mark.parametrize("name", FIELDS)
def test_files(name: str, tmp_path: Path) -> None:
    swap(FAMILIES[name].base(), config(name), FAMILIES[name].batch(0), tmp_path)


@pytest.mark.parametrize("fields", [{}, {"projection_prng_key": 123, "r": 9}], ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_the_same_key_gives_the_same_projections(name: str, fields: dict[str, Any]) -> None:
    base = FAMILIES[name].base()
    mine, theirs = (
        lib.get_peft_model_state_dict(make(base, config(name, **fields), prepare=lambda _: None))
        for lib, make in ((inlay, of_inlay), (peft, of_peft))
    )
    for key in ("base_model.vera_A", "base_model.vera_B"):
        assert torch.equal(mine[key], theirs[key])


def test_files_without_the_projections(tmp_path: Path) -> None:
    base, batch = FAMILIES["llama"].base(), FAMILIES["llama"].batch(0)
    fields = config("llama", save_projection=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not", UserWarning)  # peft's advice against it
        theirs = of_peft(base, fields, tmp_path / "peft")
    mine = of_inlay(base, fields, tmp_path / "inlay")
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")
    assert not any("vera_A" in key for key in layout(tmp_path / "inlay"))
    agree(output(into_inlay(base, tmp_path / "peft"), batch), output(theirs, batch))
    with pytest.raises(UserWarning, match="Specified to not save"):
        into_peft(base, tmp_path / "inlay")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = peft.PeftModel.from_pretrained(FAMILIES["llama"].base(), str(tmp_path / "inlay"))
    agree(output(again, batch), output(mine, batch))


def test_adapters_of_several_keys_live_on_one_model(tmp_path: Path) -> None:
    """peft refuses a second adapter with another `projection_prng_key`."""
    base, batch = FAMILIES["llama"].base(), FAMILIES["llama"].batch(0)
    expected = {}
    view: Any = None
    for key in (1, 2):
        theirs = of_peft(base, config("llama", projection_prng_key=key, r=2 + key), tmp_path / str(key))
        expected[key] = output(theirs, batch)
        if view is None:
            view = into_inlay(base, tmp_path / str(key), adapter_name="1")
        else:
            view.load_adapter(str(tmp_path / str(key)), str(key))
    with pytest.raises(ValueError, match="PRNG initialisation key must be the same"):
        theirs.add_adapter("other", peft.VeraConfig(r=2, projection_prng_key=9, target_modules=["q_proj"]))
    for key in (1, 2, 1):
        view.set_adapter(str(key))
        agree(output(view, batch), expected[key])
