"""(IA)^3 beside peft's: numbers, files both ways, defaults, and where the two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inlay

from .both import (
    agree,
    compare,
    differ,
    gradients,
    into_inlay,
    layout,
    losses_of,
    of_inlay,
    of_peft,
    output,
    peft,
    same_tensors,
    settings,
    swap,
)
from .models import FAMILIES, HEADED, convs

IA3 = {"method": "IA3Config"}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {"fan_in_fan_out": True}),
    ("t5", {}),
    ("llama", {"target_modules": ["q_proj", "o_proj"], "feedforward_modules": []}),
    ("opt", {"target_modules": r".*\.(k_proj|fc1|fc2)", "feedforward_modules": r".*\.fc\d"}),
    ("bert-seq-cls", {"init_ia3_weights": False}),
]


def config_of(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {**IA3, "task_type": {**FAMILIES, **HEADED}[name].task_type, **fields}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "fields"), CASES, ids=str)
def test_numbers(name: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    compare({**FAMILIES, **HEADED}[name], config_of(name, fields), tmp_path, dtype)


@pytest.mark.parametrize(("name", "fields"), CASES, ids=str)
def test_files(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    family = {**FAMILIES, **HEADED}[name]
    # where a default's names are no longer short for the targets alone, ours are paths
    but = ("target_modules", "feedforward_modules") if "target_modules" not in fields else ()
    swap(family.base(), config_of(name, fields), family.batch(0), tmp_path, but=but)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_defaults_are_pefts(name: str, tmp_path: Path) -> None:
    if name == "vit":
        pytest.skip("peft has none")
    base, config = FAMILIES[name].base(), config_of(name, {"fan_in_fan_out": FAMILIES[name].transposed})
    of_peft(base, config, tmp_path / "peft")
    of_inlay(base, config, tmp_path / "inlay")
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_convolutions(dims: int, groups: int, tmp_path: Path) -> None:
    model, x = convs(dims, kernel_size=3, stride=2, padding=1, groups=groups)
    config = {**IA3, "target_modules": ["conv", "point"], "feedforward_modules": ["conv"]}
    theirs = of_peft(model, config, tmp_path)
    mine = into_inlay(model, tmp_path, is_trainable=True)
    assert layout(tmp_path)["base_model.model.conv.ia3_l"][1] == (1, 4, *[1] * dims)
    agree(output(mine, x), output(theirs, x))
    differ(output(mine, x), output(model, x))
    for adapted in (mine, theirs):
        adapted(x).square().mean().backward()
    same_tensors(gradients(inlay, mine), gradients(peft, theirs))
    found = [losses_of(adapted, x) for adapted in (mine, theirs)]
    assert found[0][-1] < found[0][0]
    agree(*found, "losses")


def test_merged_weights_are_pefts(tmp_path: Path) -> None:
    family = FAMILIES["opt"]
    base = family.base()
    theirs = of_peft(base, config_of("opt", {}), tmp_path)
    mine = into_inlay(base, tmp_path)
    expected = theirs.merge_and_unload().state_dict()
    found = mine.merge_and_unload().state_dict()
    changed = [k for k, v in base.state_dict().items() if not torch.equal(v, expected[k])]
    assert sorted({k.split(".")[-2] + "." + k.split(".")[-1] for k in changed}) == [
        *("fc2.weight", "k_proj.bias", "k_proj.weight", "q_proj.bias", "q_proj.weight")
    ]
    same_tensors(found, expected)


@pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate:UserWarning")
def test_an_l_of_zero_survives_merging_which_it_does_not_in_peft(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    base, batch = family.base(), family.batch(0)

    def prepare(model: Any) -> None:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "ia3_l" in name or ".adapters." in name:
                    p.zero_()

    theirs = of_peft(base, config_of("llama", {}), tmp_path, prepare)
    mine = into_inlay(base, tmp_path)
    y = output(mine, batch)
    agree(y, output(theirs, batch))
    for model in (mine, theirs):
        model.merge_adapter()
        model.unmerge_adapter()
    assert torch.equal(output(mine, batch), y)
    with mine.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(output(mine, batch), output(base, batch))
        differ(output(theirs, batch), output(base, batch))


def test_what_is_written_peft_can_read_though_not_all_that_peft_writes(tmp_path: Path) -> None:
    """With targets of one's own peft writes the default's feedforward_modules, which it then refuses to read."""
    family = FAMILIES["llama"]
    base, config = family.base(), config_of("llama", {"target_modules": ["k_proj"]})
    of_peft(base, config, tmp_path / "peft")
    with pytest.raises(ValueError, match="should be a subset"):
        peft.PeftConfig.from_pretrained(str(tmp_path / "peft"))
    of_inlay(base, config, tmp_path / "inlay")
    assert settings(tmp_path / "inlay")["feedforward_modules"] == []
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "inlay")).feedforward_modules == set()
