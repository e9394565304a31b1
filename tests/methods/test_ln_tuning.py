"""LN tuning: trained copies of norms, whole modules, and the base left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from inlay import LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from inlay.errors import NumericsError, StateError, TargetError
from tests.tiny import Mlp, close, ids, llama, mlp, net, same, scramble, snapshot


def test_the_copies_are_used_and_only_they_are_trained() -> None:
    base = net(dtype=torch.float64)
    before, y = snapshot(base), base(ids())
    view = get_peft_model(base, LNTuningConfig(target_modules=["norm"]))
    assert torch.equal(view(ids()), y)
    assert {n for n, p in view.named_parameters() if p.requires_grad} == {
        f"norm.adapters.default.module.{n}" for n in ("weight", "bias")
    }
    with torch.no_grad():
        own = view.norm.adapters["default"].module
        own.weight.mul_(3)
        own.bias.add_(1)
    h: Any = {}
    base.norm.register_forward_hook(lambda m, args, out: h.update(x=args[0]))
    base(ids())
    expected = F.layer_norm(h["x"], (8,), 3 * before["norm.weight"], before["norm.bias"] + 1)
    close(view(ids()), base.head(torch.tanh(base.fc(expected))))
    assert same(snapshot(base), before) and torch.equal(base(ids()), y)


def test_counts_and_keys(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    base = llama()
    view = scramble(get_peft_model(base, LNTuningConfig()))
    trained, everything = view.get_nb_trainable_parameters()
    assert trained == 5 * 16 and everything == sum(p.numel() for p in base.parameters())
    view.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        f"base_model.model.model.{p}.ln_tuning_layers.weight"
        for p in ("norm", *(f"layers.{i}.{n}_layernorm" for i in (0, 1) for n in ("input", "post_attention")))
    }
    again = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(again(ids()).logits, view(ids()).logits)


def test_any_module_may_be_named_with_its_children_and_buffers(tmp_path: Any) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4), Mlp(4)))

    model, x = base(), torch.randn(8, 4)
    view = get_peft_model(model, LNTuningConfig(target_modules=["1"]))
    view.train()(x)  # the view's own running statistics
    scramble(view).eval()
    assert not view[1].adapters["default"].module[0].running_mean.equal(model[1][0].running_mean)
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path)
    assert torch.equal(again(x), view(x)) and not torch.equal(view(x), model(x))


def test_merged_it_is_in_the_hosts_place() -> None:
    base = llama(dtype=torch.float64)
    view = scramble(get_peft_model(base, LNTuningConfig()))
    merged = view.merge_and_unload()
    close(merged(ids()).logits, view(ids()).logits)
    assert type(merged.model.norm) is type(base.model.norm)
    assert merged.model.norm.weight is not base.model.norm.weight


def test_a_copy_that_is_not_finite_is_not_merged() -> None:
    for config in (LNTuningConfig(), LoraConfig(modules_to_save=["norm"])):
        view = get_peft_model(llama(), config)
        with torch.no_grad():
            view.model.norm.adapters["default"].module.weight[2] = float("inf")
        for merge in (view.merge_adapter, view.merge_and_unload):
            with pytest.raises(NumericsError, match=r"infinity into model.norm.weight .*The base is unchanged"):
                merge()


def test_two_of_one_host_and_other_methods_beside_it() -> None:
    view = get_peft_model(llama(), LNTuningConfig(), "a")
    view.add_adapter("b", LNTuningConfig())
    view.add_adapter("c", LoraConfig())
    with pytest.raises(StateError, match="cannot be active together"):
        view.set_adapter(["a", "b"])
    view.set_adapter(["a", "c"])
    scramble(view)
    both = view(ids()).logits
    view.set_adapter("a")
    assert not torch.equal(view(ids()).logits, both)


def test_a_model_without_a_default() -> None:
    with pytest.raises(TargetError, match="There are no default target_modules for this model"):
        get_peft_model(mlp(), LNTuningConfig())
