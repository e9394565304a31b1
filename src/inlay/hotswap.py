"""Hot-swapping: other weights for an adapter in place, so that nothing compiled has to be compiled again.

    prepare_model_for_compiled_hotswap(view, target_rank=32)   # once, before torch.compile
    compiled = torch.compile(view)
    hotswap_adapter(view, "other-adapter", "default")          # as often as you like

The compiler relies on shapes and on Python numbers. Preparing gives A and B zeros up to the rank, which change no
product, and makes the scale s a tensor; swapping then only writes into tensors. Whatever else there is to do with an
adapter sees its own rank: saving, merging, adding up. Without preparation adapters of up to the same rank can be
swapped too, and those of the same rank and scale without compiling again.

This is for LoRA and its variants. Other methods' adapters are loaded under names of their own and switched.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inlay.checks import check_choice
from inlay.config import PeftConfig
from inlay.core.adapter import Adapter
from inlay.core.index import AdapterIndex, index_of, task_heads
from inlay.core.plan import plan, walk
from inlay.core.skeleton import unwrapped
from inlay.errors import ConfigError, InlayWarning, MismatchError, StateError
from inlay.inject import aliases_of, describe_base
from inlay.io.hub import local_folder
from inlay.io.keys import PREFIX, tensors_by_key
from inlay.io.load import Incoming, read_adapter
from inlay.io.match import apply, match_keys
from inlay.io.tensors import check_finite
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.lowrank import LowRank

# what two adapters must agree in: the rest of a LoRA's function is in tensors
_FIELDS = ("variant", "bias", "alora_invocation_tokens", "trainable_token_indices")
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def prepare_model_for_compiled_hotswap(
    model: nn.Module,
    *,
    target_rank: int | None = None,
    config: Any = None,
    check_compiled: str = "error",
) -> None:
    """Makes a model's LoRA adapters ready to be swapped for others of any scale, and of rank up to `target_rank`.

    The model computes what it did. To be called when the first adapter is there, before `torch.compile`, and before an
    optimizer is made: A and B are new parameters then.

    Args:
        target_rank: the largest rank to come; by default ranks stay as they are.
        config: accepted for compatibility: configs, and files, go on saying the true rank.
        check_compiled: if the model is compiled already, "error", "warn" or "ignore".

    Raises:
        ConfigError: `target_rank` is less than an adapter has. StateError: there is no LoRA adapter; the model is
            compiled; an adapter is anchored, or has groups, and would have to be padded. Nothing has changed then.
    """
    check_choice("check_compiled", check_compiled, ("error", "warn", "ignore"))
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        text = "The model is compiled already, and would be again: prepare it for hot-swapping before torch.compile."
        if check_compiled == "error":
            raise StateError(text)
        if check_compiled == "warn":
            warnings.warn(text, InlayWarning, stacklevel=2)
    index = index_of(unwrapped(model))
    found = [(p, a) for placed in index.placed.values() for p, a in placed.items() if isinstance(a, LowRank)]
    if not found:
        raise StateError("There is no LoRA adapter to prepare: add or load the first one before.")
    for path, adapter in found:
        room = adapter.A.shape[0] if target_rank is None else target_rank
        if isinstance(room, bool) or not isinstance(room, int) or room < adapter.A.shape[0]:
            raise ConfigError.of("target_rank", room, f"a rank of at least {adapter.A.shape[0]}, as at {path!r}")
        if room > adapter.A.shape[0] and (adapter.groups > 1 or adapter.A0 is not None):
            what = "is a convolution with groups" if adapter.groups > 1 else "is anchored to the base (as_plain_lora)"
            raise StateError(f"The adapter at {path!r} {what} and cannot be padded: leave target_rank out.")
    with torch.no_grad():
        for _, adapter in found:
            adapter.make_room(adapter.A.shape[0] if target_rank is None else target_rank)


def check_hotswap_configs_compatible(config0: PeftConfig, config1: PeftConfig) -> None:
    """Raises ConfigError unless an adapter of `config0` can become one of `config1` by setting tensors.

    Both are LoRA, of one variant, with the same `bias` and `trainable_token_indices`. Ranks, alphas and targets may
    differ, and so may the dropout: the present adapter keeps its own.
    """
    for config in (config0, config1):
        if not isinstance(config, LoraConfig):
            raise ConfigError(
                f"{config.peft_type} adapters cannot be hot-swapped, only LoRA: load it under a name of its own."
            )
        if config.anchored:
            raise ConfigError.of(
                "init_lora_weights",
                config.init_lora_weights,
                "no anchored start for hot-swapping",
                "It stands for another base weight: inlay.as_plain_lora makes an ordinary adapter of it.",
            )
    for name in _FIELDS:
        one, other = getattr(config0, name), getattr(config1, name)
        if one != other:
            raise ConfigError.of(
                name, other, f"{one!r}, as the adapter has it", "Load this one under a name of its own."
            )


def hotswap_adapter(
    model: nn.Module,
    model_name_or_path: str | Path,
    adapter_name: str,
    torch_device: str | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
    check_base: bool = True,
    key_mapping: Mapping[str, str] | None = None,
) -> None:
    """Gives the adapter `adapter_name` the weights, rank and scale of a saved one. It keeps its name and parameters.

    Layers that only the present adapter has are cleared: zeros in a LoRA, there to be swapped again. All is read and
    checked first.

    Args:
        model: a view, compiled or not, or a model changed by `inject_adapter_in_model`.
        torch_device: accepted for compatibility; tensors go where the present ones are.
        subfolder, ...: as in `PeftModel.load_adapter`.

    Raises:
        ConfigError, MismatchError: the adapters do not agree (`check_hotswap_configs_compatible`), the new one sits in
            other layers, or has a higher rank than there is room for.
        StateError: there is no such adapter, or it is merged. The errors of `PeftModel.load_adapter` for files.
        The model is as before in each case.
    """
    model = unwrapped(model)
    _swappable(model, adapter_name)
    folder = local_folder(model_name_or_path, subfolder, revision, cache_dir, token, allow_pickle)
    came = read_adapter(
        model,
        folder,
        adapter_name,
        heads=task_heads(model),
        check_base=check_base,
        allow_pickle=allow_pickle,
        key_mapping=key_mapping,
    )
    _swap(model, adapter_name, came, str(folder))


def hotswap_adapter_from_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    adapter_name: str,
    config: LoraConfig,
    parameter_prefix: str = "lora_",
) -> None:
    """As `hotswap_adapter`, from tensors and a config.

    Args:
        state_dict: keyed as in `adapter_model.safetensors`; the prefix of those keys may be left out, and the adapter's
            name may follow `lora_A` and the like, as peft and diffusers have it in memory.
        config: of the adapter that the tensors are of.
        parameter_prefix: accepted for compatibility.
    """
    model = unwrapped(model)
    index = _swappable(model, adapter_name)
    check_hotswap_configs_compatible(index.configs[adapter_name], config)
    placements, kept = plan(model, config, heads=task_heads(model), aliases=aliases_of(model), init=False)
    placed = {p.path: p.adapter for p in placements}
    tensors = {_file_key(key, adapter_name): tensor for key, tensor in state_dict.items()}
    match = match_keys(model, tensors_by_key(placed, kept), {k: tuple(t.shape) for k, t in tensors.items()}, None)
    match.report.check("the given state dict", list(match.expected))
    for key, tensor in tensors.items():
        check_finite(key, tensor, "the given state dict")
    _swap(model, adapter_name, Incoming(kept, placements, placed, match, tensors), "the given state dict")


def _swappable(model: nn.Module, name: str) -> AdapterIndex:
    index = index_of(model)
    index.require(name)
    if index.is_merged(name):
        raise StateError(f"Adapter {name!r} is merged into the weights: call unmerge_adapter() before swapping it.")
    return index


def _swap(model: nn.Module, name: str, came: Incoming, where: str) -> None:
    """Checks that `came` can take the place of adapter `name`, and lets it."""
    index = index_of(model)
    present = index.placed[name]
    check_hotswap_configs_compatible(index.configs[name], came.config)
    _check_fits(model, name, present, came, where)
    # from here on nothing fails
    came.match.frozen.clear()
    apply(model, came.match, came.tensors, came.placed)
    before: Any = index.configs[name]
    kept: Any = came.config.replaced(inference_mode=before.inference_mode, lora_dropout=before.lora_dropout)
    describe_base(kept, model)
    absent = [path for path in present if path not in came.placed]
    if absent:
        kept = _with_targets(kept, before, {path: present[path] for path in absent})
    with torch.no_grad():
        for path, adapter in present.items():
            own: Any = adapter
            new: Any = came.placed.get(path)
            if new is None:
                own.clear(index.hosts[path])
            elif isinstance(own, LowRank):
                own.take(new)
            else:
                for mine, given in zip(_tensors(own), _tensors(new), strict=True):
                    mine.copy_(given)
    index.configs[name] = kept


def _check_fits(model: nn.Module, name: str, present: Mapping[str, Adapter], came: Incoming, where: str) -> None:
    for path, new in came.placed.items():
        own: Any = present.get(path)
        if type(own) is not type(new):
            what, has = type(new).__name__, "none" if own is None else type(own).__name__
            raise MismatchError(
                f"{where!r} has an adapter ({what}) at {path!r}, where {name!r} has {has}: it cannot take its place. "
                "Load it under a name of its own, or begin with an adapter that has all the layers to come."
            )
        if isinstance(own, LowRank) and new.r > own.A.shape[0]:  # type: ignore[operator]
            raise MismatchError(
                f"{where!r} has rank {new.r} at {path!r}, where {name!r} has room for {own.A.shape[0]}: call "
                f"prepare_model_for_compiled_hotswap(model, target_rank={new.r}) before compiling, or load it under a "
                "name of its own."
            )
        if isinstance(own, LowRank) and own.groups > 1 and new.r != own.r:
            raise MismatchError(
                f"{where!r} has rank {new.r} at {path!r}, a convolution with groups: it has to be {own.r}."
            )
    lost = [path for path, own in present.items() if path not in came.placed and not isinstance(own, LowRank)]
    if lost:
        raise MismatchError(
            f"{where!r} has nothing for {lost[0]!r}, which {name!r} trains in full: load it under a name of its own."
        )
    modules: dict[str, Any] = walk(model) if came.match.frozen else {}
    for key, (path, parameter) in came.match.frozen.items():
        base = modules[path]._parameters[parameter]
        if not torch.equal(base, came.tensors[key].to(base)):
            raise MismatchError(
                f"{where!r} brings weights of the base along that differ from this one's ({key}): they cannot be "
                "swapped. Load it under a name of its own."
            )


def _with_targets(config: LoraConfig, before: Any, absent: Mapping[str, Any]) -> LoraConfig:
    """`config` for the targets of `before`, of which those `absent` from its own keep their rank."""
    ranks = {f"^{re.escape(path)}": a.r for path, a in absent.items() if config.rank(path) != a.r}
    return config.replaced(
        **{field: getattr(before, field) for field in _TARGETS},
        rank_pattern={**ranks, **config.rank_pattern},
    )


def _tensors(adapter: nn.Module) -> list[Tensor]:
    return [*adapter.parameters(), *adapter.buffers()]


def _file_key(key: str, name: str) -> str:
    """`key` as files have it."""
    inner = key.removeprefix(PREFIX)
    return PREFIX + re.sub(rf"(\.lora_\w+)\.{re.escape(name)}(?=\.|$)", r"\1", inner)
