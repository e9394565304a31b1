"""Adding an adapter to a model that has an index: a view, or a model that is changed in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from inlay import registry
from inlay.config import PeftConfig
from inlay.core.copies import TrainedModule
from inlay.core.index import AdapterIndex, index_of
from inlay.core.plan import Placement, check_adapter_name, no_aliases, plan, walk
from inlay.errors import ConfigError, StateError, TargetError
from inlay.layer import TunerLayer
from inlay.quant import is_quantised


def add_adapter(
    model: Any, config: Any, name: str, heads: Sequence[str] = (), keep_base_dtype: bool = False, init: bool = True
) -> PeftConfig:
    """Plans and places a new adapter in a view or an injected model; returns its config as kept. Not activated."""
    index = index_of(model)
    check_config(config)
    check_free(index, name)
    placements, kept = plan(
        model, config, heads=heads, aliases=aliases_of(model), keep_base_dtype=keep_base_dtype, init=init
    )
    check_trainable(placements)
    describe_base(kept, model)
    index.add(name, kept, placements)
    return kept


def check_trainable(placements: Sequence[Placement]) -> None:
    """Raises TargetError if a module is to be trained in full of which a layer is quantised: it has no gradient."""
    for p in placements:
        packed = isinstance(p.adapter, TrainedModule) and any(map(is_quantised, walk(p.host).values()))
        if packed:
            raise TargetError(
                f"{p.path!r} cannot be trained in full (modules_to_save): it is quantised. Leave it out of what is "
                "quantised (BitsAndBytesConfig(llm_int8_skip_modules=[...])), or give it an adapter instead.",
                "modules_to_save",
                p.path,
            )


def check_config(config: object) -> None:
    """Raises ConfigError unless `config` is one."""
    if not isinstance(config, PeftConfig):
        raise ConfigError.of("peft_config", type(config).__name__, "a config such as LoraConfig(...)")


def check_free(index: AdapterIndex, name: str) -> None:
    """Raises unless an adapter `name` can be added: ConfigError for the name, StateError while one is merged."""
    check_adapter_name(name, index.configs)
    if index.merged:
        raise StateError(f"{index.merged} is merged into the weights: call unmerge_adapter() before adding adapters.")


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
        ConfigError as well: the method needs a view. It adds virtual tokens, or keeps tensors that its layers share in
            its files, where the tensors of a model changed in place stand layer by layer.
    """
    check_config(peft_config)
    if peft_config.is_prompt_learning:
        raise ConfigError(f"{peft_config.peft_type} changes what the whole model is given: use get_peft_model.")
    index = getattr(model, "_inlay", None)
    if not isinstance(index, AdapterIndex) or getattr(model, "peft_config", None) is not index.configs:
        # without them diffusers has put the plain layers back, and deleted what told of the adapters
        index = model.__dict__["_inlay"] = AdapterIndex(TunerLayer)
    names = list(index.configs)
    try:
        add_adapter(model, peft_config, adapter_name, _heads_named(peft_config, model), init=state_dict is None)
        if any(adapter.shared_tensors() for adapter in index.placed[adapter_name].values()):
            less = ", or save_projection=False" if hasattr(peft_config, "save_projection") else ""
            raise ConfigError(
                f"{peft_config.peft_type} saves tensors that all its layers share, and a model that is changed in place"
                f" has its files written layer by layer: use get_peft_model{less}."
            )
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
    model.__dict__["peft_config"] = index.configs  # where transformers and diffusers look, and delete
    index.activate([adapter_name])
    index.train([] if peft_config.inference_mode else [adapter_name])
    return model


def _heads_named(config: PeftConfig, model: nn.Module) -> list[str]:
    """Those of `modules_to_save` that are heads of the config's task, if the model has one of them.

    peft names all of them in its files, whichever the model has.
    """
    from inlay.tasks import VIEW_CLASSES

    named = [n for n in VIEW_CLASSES[config.task_type]._task_heads if n in (config.modules_to_save or ())]
    return named if any(path.endswith(tuple(named)) for path in walk(model)) else []
