"""State dicts: an adapter's as its file has it, and the base's under the base's own names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inlay import (
    LoraConfig,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_base_model_state_dict,
)
from inlay.errors import MismatchError, UnsafeFileError
from tests.tiny import Mlp, made, same, snapshot


def test_an_adapters_file_is_read_as_it_is(tmp_path: Path) -> None:
    model = get_peft_model(made(Mlp), LoraConfig(target_modules=["up"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path))
    expected = get_peft_model_state_dict(model)
    found = load_peft_weights(tmp_path)
    assert found.keys() == expected.keys() and all(torch.equal(t, expected[k]) for k, t in found.items())
    renamed = load_peft_weights(tmp_path, key_mapping={"base_model.model.": "x."})
    assert set(renamed) == {k.replace("base_model.model.", "x.") for k in expected}
    torch.save(expected, tmp_path / "adapter_model.bin")
    for name in ("adapter_model.safetensors", "inlay_manifest.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UnsafeFileError, match="allow_pickle"):
        load_peft_weights(tmp_path)
    assert load_peft_weights(tmp_path, allow_pickle=True).keys() == expected.keys()


def test_the_bases_state_dict_is_the_bases() -> None:
    base = made(Mlp)
    before = snapshot(base)
    model = get_peft_model(base, LoraConfig(target_modules=["up"], modules_to_save=["down"]))
    state = get_base_model_state_dict(model)
    assert state.keys() == before.keys() and all(torch.equal(t, before[k]) for k, t in state.items())
    missing, unexpected = set_base_model_state_dict(model, {k: t + 1 for k, t in state.items()})
    assert (missing, unexpected) == ([], [])
    assert all(torch.equal(t, before[k] + 1) for k, t in base.state_dict().items())


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    model = get_peft_model(made(Mlp), LoraConfig(target_modules=["up"]))
    state = get_base_model_state_dict(model)
    before = snapshot(model)
    for wrong in (
        {**state, "more": torch.zeros(1)},
        {"up.bias": state["up.bias"]},
        {**state, "up.bias": torch.ones(1)},
    ):
        with pytest.raises(MismatchError):
            set_base_model_state_dict(model, wrong)
    assert same(snapshot(model), before)
    found = set_base_model_state_dict(model, {"up.bias": state["up.bias"], "more": torch.zeros(1)}, strict=False)
    assert "up.weight" in found.missing_keys and found.unexpected_keys == ["more"]
