"""Adapters in a model itself, without a view; and what is noted about the base."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from inlay import (
    LoraConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
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
        "up.adapters.default.lora_A",
        "up.adapters.default.lora_B",
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
    assert set(state) == {"up.lora_A.weight", "up.lora_B.weight"}
    model = inject_adapter_in_model(LoraConfig(**CONFIG), mlp(), state_dict=state)
    assert torch.equal(model(X), source(X))
    as_in_files = {f"base_model.model.{key}": tensor for key, tensor in state.items()}
    assert torch.equal(inject_adapter_in_model(LoraConfig(**CONFIG), mlp(), state_dict=as_in_files)(X), source(X))
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
        state["down.lora_A.weight"] = torch.zeros(2, 2)
    elif fault == "shape":
        state[key] = torch.zeros(3, 3)
    model = inject_adapter_in_model(LoraConfig(**CONFIG), mlp(), "first") if second else mlp()
    before, y = outline(model), model(X)
    config = LoraConfig(**{**CONFIG, "target_modules": ["x"] if fault == "target" else ["up"]})
    with pytest.raises((MismatchError, TargetError, ConfigError)):
        inject_adapter_in_model(config, model, "a/b" if fault == "name" else "new", state_dict=state)
    assert outline(model) == before and torch.equal(model(X), y)


def test_methods_that_need_a_view() -> None:
    model = mlp()
    before = outline(model)
    with pytest.raises(ConfigError, match="PROMPT_TUNING changes what the whole model is given: use get_peft_model"):
        inject_adapter_in_model(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), model)
    with pytest.raises(ConfigError, match=r"VERA saves tensors that all .* use get_peft_model, or save_projection=Fa"):
        inject_adapter_in_model(VeraConfig(target_modules=["up"]), model)
    assert outline(model) == before and not hasattr(model, "peft_config")
    config = VeraConfig(target_modules=["up"], save_projection=False)
    assert "default" in inject_adapter_in_model(config, model).peft_config  # type: ignore[operator]


def test_heads_of_the_task_may_be_absent_if_one_is_there() -> None:
    """As peft's files name them."""
    model = nn.Sequential(OrderedDict(up=nn.Linear(8, 8), score=nn.Linear(8, 3)))
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["up"], modules_to_save=["classifier", "score"])
    assert is_adapted(inject_adapter_in_model(config, model).score)
    with pytest.raises(TargetError, match="'classifier' matches no module"):
        inject_adapter_in_model(config.replaced(modules_to_save=["classifier"]), model, "other")
    with pytest.raises(TargetError, match="'classifier' matches no module"):
        inject_adapter_in_model(config.replaced(task_type=None), model, "other")


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


def taken_out(model: nn.Module) -> None:
    """Puts the plain layers back, as diffusers' `unload_lora` does."""
    for name in ("up", "down"):
        layer: Any = getattr(model, name)
        if is_adapted(layer):
            setattr(model, name, layer.get_base_layer())
    del model.peft_config


def test_adapters_that_were_taken_out_are_forgotten() -> None:
    model = mlp()
    y = model(X)
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "a")
    scramble(model)
    taken_out(model)
    assert torch.equal(model(X), y) and type(model.up) is nn.Linear
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in mlp().named_parameters()]
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "a")
    assert list(index_of(model).configs) == ["a"] and torch.equal(model(X), y)


def test_what_was_merged_when_they_were_taken_out_stays() -> None:
    model: Any = mlp()
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "a")
    scramble(model)
    model.up.merge()
    y = model(X)
    taken_out(model)
    assert torch.equal(model(X), y)
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "b")
    assert "_unmerged_parameters" not in model.up.__dict__
    model.up.merge()
    model.up.unmerge()
    assert torch.equal(model(X), y)


def test_a_hook_does_not_keep_them() -> None:
    """A `forward` set on the layer, as accelerate sets it, leads to the plain layer then."""
    hooks = pytest.importorskip("accelerate.hooks")
    model: Any = mlp()
    y = model(X)
    inject_adapter_in_model(LoraConfig(**CONFIG), model)
    scramble(model)
    hooks.add_hook_to_module(model.up, hooks.ModelHook())
    assert not torch.equal(model(X), y)
    taken_out(model)
    assert torch.equal(model(X), y)


def test_a_layer_takes_names_that_only_another_model_has() -> None:
    """A pipeline tells all its models the same names."""
    model: Any = mlp()
    inject_adapter_in_model(LoraConfig(**CONFIG), model, "a")
    scramble(model)
    y = model(X)
    model.up.set_adapter(["other", "a", "other"])
    assert model.up.active_adapters == ["other", "a"] and torch.equal(model(X), y)
    assert index_of(model).trainable == {"a"}
    model.up.set_adapter("other")
    assert model.up.active_adapters == ["other"] and torch.equal(model(X), mlp()(X))
    assert index_of(model).trainable == set()
    model.up.set_adapter("a")
    assert torch.equal(model(X), y)
