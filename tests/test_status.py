"""Counts, states, and whether targets are reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import (
    LoraConfig,
    TrainableTokensConfig,
    get_layer_status,
    get_model_status,
    get_peft_model,
    inject_adapter_in_model,
)
from inlay.errors import StateError
from inlay.status import count_parameters, trainable_line
from tests.tiny import ids, llama, mlp, scramble

X = torch.ones(2, 8)


def two() -> Any:
    view = get_peft_model(mlp(), LoraConfig(target_modules=["up", "down"], r=2), "a")
    view.add_adapter("b", LoraConfig(target_modules=["up"], modules_to_save=["down"], r=3))
    return view


def test_layers() -> None:
    view = two()
    up, down = get_layer_status(view)
    assert (up.name, up.module_type, up.enabled) == ("up", "LoraLinear", True)
    assert up.active_adapters == ["a"] and up.available_adapters == ["a", "b"] and up.merged_adapters == []
    assert up.requires_grad == {"a": True, "b": False} and up.devices == {"a": ["cpu"], "b": ["cpu"]}
    assert down.name == "down" and down.requires_grad == {"a": True, "b": False}
    view.up.adapters["a"].A.requires_grad_(False)
    assert get_layer_status(view)[0].requires_grad["a"] == "irregular"
    view.merge_adapter()
    assert [s.merged_adapters for s in view.get_layer_status()] == [["a"], ["a"]]


def test_the_model() -> None:
    view = two()
    status = get_model_status(view)
    assert (status.base_model_type, status.adapter_model_type) == ("Mlp", "PeftModel")
    assert status.peft_types == {"a": "LORA", "b": "LORA"} and status.num_adapter_layers == 2
    assert status.active_adapters == ["a"] and status.merged_adapters == [] and status.enabled is True
    assert status.requires_grad == {"a": True, "b": False} and status.available_adapters == ["a", "b"]
    assert (status.trainable_params, status.total_params) == view.get_nb_trainable_parameters()
    view.up.adapters["a"].requires_grad_(False)
    assert view.get_model_status().requires_grad["a"] == "irregular"
    view.disable_adapters()
    assert view.get_model_status().enabled is False
    view.enable_adapters()
    view.merge_adapter()
    assert view.get_model_status().merged_adapters == ["a"]


def test_an_injected_model_and_one_without_adapters() -> None:
    model = inject_adapter_in_model(LoraConfig(target_modules=["up"]), mlp())
    assert get_model_status(model).adapter_model_type == "None" and get_layer_status(model)[0].name == "up"
    with pytest.raises(StateError, match="has no adapters"):
        get_layer_status(mlp())
    with pytest.raises(StateError, match="has no adapters"):
        get_model_status(mlp())


def test_what_a_view_trains_in_full_counts_once() -> None:
    base = llama(tie_word_embeddings=True)
    plain = sum(p.numel() for p in base.parameters())
    lora = 2 * 2 * (16 + 16)
    view = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["norm"]))
    assert count_parameters(view) == (lora + 5 * 16, plain + lora), "every module whose name ends so"
    view = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], r=2, bias="all"))
    assert count_parameters(view)[0] == lora, "Llama has no biases"
    view = get_peft_model(mlp(), LoraConfig(target_modules=["up"], r=2, bias="all"))
    assert count_parameters(view) == (2 * 24 + 24, 8 * 16 + 16 + 16 * 8 + 8 + 2 * 24)
    assert count_parameters(base) == (0, plain), "tied weights count once"


def test_the_line_for_a_model_without_parameters() -> None:
    assert trainable_line(nn.ReLU()) == "trainable params: 0 || all params: 0 || trainable%: 0.0000"


# ---------------------------------------------------------------------- verify


class Skips(nn.Module):
    """Calls its second layer only for wide inputs, and reads the third's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if x.shape[0] > 2:
            x = self.two(x)
        return nn.functional.linear(x, self.three.weight, self.three.bias)


def test_targets_that_a_pass_does_not_reach_are_named() -> None:
    view = get_peft_model(Skips().eval(), LoraConfig(target_modules=["one", "two"]))
    assert view.verify(torch.ones(3, 8)) == ["one", "two"]
    with pytest.raises(
        StateError, match=r"1 of 2 targets were not reached by this forward pass.*no effect on it: two\."
    ):
        view.verify(torch.ones(2, 8))
    view = get_peft_model(Skips().eval(), LoraConfig(target_modules=["one", "three"]))
    with pytest.raises(StateError, match=r"no effect on it: three"):
        view.verify(x=torch.ones(3, 8))
    assert not view.one.adapters["default"]._forward_pre_hooks, "it leaves no hooks"


def test_verify_covers_active_adapters_and_modules_in_full() -> None:
    view = two()
    assert view.verify(X) == ["up", "down"]
    view.set_adapter("b")
    assert view.verify(X) == ["up", "down"]
    view.set_adapter([])
    assert view.verify(X) == []


def test_verify_takes_a_tied_twin_for_reached() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.used, self.idle = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Embedding(9, 4)
            self.used.weight = self.shared.weight

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    x = torch.tensor([1, 2])
    view = get_peft_model(Tied(), TrainableTokensConfig(target_modules=["shared"], token_indices=[1]))
    assert sorted(view.verify(x)) == ["shared", "used"]
    view.add_adapter("b", TrainableTokensConfig(target_modules=["shared", "idle"], token_indices=[1]))
    view.set_adapter("b")
    with pytest.raises(StateError, match=r"1 of 3 targets were not reached .*: idle\."):
        view.verify(x)


def test_verify_needs_adapters_that_run() -> None:
    view = scramble(two())
    view.merge_adapter()
    with pytest.raises(StateError, match=r"'a' is merged.*unmerge_adapter\(\)"):
        view.verify(X)
    view.unmerge_adapter()
    with view.disable_adapter(), pytest.raises(StateError, match="disabled"):
        view.verify(X)


def test_verify_on_a_transformer_and_after_an_error() -> None:
    view = get_peft_model(llama(), LoraConfig(target_modules="all-linear"))
    assert len(view.verify(input_ids=ids())) == 14
    with pytest.raises(IndexError):
        view.verify(input_ids=torch.tensor([[99]]))
    assert not any(m._forward_pre_hooks for m in view.modules())
