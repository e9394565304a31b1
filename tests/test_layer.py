"""Adapted hosts, and views, under the names that peft's have."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from inlay import IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from inlay.errors import StateError
from inlay.layer import TunerLayer
from inlay.peft import layers, models
from tests.tiny import Mlp, Net, llama, made

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def view(**fields: Any) -> Any:
    """`Mlp` with a LoRA that is not the identity in both layers."""
    config = LoraConfig(**{"target_modules": ["up", "down"], "r": 4, "init_lora_weights": False, **fields})
    torch.manual_seed(0)
    return get_peft_model(made(Mlp), config).eval()


def test_factors_are_modules_over_the_live_parameters() -> None:
    model = view()
    up = model.up
    a, b, adapter = up.lora_A["default"], up.lora_B["default"], up.adapters["default"]
    assert isinstance(a, nn.Linear) and a.weight is adapter.A and b.weight is adapter.B
    near(up.base_layer(X) + b(a(up.lora_dropout["default"](X))) * up.scaling["default"], up(X))
    assert (a.in_features, a.out_features, up.r, up.lora_alpha) == (8, 4, {"default": 4}, {"default": 8})
    assert (up.use_dora, up.lora_bias, up.fan_in_fan_out) == ({"default": False}, {"default": False}, False)
    assert (up.in_features, up.out_features) == (8, 16) and up.get_base_layer().weight is up.weight
    assert "default" in up.lora_A and list(up.lora_A) == ["default"] and "other" not in up.lora_A


def test_factors_of_convolutions_and_embeddings() -> None:
    net = get_peft_model(made(Net), LoraConfig(target_modules=["conv1", "conv2", "embed"], r=4, use_dora=False))
    assert isinstance(net.conv1.lora_A["default"], nn.Conv1d) and net.conv1.lora_A["default"].padding == (1,)
    x = torch.randn(2, 1, 5, 5)
    a, b = net.conv2.lora_A["default"], net.conv2.lora_B["default"]
    near(net.conv2.base_layer(x) + 2.0 * b(a(x)), net.conv2(x))
    assert net.embed.lora_embedding_A["default"] is net.embed.adapters["default"].A and dict(net.embed.lora_A) == {}


def test_doras_lengths() -> None:
    model = view(use_dora=True)
    up = model.up
    assert up.lora_magnitude_vector["default"].weight is up.adapters["default"].m and up.use_dora == {"default": True}


def test_scales_can_be_written() -> None:
    model = view()
    up = model.up
    base, change = up.base_layer(X), up(X) - up.base_layer(X)
    up.scaling["default"] = 6.0  # it was 2
    near(up(X), base + 3 * change)
    up.scale_layer(0.5)
    assert up.scaling == {"default": 3.0}
    up.unscale_layer(0.5)
    assert up.scaling == {"default": 6.0}
    up.unscale_layer()
    assert up.scaling == {"default": 2.0}
    up.set_scale("default", 0.25)
    assert up.scaling == {"default": 0.5}
    up.set_scale("unknown", 3.0)  # as in peft, no adapter of this layer's
    with pytest.raises(StateError, match="write into the tensor, or load another adapter"):
        up.lora_A["default"] = nn.Linear(8, 4)
    with pytest.raises(StateError, match="delete_adapter"):
        del up.lora_A["default"]


def test_the_change_of_the_weight() -> None:
    model = view()
    up = model.up
    a, b = up.lora_A["default"].weight, up.lora_B["default"].weight
    near(up.get_delta_weight("default"), 2.0 * b @ a)
    with pytest.raises(StateError, match="There is no adapter 'x' in this layer; it has: default"):
        up.get_delta_weight("x")


def test_one_layer_can_be_merged() -> None:
    model = view()
    before, weight = model(X), model.up.weight
    model.up.merge(safe_merge=True)
    assert model.up.merged and model.up.merged_adapters == ["default"] and not model.down.merged
    near(model(X), before)
    with pytest.raises(StateError, match="merged"):
        model.delete_adapter("default")
    with pytest.raises(StateError, match="unmerge it before changing its scale"):
        model.up.scaling["default"] = 1.0
    model.up.merge()  # as in peft: what is merged already is passed over
    model.down.merge(adapter_names=["default"])
    model.up.unmerge()
    assert model.up.weight is weight and model.down.merged
    model.down.unmerge()
    assert torch.equal(model(X), before) and model._inlay.merged == []
    assert "adapter_names" in inspect.signature(model.up.merge).parameters


def test_switching_is_the_models() -> None:
    model = view()
    model.add_adapter("b", LoraConfig(target_modules=["up"]))
    assert model.up.active_adapter == "default" and model.up.active_adapters == ["default"]
    model.up.set_adapter("b")
    assert model.active_adapters == ["b"] and model.down.active_adapter == "b" and model._inlay.trainable == {"b"}
    model.up.set_adapter(["b", "default"], inference_mode=True)
    assert model.up.active_adapter == ["b", "default"] and model._inlay.trainable == set()
    model.up.set_requires_grad("b")
    assert model.up.lora_A["b"].weight.requires_grad
    model.up.enable_adapters(False)
    assert model.down.disable_adapters and torch.equal(model(X), model._base(X))
    model.up.enable_adapters(True)
    assert not model.up.disable_adapters
    model.up.delete_adapter("b")
    model.down.delete_adapter("b")
    assert list(model.peft_config) == ["default"]
    with pytest.raises(StateError, match="Layers get adapters from the model"):
        model.up.update_layer("b", 4)


def test_what_a_method_has_not_is_not_there() -> None:
    net = get_peft_model(made(Net), IA3Config(target_modules=["fc"], feedforward_modules=[], modules_to_save=["head"]))
    for name in ("lora_A", "scaling", "r", "hada_w1_a", "modules_to_save", "original_module"):
        assert not hasattr(net.fc, name), name
    assert net.fc.ia3_l["default"] is net.fc.adapters["default"].l and net.fc.adapter_layer_names == ("ia3_l",)
    net.fc.scale_layer(2.0)  # nothing to scale
    assert net.head.modules_to_save["default"] is net.head.adapters["default"].module
    assert net.head.original_module.weight is net.head.weight and not hasattr(net.head, "ia3_l")


class Odd(nn.Linear):
    """A host with names of its own."""

    r = "class"

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.scaling = "instance"
        self.merge = nn.Linear(2, 2)
        self.lora_A = nn.Parameter(torch.zeros(1))
        self.register_buffer("base_layer", torch.zeros(2))

    def unmerge(self) -> str:
        return "method"


def test_what_a_host_has_of_its_own_comes_first() -> None:
    plain = nn.Sequential(Odd())
    host = get_peft_model(plain, LoraConfig(target_modules=["0"]))[0]
    own = plain[0]
    assert isinstance(host, TunerLayer) and (host.r, host.scaling, host.unmerge()) == ("class", "instance", "method")
    assert host.merge.weight is own.merge.weight and host.lora_A is own.lora_A and host.base_layer is own.base_layer
    assert list(host.lora_B) == ["default"]


def test_instances_of_pefts_layers() -> None:
    net = get_peft_model(
        made(Net),
        LoraConfig(target_modules=["fc", "conv1", "embed"], modules_to_save=["head"], trainable_token_indices=None),
    )
    assert isinstance(net.fc, layers.BaseTunerLayer) and isinstance(net.fc, (layers.LoraLayer, layers.LoHaLayer))
    assert isinstance(net.fc, layers.Linear) and not isinstance(net.fc, (layers.Embedding, layers.LoHaLayer))
    assert isinstance(net.conv1, layers.Conv1d) and isinstance(net.embed, layers.Embedding)
    assert isinstance(net.head, layers.ModulesToSaveWrapper) and not isinstance(net.head, layers.LoraLayer)
    assert isinstance(net.head, layers.AuxiliaryTrainingWrapper) and not isinstance(net.fc, layers.ModulesToSaveWrapper)
    assert not isinstance(net.norm, layers.BaseTunerLayer) and not isinstance(None, layers.LoraLayer)
    assert "lora_A" in layers.LoraLayer.adapter_layer_names
    with pytest.raises(StateError, match=r"LoraLayer is a name for isinstance\(\) here"):
        layers.LoraLayer(nn.Linear(2, 2))
    rows = get_peft_model(made(Net), LoraConfig(target_modules=["fc"], trainable_token_indices={"embed": [1]}))
    assert isinstance(rows.embed, layers.TrainableTokensWrapper) and not hasattr(rows.embed, "lora_A")


def test_instances_of_pefts_tuners() -> None:
    model = view()
    assert isinstance(model.base_model, models.LoraModel) and isinstance(model.base_model, models.BaseTuner)
    assert not isinstance(model.base_model, models.IA3Model) and not isinstance(model, models.LoraModel)
    assert isinstance(model, models.PeftMixedModel)


def test_a_tuner_can_be_made_in_place() -> None:
    base = made(Mlp)
    tuner = models.LoraModel(base, {"a": LoraConfig(target_modules=["up"], init_lora_weights=False)}, "a")
    assert (
        isinstance(tuner, models.LoraModel)
        and isinstance(base.up, TunerLayer)
        and tuner.model.up.weight is base.up.weight
    )
    before, weight = base(X), base.up.weight
    tuner.merge_adapter()
    assert base.up.merged
    tuner.unmerge_adapter()
    assert base.up.weight is weight and torch.equal(base(X), before)
    tuner.disable_adapter_layers()
    assert not torch.equal(base(X), before)
    tuner.enable_adapter_layers()
    assert torch.equal(base(X), before) and list(tuner.peft_config) == ["a"]
    near(tuner.merge_and_unload()(X), before)


def test_copies_know_their_own_index() -> None:
    model = view()
    twin = copy.deepcopy(model)
    twin.up.set_adapter([])
    assert twin.active_adapters == [] and model.active_adapters == ["default"]
    assert twin._inlay.active.index is twin._inlay and model._inlay.active.index is model._inlay


def test_a_layer_keeps_no_view_and_says_so() -> None:
    model = view()
    up, gone = model.up, weakref.ref(model.down.adapters["default"])
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(StateError, match="was a part of is gone"):
        up.set_adapter("default")


def test_the_names_cost_a_compiled_forward_nothing() -> None:
    model = view()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    near(compiled(X), model(X))
    model.up.scaling["default"] = 4.0
    near(compiled(X), model(X))


def test_an_injected_models_layers() -> None:
    base = inject_adapter_in_model(LoHaConfig(target_modules=["up"], r=2, alpha=4), made(Mlp))
    assert isinstance(base.up, layers.LoHaLayer) and base.up.scaling == {"default": 2.0}
    base.up.scale_layer(3.0)
    base.up.unscale_layer()
    assert base.up.scaling == {"default": 2.0}


# ---------------------------------------------------------------------------------------------------------- views


def test_what_a_view_says_of_itself() -> None:
    model = view(modules_to_save=["down"], target_modules=["up"])
    assert model.has_active_enabled_adapter and model.modules_to_save == {"down"}
    assert model.base_model.targeted_module_names == ["up", "down"] and model.base_model.prefix == "adapters."
    assert model.base_model.get_model_config(model) == {"model_type": "custom"}
    assert model.supports_lora_conversion() in (True, False) and not hasattr(model, "prompt_encoder")
    model.base_model.disable_adapter_layers()
    assert not model.has_active_enabled_adapter
    model.base_model.enable_adapter_layers()
    assert model.base_model.model.up.weight is model.up.weight


def test_names_as_trl_sends_them_to_vllm() -> None:
    """trl/generation/vllm_generation.py: while merged, what lacks the prefix is the base's, with the merged values."""
    base = llama()
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, modules_to_save=["lm_head"])
    model = get_peft_model(base, config)
    with torch.no_grad():
        model.lm_head.modules_to_save["default"].weight.add_(1.0)
    names, merged = dict(base.named_parameters()), model.merge_and_unload()
    before = {name: id(p) for name, p in model.named_parameters()}
    model.merge_adapter()
    sent = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p.data
        for name, p in model.named_parameters()
        if model.prefix not in name and "original_module" not in name
    }
    assert sent.keys() == names.keys()
    expected = dict(merged.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in sent.items())
    assert not torch.equal(sent["lm_head.weight"], names["lm_head.weight"])
    model.unmerge_adapter()
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_virtual_tokens() -> None:
    model = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert model.get_prompt(2).shape == (2, 3, 16)
    assert torch.equal(
        model.get_prompt_embedding_to_save("default"), model.prompt_encoder["default"].embedding.detach()
    )
    assert isinstance(model.prompt_encoder["default"], models.PromptEmbedding)
    with pytest.raises(StateError, match="has no virtual tokens"):
        model.get_prompt_embedding_to_save("other")
