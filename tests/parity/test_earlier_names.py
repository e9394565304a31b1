"""Adapters made under earlier transformers releases, with other module names: Inlay loads them, peft does not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from inlay.errors import InlayWarning

from .both import agree, differ, into_inlay, layout, of_inlay, output, peft
from .models import FAMILIES, WIDE


@dataclass(frozen=True)
class Renamed:
    """An architecture of transformers 5 and the names that transformers 4 had for its attention's projections."""

    build: Callable[[], Any]
    then: dict[str, str]  # path today -> path in transformers 4
    size: int


def swin() -> Any:
    return SwinForImageClassification(
        SwinConfig(
            image_size=16,
            patch_size=4,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=2,
            num_labels=3,
            initializer_range=WIDE,
        )
    )


def segformer() -> Any:
    return SegformerForImageClassification(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=[8, 16],
            num_attention_heads=[1, 2],
            sr_ratios=[2, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            mlp_ratios=[2, 2],
            num_labels=3,
            initializer_range=WIDE,
        )
    )


def both_projections(now: str, then: str) -> dict[str, str]:
    return {f"{now}.{p}_proj": f"{then}.{old}" for p, old in (("q", "query"), ("v", "value"))}


RENAMED = {
    "vit": Renamed(
        FAMILIES["vit"].build,
        both_projections("vit.layers.0.attention", "vit.encoder.layer.0.attention.attention")
        | both_projections("vit.layers.1.attention", "vit.encoder.layer.1.attention.attention"),
        8,
    ),
    "swin": Renamed(
        swin,
        both_projections("swin.encoder.layers.0.blocks.0.attention", "swin.encoder.layers.0.blocks.0.attention.self")
        | both_projections("swin.encoder.layers.1.blocks.0.attention", "swin.encoder.layers.1.blocks.0.attention.self"),
        16,
    ),
    "segformer": Renamed(
        segformer,
        both_projections("segformer.stages.0.blocks.0.attention", "segformer.encoder.block.0.0.attention.self")
        | both_projections("segformer.stages.1.blocks.0.attention", "segformer.encoder.block.1.0.attention.self"),
        16,
    ),
}
FIELDS = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "modules_to_save": ["classifier"]}


def made(name: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    case = RENAMED[name]
    return case.build().eval(), torch.randn(2, 3, case.size, case.size)


def aged(folder: Path, then: dict[str, str]) -> None:
    """Rewrites an adapter's folder to the state in which transformers 4 left it: other names, no manifest."""
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {}
    for key, value in tensors.items():
        path, _, suffix = key.removeprefix("base_model.model.").partition(".lora_")
        renamed[f"base_model.model.{then[path]}.lora_{suffix}" if suffix else key] = value
    assert len(renamed) == len(tensors)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["query", "value"]
    for file in folder.iterdir():
        file.unlink()
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", RENAMED)
def test_an_older_adapter(name: str, tmp_path: Path) -> None:
    base, x = made(name)
    then = RENAMED[name].then
    mine = of_inlay(base, {**FIELDS, "target_modules": ["q_proj", "v_proj"]}, tmp_path / "old")
    now = layout(tmp_path / "old")
    assert {k.removeprefix("base_model.model.").partition(".lora_")[0] for k in now if "lora_" in k} == set(then)
    expected = output(mine, x)
    differ(expected, output(base, x))
    aged(tmp_path / "old", then)
    if name == "vit":
        key = "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight"
        assert key in layout(tmp_path / "old")

    with pytest.raises(ValueError, match="No modules were targeted"):
        peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "old"))
    with pytest.warns(InlayWarning, match="module names of an earlier transformers release"):
        loaded = into_inlay(base, tmp_path / "old")
    agree(output(loaded, x), expected)

    # saved again, it is an adapter of today's names, which peft reads too
    loaded.save_pretrained(str(tmp_path / "new"))
    assert layout(tmp_path / "new") == now
    agree(output(peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "new")).eval(), x), expected)


@pytest.mark.parametrize("name", RENAMED)
def test_a_guide_of_then(name: str, tmp_path: Path) -> None:
    """`target_modules=["query", "value"]`, as guides written for transformers 4 have it."""
    base, x = made(name)
    with pytest.warns(InlayWarning, match="module names of an earlier transformers release"):
        view = of_inlay(base, {**FIELDS, "target_modules": ["query", "value"]})
    same = of_inlay(base, {**FIELDS, "target_modules": ["q_proj", "v_proj"]})
    assert torch.equal(output(view, x), output(same, x))
