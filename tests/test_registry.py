"""The table of methods: which adapter serves a config on a kind of host, and which glue a model."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from inlay import AdapterConfig, LoraConfig, PeftConfig, registry
from inlay import config as configs
from inlay.core.adapter import Adapter
from inlay.core.host import KINDS
from inlay.methods.lora import LoraConv, LoraEmbedding, LoraLinear
from inlay.registry import adapter, adapter_for, glue_for, kinds_of, registered
from tests.tiny import llama, mlp


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test register things that are gone afterwards."""
    monkeypatch.setattr(registry, "_ADAPTERS", registered())
    monkeypatch.setattr(configs, "_CLASSES", dict(configs.config_classes()))


def test_lora_serves_every_kind() -> None:
    config = LoraConfig()
    expected = {
        "linear": LoraLinear,
        "embedding": LoraEmbedding,
        **dict.fromkeys(["conv1d", "conv2d", "conv3d"], LoraConv),
    }
    assert {kind: adapter_for(config, kind) for kind in set(KINDS.values())} == expected
    assert kinds_of(config) == sorted(expected) and adapter_for(config, "module") is None


def test_a_method_is_registered_by_a_decorator(tables: None) -> None:
    @dataclass
    class MineConfig(AdapterConfig, peft_type="MINE"):
        pass

    @dataclass
    class Special(MineConfig):
        pass

    class Mine(Adapter):
        pass

    assert adapter(MineConfig, "linear", "conv1d")(Mine) is Mine
    assert adapter_for(MineConfig(), "conv1d") is Mine and adapter_for(MineConfig(), "embedding") is None
    assert adapter_for(Special(), "linear") is Mine, "configs inherit their class's adapters"
    assert kinds_of(Special()) == ["conv1d", "linear"]
    assert (MineConfig, "linear", "") in registered()
    adapter(Special, "linear")(LoraLinear)
    assert adapter_for(Special(), "linear") is LoraLinear and adapter_for(MineConfig(), "linear") is Mine


def test_the_table_is_a_copy() -> None:
    table = registered()
    assert table and all(issubclass(c, PeftConfig) and issubclass(a, Adapter) for (c, *_), a in table.items())
    assert {kind for _, kind, _ in table} <= {*KINDS.values(), "module", "prompt", "cache"}
    table.clear()
    assert registered()


def test_glue_is_found_by_the_package_of_a_models_class(monkeypatch: pytest.MonkeyPatch) -> None:
    assert glue_for(mlp()) is None and glue_for(nn.Linear(1, 1)) is None
    glue: Any = glue_for(llama())
    assert glue.__name__ == "inlay.hf.glue"
    base = type(llama())
    asked: list[str] = []
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: asked.append(name) or types.ModuleType(name))

    class Own(base):  # type: ignore[misc, valid-type]
        """A user's subclass of a transformers model."""

    assert glue_for(object.__new__(Own)) is not None and asked == ["inlay.hf.glue"]


def test_a_variant_of_a_config_has_its_own_adapters_and_any_module_is_the_last_resort(tables: None) -> None:
    @dataclass
    class MineConfig(AdapterConfig, peft_type="MINE"):
        odd: bool = False

        @property
        def variant(self) -> str:
            return "odd" if self.odd else ""

    class Plain(Adapter):
        pass

    class Odd(Adapter):
        pass

    adapter(MineConfig, "module")(Plain)
    adapter(MineConfig, "linear", variant="odd")(Odd)
    assert adapter_for(MineConfig(), "linear") is Plain and adapter_for(MineConfig(), "module") is Plain
    assert adapter_for(MineConfig(odd=True), "linear") is Odd and adapter_for(MineConfig(odd=True), "conv1d") is None
    assert kinds_of(MineConfig(odd=True)) == ["linear"]
