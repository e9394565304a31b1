"""Two processes on the CPU (gloo) through accelerate end where one process does: DDP, FSDP2, DeepSpeed's ZeRO."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import inlay
from inlay import get_peft_model_state_dict
from inlay.io.folder import WEIGHTS_NAME

from . import tiny
from .processes import METHODS, optimizer_of, train, view_of
from .test_distributed import launch, torchrun


@functools.cache
def alone(method: str, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and the adapter of one process."""
    view = view_of(method, **changes)
    losses = train(view, optimizer_of(view), tasks=method == "poly")
    return losses, get_peft_model_state_dict(view)


def assert_same(folder: Path, expected: dict[str, torch.Tensor], atol: float = 1e-6) -> None:
    saved = load_file(folder / WEIGHTS_NAME)
    assert saved.keys() == expected.keys()
    for key, value in expected.items():
        assert saved[key].shape == value.shape and torch.allclose(saved[key], value, atol=atol), key


def moved(method: str = "lora") -> bool:
    """The training did something: equal to no training would be equal too."""
    before = get_peft_model_state_dict(view_of(method))
    return any(not torch.allclose(v, before[k], atol=1e-3) for k, v in alone(method)[1].items())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_through_accelerate(tmp_path: Path, kind: str) -> None:
    module = f"distributed_{kind}_accelerate"
    launch(module, tmp_path)
    launch(module, tmp_path, "resume")  # in other processes
    found = torch.load(tmp_path / "train.pt", weights_only=True)
    assert found["methods"].keys() == METHODS.keys() - ({"adalora"} if kind == "fsdp2" else set())
    for method, losses in found["methods"].items():
        if method == "poly":  # which draws its routing
            continue
        assert moved(method), method
        assert losses == pytest.approx(alone(method)[0], abs=1e-6), method
        assert_same(tmp_path / method, alone(method)[1])
    # the checkpoint half way changes nothing, and neither does going on from it in other processes
    whole = load_file(tmp_path / "whole" / WEIGHTS_NAME)
    assert_same(tmp_path / "whole", alone("lora")[1])
    resumed = load_file(tmp_path / "resumed" / WEIGHTS_NAME)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    if kind == "ddp":
        assert_same(tmp_path / "both", alone("lora")[1])
        return
    for what, message in {
        "merge": "save the adapter, and merge it in one process",
        "unload": "save the adapter, and merge it in one process",
        "joined": "sharded (FSDP) before this adapter was added",
        "adalora": "train it under DDP",
    }.items():
        assert message in found[what]
    assert found["bf16"] == pytest.approx(alone("dora", dtype=torch.bfloat16)[0], abs=2e-2)


def test_benchmark(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "processes.py"
    printed = torchrun(str(script), "--short", "--out", str(tmp_path / "results.json"))
    assert "the processes agree with one process" in printed
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert list(results) == ["one", "ddp", "fsdp2"]
    assert results["one"]["losses"][-1] < results["one"]["losses"][0]


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero(tmp_path: Path, stage: int) -> None:
    launch("distributed_zero", tmp_path, str(stage))
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    methods = found["methods"]
    assert "whose optimizer keeps a copy" in methods.pop("load")
    if stage == 3:
        assert "save the adapter, and merge it in one process" in methods.pop("merge")
    for method, losses in methods.items():
        assert losses == pytest.approx(alone(method)[0], abs=1e-6), method
        assert_same(tmp_path / method, alone(method)[1])
    assert_same(tmp_path / "given", alone("lora")[1])
    if stage == 3:  # a view made over a base that was partitioned before, by a method that needs its weights
        torch.manual_seed(7)
        config = inlay.LoraConfig(r=2, use_dora=True, modules_to_save=["norm"], target_modules=tiny.TARGETS["llama"])
        expected = get_peft_model_state_dict(inlay.get_peft_model(tiny.base("llama"), config))
        assert found["born"].keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(found["born"][key], value, atol=1e-6), key
