"""Conversion to LoRA: the same factors and ranks as peft's, and files that both libraries read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inlay

from .both import agree, differ, into_inlay, into_peft, of_peft, output, peft
from .models import FAMILIES

METHODS: dict[str, dict[str, Any]] = {
    "loha": {"method": "LoHaConfig", "r": 3},
    "lokr": {"method": "LoKrConfig", "r": 3, "decompose_factor": 4},
    "fourierft": {"method": "FourierFTConfig", "n_frequency": 40, "scaling": 20.0},
    "c3a": {"method": "C3AConfig", "block_size": 4},
    "vera": {"method": "VeraConfig", "r": 4},
    "randlora": {"method": "RandLoraConfig", "r": 4, "randlora_alpha": 8},
    "miss": {"method": "MissConfig", "r": 3},
    "miss-bat": {"method": "MissConfig", "r": 4, "init_weights": "bat"},
    "adalora": {"method": "AdaLoraConfig", "init_r": 4, "target_r": 2, "total_step": 10},
    "hra": {"method": "HRAConfig", "r": 4},
    "oft": {"method": "OFTConfig", "r": 0, "oft_block_size": 4},
}
IN_PEFT = ["loha", "lokr", "fourierft", "c3a", "randlora", "miss", "miss-bat"]  # which peft converts too


def targets(name: str) -> dict[str, Any]:
    return {"target_modules": ["q_proj", "o_proj"], **METHODS[name]}


def product(tensors: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    a, b = (tensors[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
    return b @ a


@pytest.mark.parametrize("name", METHODS)
def test_the_file_gives_the_same_logits_in_both(name: str, tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    base, batch = family.base(), family.batch(0)
    theirs = of_peft(base, targets(name), tmp_path / "peft")
    view = into_inlay(base, tmp_path / "peft")
    inlay.save_as_lora(tmp_path / "lora", view, 1.0)
    expected = output(theirs, batch)
    differ(expected, output(base, batch))
    agree(output(into_inlay(base, tmp_path / "lora"), batch), expected, "converted, in Inlay", 1e-4)
    agree(output(into_peft(base, tmp_path / "lora"), batch), expected, "converted, in peft", 1e-4)


@pytest.mark.parametrize("rank", [2, 0.7])
@pytest.mark.parametrize("name", IN_PEFT)
def test_the_same_ranks_and_products(name: str, rank: float, tmp_path: Path) -> None:
    """C3A's D has every singular value twice: of the last pair either may be left out, with the same error.

    peft writes MiSS as a LoRA of its own rank, whatever is asked for.
    """
    base = FAMILIES["llama"].base()
    theirs = of_peft(base, targets(name), tmp_path)
    view = into_inlay(base, tmp_path)
    mine, tensors = inlay.convert_to_lora(view, 3 if name == "miss" else rank)
    other, expected = peft.convert_to_lora(theirs, 3 if name == "miss" else rank)
    assert tensors.keys() == expected.keys()
    for key in tensors:
        if key.endswith("lora_A.weight"):
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            assert tensors[key].shape == expected[key].shape
            found, other_product = product(tensors, path), product(expected, path)
            if name != "c3a":
                agree(found, other_product, path, 1e-5)
                continue
            d = theirs.get_submodule(key.removesuffix(".lora_A.weight")).get_delta_weight("default").detach()
            agree((d - found).norm(), (d - other_product).norm(), path, 1e-5)
    assert view.supports_lora_conversion() == theirs.supports_lora_conversion() is True
    assert (mine.r == other.r and not mine.rank_pattern) or isinstance(rank, float)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_other_layouts_and_ranks_per_layer(name: str, tmp_path: Path) -> None:
    """GPT-2 stores its weights transposed."""
    family = FAMILIES[name]
    base, batch = family.base(), family.batch(0)
    view = inlay.get_peft_model(base, inlay.LoHaConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for p in view.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    inlay.save_as_lora(tmp_path, view.eval(), 0.8)
    mine = into_inlay(base, tmp_path)
    differ(output(mine, batch), output(base, batch), 1e-3)
    agree(output(into_peft(base, tmp_path), batch), output(mine, batch), "in both", 1e-5)


def test_a_head_comes_along(tmp_path: Path) -> None:
    from .models import HEADED

    family = HEADED["bert-seq-cls"]
    base, batch = family.base(), family.batch(0)
    fields = {"method": "LoHaConfig", "r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    theirs = of_peft(base, fields, tmp_path / "peft")
    view = into_inlay(base, tmp_path / "peft")
    inlay.save_as_lora(tmp_path / "lora", view, 1.0)
    expected = output(theirs, batch)
    agree(output(into_inlay(base, tmp_path / "lora"), batch), expected, "in Inlay", 1e-4)
    agree(output(into_peft(base, tmp_path / "lora"), batch), expected, "in peft", 1e-4)


def test_a_swapped_adapter_is_peft_s_swapped_adapter(tmp_path: Path) -> None:
    """Hot-swapping files of peft's, of different ranks and scales."""
    from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

    family = FAMILIES["llama"]
    base, batch = family.base(), family.batch(0)
    of_peft(base, {"r": 2, "target_modules": ["q_proj", "v_proj"]}, tmp_path / "1")
    of_peft(base, {"r": 4, "lora_alpha": 11, "target_modules": ["q_proj", "v_proj"]}, tmp_path / "2")
    models = into_inlay(base, tmp_path / "1"), into_peft(base, tmp_path / "1")
    inlay.prepare_model_for_compiled_hotswap(models[0], target_rank=4)
    prepare_model_for_compiled_hotswap(models[1], target_rank=4)
    inlay.hotswap_adapter(models[0], str(tmp_path / "2"), "default")
    hotswap_adapter(models[1], str(tmp_path / "2"), "default", torch_device="cpu")
    agree(output(models[0], batch), output(models[1], batch), "swapped")
    differ(output(models[0], batch), output(into_inlay(base, tmp_path / "1"), batch))
