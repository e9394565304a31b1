"""Merged weights: the outputs of `merge_and_unload` equal peft's, and each library's own before merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inlay.core.adapted import is_adapted

from .both import agree, differ, into_inlay, of_peft, output
from .models import FAMILIES, HEADED, SCALED, convs

EMBEDDINGS_SAVED = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")


def merged(base: nn.Module, config: dict[str, Any], batch: Any, folder: Path) -> None:
    before = output(base, batch)
    theirs = of_peft(base, config, folder)
    mine = into_inlay(base, folder)
    expected = output(theirs, batch)
    result = mine.merge_and_unload()
    assert type(result) is type(base)
    assert not any(map(is_adapted, result.modules()))
    agree(output(result, batch), output(theirs.merge_and_unload(), batch), "merged by both")
    agree(output(result, batch), expected, "merged and not")
    differ(output(result, batch), before)
    assert torch.equal(output(base, batch), before), "the base changed"
    # in place, and undone to the bit
    own = output(mine, batch)
    mine.merge_adapter()
    agree(output(mine, batch), expected, "merged in place")
    mine.unmerge_adapter()
    assert torch.equal(output(mine, batch), own)


@pytest.mark.parametrize("name", FAMILIES)
def test_linear_layers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    merged(family.base(), family.config(target_modules="all-linear"), family.batch(0), tmp_path)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"trainable_token_indices": [3, 9, 4]}),
        ("gpt2", {"trainable_token_indices": [3, 9, 4]}),
        ("gpt2", {"bias": "lora_only"}),
        ("bert", {"bias": "all"}),
        ("opt", {"bias": "all", "target_modules": ["q_proj", "fc1"]}),
        ("bert-seq-cls", {}),
    ],
    ids=str,
)
def test_options(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    family = {**FAMILIES, **HEADED}[name]
    merged(family.base(), family.config(**fields), family.batch(0), tmp_path)


@EMBEDDINGS_SAVED
@pytest.mark.parametrize(
    ("name", "targets"),
    [("llama", ["embed_tokens", "lm_head"]), ("gpt2", ["wpe", "c_attn"]), ("bert", ["position_embeddings"])],
    ids=str,
)
def test_embeddings(name: str, targets: list[str], tmp_path: Path) -> None:
    family = FAMILIES[name]
    merged(family.base(), family.config(target_modules=targets), family.batch(0), tmp_path)


@EMBEDDINGS_SAVED
def test_a_scaled_embedding(tmp_path: Path) -> None:
    """Its head is untied first: merging into tied weights is where peft goes wrong (test_deviations)."""
    family = SCALED["gemma3"]
    base = family.base()
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
    base.config.tie_word_embeddings = False
    merged(base, family.config(target_modules=["embed_tokens", "q_proj"]), family.batch(0), tmp_path)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("shape", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}], ids=str)
def test_convolutions(dims: int, shape: dict[str, Any], tmp_path: Path) -> None:
    model, x = convs(dims, **shape)
    # peft cannot merge into a Conv3d of one point (test_deviations)
    targets = ["conv"] if dims == 3 else ["conv", "point"]
    config = {"target_modules": targets, "bias": "lora_only", "init_lora_weights": False}
    merged(model, config, x, tmp_path)
