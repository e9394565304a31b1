"""Names of tensors in `adapter_model.safetensors`. The only file that knows the prefix `base_model.model.`.

The key of an adapter's tensor is that prefix, the host's path in the base, and what the adapter calls it
(`Adapter.tensors`), e.g. `base_model.model.h.0.attn.c_attn.lora_A.weight`. The adapter's name is not part of it.
In files of prompt methods the prefix is `base_model.`; what adapters share has its own keys (`shared_tensors`).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay import registry
from inlay.config import PeftConfig
from inlay.core.adapter import Adapter
from inlay.core.copies import TrainedParameters
from inlay.core.host import end_of, kind_of, unmerged_parameters
from inlay.core.index import AdapterIndex
from inlay.core.plan import walk
from inlay.errors import MismatchError

PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer"
EMBEDDINGS = ("embed_tokens", "lm_head")  # as target_modules, they have the frozen embeddings saved along


def key_of(path: str, suffix: str, config: PeftConfig | None = None) -> str:
    """The key of the tensor that the adapter at `path` calls `suffix`."""
    prefix = "base_model." if config is not None and config.is_prompt_learning else PREFIX
    return f"{prefix}{path}.{suffix}" if path else f"{prefix}{suffix}"


def tensors_by_key(placed: Mapping[str, Adapter], config: PeftConfig) -> dict[str, Tensor]:
    """key -> parameter (or buffer) of one adapter's placements: what is saved, and where a load goes."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for path, adapter in placed.items():
            found.update({key_of(path, suffix, config): t for suffix, t in adapter.tensors().items()})
            found.update(adapter.shared_tensors())
    return found


def training_state(placed: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """key -> tensor of what going on with training needs, of the adapters whose file does not hold that."""
    return {key_of(path, suffix): t for path, a in placed.items() for suffix, t in a.training_state().items()}


def state_dict_of(index: AdapterIndex, name: str, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """An adapter's tensors by key, from the modules or from the model's (gathered) `state_dict`.

    Sharded (DTensor) parameters are gathered, which every process has to take part in.
    Raises MismatchError if `state_dict` lacks one.
    """
    found = tensors_by_key(index.placed[name], index.configs[name])
    if state_dict is not None:
        own: dict[int, str] = {}
        for path, adapter in index.placed[name].items():
            at = f"{path}.adapters.{name}" if path else f"adapters.{name}"
            own.update({id(t): f"{at}.{n}" for n, t in [*adapter.named_parameters(), *adapter.named_buffers()]})
        for key, tensor in found.items():
            inner = own.get(id(tensor))
            if inner is None:  # computed, or not part of a state dict
                continue
            source = next((state_dict[k] for k in (inner, f"_orig_mod.{inner}") if k in state_dict), None)
            if source is None:
                raise MismatchError(f"The state_dict lacks {inner!r} of adapter {name!r}.", missing=[inner])
            found[key] = source
    return {key: whole(tensor) for key, tensor in found.items()}


def whole(tensor: Any) -> Tensor:
    """`tensor`, gathered if it is sharded (a DTensor), which every process has to take part in."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def base_embeddings(
    model: nn.Module,
    index: AdapterIndex,
    name: str,
    everything: bool,
    state_dict: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The frozen parameters of the input embedding and the output head by key, where peft saves them along.

    Those that adapter `name` adapts, once its `target_modules` name one of `EMBEDDINGS`; never with trainable tokens,
    which are there to keep the file small. `everything`: both, adapted or not. `state_dict` as in `state_dict_of`.
    """
    modules, ends = walk(model), _ends(model)
    adapted = {path for path, module in modules.items() if _adapts(index, name, path, module)}
    if not everything and not _names_embeddings(index.configs[name], adapted):
        return {}
    found: dict[str, Tensor] = {}
    for path, module in modules.items():
        if (everything or path in adapted) and any(module is end for end in ends):
            at = path + _BASE_LAYER if path in adapted else path
            frozen = unmerged_parameters(module)
            gathered = state_dict or {}
            for n, p in frozen.items():
                if p is not None:
                    inner = f"{path}.{n}"
                    found[key_of(at, n)] = gathered[inner] if inner in gathered else whole(p)
    return found


def _adapts(index: AdapterIndex, name: str, path: str, module: nn.Module) -> bool:
    """True if adapter `name` adapts the layer at `path` (rather than training it, or rows of it, in full)."""
    kind = kind_of(module)
    method = registry.adapter_for(index.configs[name], kind) if kind is not None else None
    placed = index.placed[name].get(path)
    return method is not None and isinstance(placed, method) and not isinstance(placed, TrainedParameters)


def _names_embeddings(config: Any, adapted: Collection[str]) -> bool:
    """True if `target_modules` has one of `EMBEDDINGS` as an entry, or as a regex means a module called so."""
    if getattr(config, "trainable_token_indices", None) is not None:
        return False
    names = getattr(config, "target_modules", None)
    if isinstance(names, list):
        return any(n in names for n in EMBEDDINGS)
    return any(path.rsplit(".", 1)[-1] in EMBEDDINGS for path in adapted)


def _ends(model: Any) -> list[nn.Module]:
    """The model's input embedding and output head, as far as it has them."""
    return [m for which in ("input", "output") if (m := end_of(model, which)) is not None]


def frozen_at(key: str, modules: Mapping[str, nn.Module]) -> tuple[str, str] | None:
    """(path, parameter's name) if `key` names a frozen parameter of an embedding or of an output head, else None."""
    at, _, name = key.removeprefix(PREFIX).rpartition(".")
    module = modules.get(path := at.removesuffix(_BASE_LAYER))
    if module is None or module._parameters.get(name) is None:
        return None
    end = kind_of(module) == "embedding" or path.rsplit(".", 1)[-1] in EMBEDDINGS
    return (path, name) if end or any(module is m for m in _ends(modules[""])) else None


def is_echo(key: str, expected: Container[str]) -> bool:
    """True if `key` repeats an expected one: with bias="all" peft writes a bias that is trained in full three times."""
    wrappers = (".original_module.", ".modules_to_save.")
    return any(inner in key and key.replace(inner, ".") in expected for inner in wrappers)


def to_today(keys: Iterable[str], expected: Iterable[str], earlier: Mapping[str, str]) -> dict[str, str]:
    """key in a file -> key expected, for keys under a module's earlier name (`earlier`: path today -> path then)."""
    then = {}
    for key in expected:
        path = key.removeprefix(PREFIX)
        # the longest prefix of the key that is a renamed module
        parts = path.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            old = earlier.get(".".join(parts[:cut]))
            if old is not None:
                then[".".join([PREFIX + old, *parts[cut:]])] = key
                break
    return {key: then[key] for key in keys if key in then}
