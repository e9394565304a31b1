"""Parameters that are cut up: never saved in part, nor loaded into. Real ones: `tests/hf/test_processes.py`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, get_peft_model, get_peft_model_state_dict
from inlay.core.gather import is_sharded, whole
from inlay.errors import StateError
from inlay.io.load import set_peft_model_state_dict


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x))
        return y


def partition(parameters: Any) -> dict[int, torch.Tensor]:
    """What ZeRO-3 does to parameters between two calls; id -> what each had."""
    kept = {}
    for i, p in enumerate(parameters):
        kept[id(p)] = p.data
        p.ds_id, p.ds_numel, p.ds_shape = i, p.numel(), p.shape
        p.data = torch.empty(0)
    return kept


@pytest.fixture
def view() -> Any:
    return get_peft_model(Net(), LoraConfig(r=2, target_modules=["first"], modules_to_save=["second"]))


def deepspeed(monkeypatch: pytest.MonkeyPatch, kept: dict[int, torch.Tensor], gathers: bool = True) -> None:
    @contextmanager
    def gathered_parameters(parameters: list[Any]) -> Any:
        for p in parameters if gathers else ():
            p.data = kept[id(p)]
        yield
        for p in parameters:
            p.data = torch.empty(0)

    fake = ModuleType("deepspeed")
    fake.zero = SimpleNamespace(GatheredParameters=gathered_parameters)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", fake)


def test_what_is_not_cut_up_comes_back_as_it_is() -> None:
    p = nn.Parameter(torch.ones(2))
    assert whole(p) is p and not is_sharded(p)


def test_zero_3_is_gathered(view: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {k: t.clone() for k, t in get_peft_model_state_dict(view).items()}
    kept = partition(p for p in view.parameters())
    deepspeed(monkeypatch, kept)
    found = get_peft_model_state_dict(view)
    assert found.keys() == before.keys()
    assert all(torch.equal(found[k], v) for k, v in before.items())  # after the block, so they are copies
    assert all(p.numel() == 0 for p in view.parameters())


@pytest.mark.parametrize(
    ("present", "message"), [(False, "not imported in this process"), (True, "did not gather 4 of 4")]
)
def test_zero_3_that_cannot_be_gathered(
    view: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: bool, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # type: ignore[arg-type]
    kept = partition(p for p in view.parameters() if p.requires_grad)
    if present:
        deepspeed(monkeypatch, kept, gathers=False)
    with pytest.raises(StateError, match=message):
        view.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_zero_3_is_not_loaded_into(view: Any) -> None:
    state = {k: t.clone() for k, t in get_peft_model_state_dict(view).items()}
    partition(p for p in view.parameters() if p.requires_grad)
    with pytest.raises(StateError, match="belongs to a DeepSpeed engine"):
        set_peft_model_state_dict(view, state)


def test_zero_3_is_not_merged(view: Any) -> None:
    partition(view.parameters())
    with pytest.raises(StateError, match="merge it in one process"):
        view.merge_adapter()
    assert view._inlay.merged == []


@pytest.mark.parametrize("shape", [(8,), (0,)])
def test_fsdp1_needs_the_state_dict(view: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = {k: t.clone() for k, t in view.state_dict().items()}
    before = {k: t.clone() for k, t in get_peft_model_state_dict(view).items()}
    for p in view.parameters():
        p._fsdp_flattened, p.data = True, torch.empty(shape)
    with pytest.raises(StateError, match="FSDP1, which gathers only a whole state dict"):
        view.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    found = get_peft_model_state_dict(view, state_dict=state)
    assert all(torch.equal(found[k], v) for k, v in before.items())


def test_an_adapter_added_after_sharding_is_not_trained(view: Any) -> None:
    for p in view.first._parameters.values():
        p._fsdp_flattened = True
    view.add_adapter("late", LoraConfig(r=2, target_modules=["first"]))
    with pytest.raises(StateError, match="before this adapter was added"):
        view.set_adapter("late")
    assert view.active_adapters == ["default"]
    view.set_adapter("late", inference_mode=True)
    assert view.active_adapters == ["late"]
