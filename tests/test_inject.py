"""Adapters in a model itself, without a view; and what is noted about the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from inlay.core.adapted import is_adapted
from inlay.core.index import index_of
from inlay.errors import ConfigError, MismatchError, TargetError
from inlay.io.save import get_peft_model_state_dict
from tests.tiny import Mlp, llama, mlp, outline, scramble

X = torch.ones(2, 8)
CONFIG = {"target_modules": ["up"], "r": 2}


def test_the_model_itself_changes_and_is_returned() -> None:
    model = mlp()
    y = model(X)
    assert inject_adapter_in_model(LoraConfig(**CONFIG), model) is model
    assert type(model) is Mlp and is_adapted(model.up) and not is_adapted(model.down)
    assert torch.equal(model(X), y)
    scramble(model)
    assert not torch.equal(model(X), y)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "up.adapters.default.A",
        "up.adapters.default.B",
    }
    index = index_of(model)
    index.activate([])
    assert torch.equal(model(X), y)


def test_a_second_one() -> None:
    model = inject_adapter_in_model(LoraConfig(**CONFIG), mlp(), "a")
    inject_adapter_in_model(LoraConfig(target_modules=["down"], inference_mode=True), model, "b")
    assert index_of(model).active.names == ("b",) and not any(p.requires_grad for p in model.parameters())
    index_of(model).train(["a"])
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"a"}
    with pytest.raises(ConfigError, match="not in use"):
        inject_adapter_in_model(LoraConfig(**CONFIG), model, "b")
    assert list(index_of(model).configs) == ["a", "b"]


def test_with_weights() -> None:
    source = scramble(inject_adapter_in_model(LoraConfig(**CONFIG), mlp()))
    state = get_peft_model_state_dict(source)
    assert set(state) == {"base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"}
    model = inject_adapter_in_model(LoraConfig(**CONFIG), mlp(), state_dict=state)
    assert torch.equal(model(X), source(X))
    assert all(p.requires_grad and not p.is_meta for p in model.up.adapters.parameters())
    other = inject_adapter_in_model(LoraConfig(**CONFIG), mlp())
    report = set_peft_model_state_dict(other, state)
    assert torch.equal(other(X), source(X)) and not report.missing_keys


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "target", "name"])
@pytest.mark.parametrize("second", [False, True])
def test_nothing_changes_when_it_does_not_fit(fault: str, second: bool) -> None:
    state = get_peft_model_state_dict(inject_adapter_in_model(LoraConfig(**CONFIG), mlp()))
    key = next(iter(state))
    if fault == "missing":
        del state[key]
    elif fault == "unexpected":
        state["base_model.model.down.lora_A.weight"] = torch.zeros(2, 2)
    elif fault == "shape":
        state[key] = torch.zeros(3, 3)
    model = inject_adapter_in_model(LoraConfig(**CONFIG), mlp(), "first") if second else mlp()
    before, y = outline(model), model(X)
    config = LoraConfig(**{**CONFIG, "target_modules": ["x"] if fault == "target" else ["up"]})
    with pytest.raises((MismatchError, TargetError, ConfigError)):
        inject_adapter_in_model(config, model, "a/b" if fault == "name" else "new", state_dict=state)
    assert outline(model) == before and torch.equal(model(X), y)


def test_what_is_noted_about_the_base() -> None:
    kept = get_peft_model(mlp(), LoraConfig(**CONFIG)).peft_config["default"]
    assert kept.auto_mapping == {"base_model_class": "Mlp", "parent_library": "tests.tiny"}
    assert kept.base_model_name_or_path is None
    base = llama()
    base.config._name_or_path = "some/llama"
    kept = get_peft_model(base, LoraConfig()).peft_config["default"]
    assert kept.base_model_name_or_path == "some/llama"
    assert kept.auto_mapping == {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }
    kept = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM"), revision="v2").peft_config["default"]
    assert kept.auto_mapping is None and kept.revision == "v2"
    plain = nn.Sequential(nn.Linear(2, 2))
    plain.name_or_path = "mine"
    assert (
        get_peft_model(plain, LoraConfig(target_modules=["0"])).peft_config["default"].base_model_name_or_path == "mine"
    )


def test_a_model_with_a_dict_for_config() -> None:
    """diffusers' models have one."""
    model: Any = mlp()
    model.config = {"_name_or_path": "some/unet"}
    assert get_peft_model(model, LoraConfig(**CONFIG)).peft_config["default"].base_model_name_or_path == "some/unet"
