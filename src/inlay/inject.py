"""Adding an adapter to a model that has an index: a view, or a model that is changed in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from inlay import registry
from inlay.config import PeftConfig
from inlay.core.index import AdapterIndex, index_of
from inlay.core.plan import check_adapter_name, no_aliases, plan
from inlay.errors import ConfigError, StateError


def add_adapter(
    model: Any, config: Any, name: str, heads: Sequence[str] = (), keep_base_dtype: bool = False, init: bool = True
) -> PeftConfig:
    """Plans and places a new adapter in a view or an injected model; returns its config as kept. Not activated."""
    index = index_of(model)
    check_adapter_name(name, index.configs)
    if not isinstance(config, PeftConfig):
        raise ConfigError.of("peft_config", type(config).__name__, "a config such as LoraConfig(...)")
    if index.merged:
        raise StateError(f"{index.merged} is merged into the weights: call unmerge_adapter() before adding adapters.")
    placements, kept = plan(
        model, config, heads=heads, aliases=aliases_of(model), keep_base_dtype=keep_base_dtype, init=init
    )
    describe_base(kept, model)
    index.add(name, kept, placements)
    return kept


def aliases_of(model: nn.Module) -> Any:
    """A function that computes the modules' names in earlier releases of the model's library."""
    glue = registry.glue_for(model)
    return no_aliases if glue is None else lambda: glue.earlier_names(model)


def describe_base(config: PeftConfig, model: Any) -> None:
    """Notes in `config` which base it is for."""
    own: Any = getattr(model, "config", None)
    name = own.get("_name_or_path") if isinstance(own, Mapping) else getattr(own, "_name_or_path", None)
    name = name or model.__dict__.get("name_or_path")
    if name:
        config.base_model_name_or_path = str(name)
    if config.task_type is None and config.auto_mapping is None:
        cls = getattr(type(model), "_original_class", type(model))
        config.auto_mapping = {"base_model_class": cls.__name__, "parent_library": cls.__module__}


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> nn.Module:
    """Adds adapters to `model` in place: its target modules become adapted ones, everything else stays, frozen.

    Unlike `get_peft_model` there is no view: the model you pass is the one that changes, and is returned. The index of
    its adapters is `inlay.core.index.index_of(model)`.

    Args:
        state_dict: adapter weights to load, keyed as in `adapter_model.safetensors`.

    Raises:
        TargetError, ConfigError, MismatchError: config or weights do not fit the model. Nothing has changed then.
    """
    if not isinstance(getattr(model, "_inlay", None), AdapterIndex):
        model.__dict__["_inlay"] = AdapterIndex()
    index = index_of(model)
    names = list(index.configs)
    try:
        add_adapter(model, peft_config, adapter_name, init=state_dict is None)
        if state_dict is not None:
            from inlay.io.load import set_peft_model_state_dict

            set_peft_model_state_dict(model, state_dict, adapter_name)
    except Exception:
        if list(index.configs) != names:
            index.remove(adapter_name)
        if not index.configs:
            del model.__dict__["_inlay"]
        raise
    own = {id(p) for a in index.placed.values() for adapter in a.values() for p in adapter.parameters()}
    for p in model.parameters():
        if id(p) not in own:
            p.requires_grad_(False)
    index.activate([adapter_name])
    index.train([] if peft_config.inference_mode else [adapter_name])
    return model
