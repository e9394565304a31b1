"""What a method gets for free: the default `forward`, from its `weight()` alone, on every kind of host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import AdapterConfig, LoraConfig, get_peft_model, registry
from inlay import config as configs
from inlay.core.adapter import Adapter
from inlay.core.host import KINDS, Site, site
from inlay.errors import StateError
from inlay.registry import adapter, registered
from tests.contract.cases import canonical, every_host_of, operate
from tests.tiny import close, mlp, scramble


class One(nn.Module):
    """A model that is one layer."""

    def __init__(self, fc: nn.Module) -> None:
        super().__init__()
        self.fc = fc

    def forward(self, x: Any) -> Any:
        return self.fc(x)


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A method that needs the weight: W' = diag(g) W, registered for this test only."""
    monkeypatch.setattr(registry, "_ADAPTERS", registered())
    monkeypatch.setattr(configs, "_CLASSES", dict(configs.config_classes()))

    @dataclass
    class GainConfig(AdapterConfig, peft_type="GAIN"):
        pass

    @adapter(GainConfig, *set(KINDS.values()))
    class Gain(Adapter):
        reads_weight = True

        def __init__(self, config: AdapterConfig, site: Site) -> None:
            super().__init__(config, site)
            self.g = self.parameter(site, site.in_features if site.kind == "embedding" else site.out_features)

        def reset(self, host: nn.Module) -> None:
            nn.init.ones_(self.g)

        def weight(self, w: Tensor) -> Tensor:
            return w * self.g.to(w.dtype).view(-1, *[1] * (w.dim() - 1))

        def tensors(self) -> dict[str, Tensor]:
            return {"gain": self.g}

    yield GainConfig


@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
def test_the_default_forward_is_the_hosts_operation_with_the_new_weight(gain: Any, kind: str) -> None:
    for host, inputs in every_host_of(kind):
        base = One(host).double().eval()
        view = get_peft_model(base, gain(target_modules=["fc"]))
        for x in inputs:
            close(view(x), base(x))
        scramble(view, 0.5)
        own = view.fc.adapters["default"]
        for x in inputs:
            y = view(x)
            close(y, operate(host, x, own.weight(canonical(host)), getattr(host, "bias", None)))
        view.merge_adapter()
        close(view(inputs[-1]), operate(host, inputs[-1], own.weight(canonical(host)), getattr(host, "bias", None)))


def test_it_is_innermost_under_an_additive_method_in_whatever_order(gain: Any) -> None:
    base = mlp(dtype=torch.float64)
    view = get_peft_model(base, LoraConfig(target_modules=["up"], r=2), "lora")
    view.add_adapter("gain", gain(target_modules=["up"]))
    scramble(view, 0.5)
    lora, g = view.up.adapters["lora"], view.up.adapters["gain"]
    weight = g.weight(base.up.weight) + lora.scale * lora.B @ lora.A
    x = torch.randn(3, 8, dtype=torch.float64)
    expected = nn.functional.linear(x, weight, base.up.bias)
    for order in (["lora", "gain"], ["gain", "lora"]):
        view.set_adapter(order)
        close(view.up(x), expected)
        view.merge_adapter()
        close(view.up.weight, weight)
        view.unmerge_adapter()


def test_two_of_them_cannot_be_active_together(gain: Any) -> None:
    view = get_peft_model(mlp(), gain(target_modules=["up"]), "a")
    view.add_adapter("b", gain(target_modules=["up", "down"]))
    view.add_adapter("c", gain(target_modules=["down"]))
    with pytest.raises(StateError, match=r"'a' and 'b' cannot be active together.*'up'"):
        view.set_adapter(["a", "b"])
    view.set_adapter(["a", "c"])


def test_rows_of_different_methods_mix(gain: Any) -> None:
    base = mlp(dtype=torch.float64)
    view = get_peft_model(base, LoraConfig(target_modules=["up"], r=2), "lora")
    view.add_adapter("gain", gain(target_modules=["up", "down"]))
    scramble(view, 0.5)
    x = torch.randn(3, 8, dtype=torch.float64)
    names = ["gain", "lora", "__base__"]
    mixed = view(x, adapter_names=names)
    for i, name in enumerate(names):
        view.set_adapter([] if name == "__base__" else name)
        close(mixed[i : i + 1], view(x[i : i + 1]))


def test_a_method_without_a_weight_says_so_and_cannot_be_merged(gain: Any) -> None:
    config = gain(target_modules=["up"])

    @adapter(gain, "linear")
    class Noise(Adapter):
        mergeable = False

        def forward(self, base: Any, x: Tensor, *args: Any, host: nn.Module, **kwargs: Any) -> Any:
            return base(x) + 1

    at = site("up", mlp().up, "linear")
    with pytest.raises(NotImplementedError, match="Noise cannot be written as a change of the weight"):
        Noise(config, at).weight(torch.ones(1))
    with pytest.raises(NotImplementedError):
        Noise(config, at).tensors()
    assert Noise(config, at).bias(None) is None and Noise(config, at).replaces(mlp().up) == []
    view = get_peft_model(mlp(), config)
    with pytest.raises(StateError, match="Noise at 'up' is no change of the weight: it cannot be merged"):
        view.merge_adapter()
    assert view._inlay.merged == []


def test_parameters_start_frozen_and_in_the_sites_dtype() -> None:
    at = site("up", mlp(dtype=torch.bfloat16).up, "linear")
    p = Adapter(AdapterConfig(), at).parameter(at, 2, 3)
    assert (p.shape, p.dtype, p.requires_grad) == ((2, 3), torch.float32, False)


def test_a_config_without_defaults_has_none() -> None:
    config = AdapterConfig()
    assert config.default_targets("llama") is None and list(config.companions({}, [])) == []


def test_an_adapter_is_not_stored_in_8_bits() -> None:
    """As diffusers' layerwise casting would have it, which casts a host to 8 bits between its calls."""
    view = get_peft_model(mlp(), LoraConfig(target_modules=["up"], r=2, modules_to_save=["down"]))
    scramble(view)
    before = {n: p.clone() for n, p in view.named_parameters() if p.requires_grad}
    view.to(torch.float8_e4m3fn)
    assert view.up.weight.dtype is torch.float8_e4m3fn
    after = dict(view.named_parameters())
    assert before and all(torch.equal(after[n], p) and after[n].requires_grad for n, p in before.items())
    view.to(torch.bfloat16)
    assert {p.dtype for p in view.parameters()} == {torch.bfloat16}
    assert view.to("meta").up.adapters["default"].A.device.type == "meta"
