"""Names of tensors in `adapter_model.safetensors`. The only file that knows the prefix `base_model.model.`.

The key of an adapter's tensor is that prefix, the host's path in the base, and what the adapter calls it
(`Adapter.tensors`), e.g. `base_model.model.h.0.attn.c_attn.lora_A.weight`. The adapter's name is not part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from inlay.core.adapter import Adapter
from inlay.core.host import kind_of
from inlay.core.index import AdapterIndex
from inlay.core.plan import walk
from inlay.errors import MismatchError

PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer"
EMBEDDINGS = ("embed_tokens", "lm_head")  # targets whose frozen weight is saved along, as peft does


def key_of(path: str, suffix: str) -> str:
    """The key of the tensor that the adapter at `path` calls `suffix`."""
    return f"{PREFIX}{path}.{suffix}"


def tensors_by_key(placed: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """key -> parameter (or buffer) of one adapter's placements: what is saved, and where a load goes."""
    return {key_of(path, suffix): t for path, a in placed.items() for suffix, t in a.tensors().items()}


def state_dict_of(index: AdapterIndex, name: str, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """An adapter's tensors by key, from the modules or from the model's (gathered) `state_dict`.

    Sharded (DTensor) parameters are gathered, which every process has to take part in.
    Raises MismatchError if `state_dict` lacks one.
    """
    found: dict[str, Tensor] = {}
    for path, adapter in index.placed[name].items():
        own = {id(t): n for n, t in [*adapter.named_parameters(), *adapter.named_buffers()]}
        for suffix, tensor in adapter.tensors().items():
            if state_dict is not None:
                inner = f"{path}.adapters.{name}.{own[id(tensor)]}"
                source = next((state_dict[k] for k in (inner, f"_orig_mod.{inner}") if k in state_dict), None)
                if source is None:
                    raise MismatchError(f"The state_dict lacks {inner!r} of adapter {name!r}.", missing=[inner])
                tensor = source
            full: Any = getattr(tensor, "full_tensor", None)
            found[key_of(path, suffix)] = full() if full is not None else tensor
    return found


def base_embeddings(model: nn.Module, index: AdapterIndex, name: str, everything: bool) -> dict[str, Tensor]:
    """Frozen embeddings and output heads by key: those the adapter `name` targets under a name in `EMBEDDINGS`, or all.

    `everything`: also those it does not target, and under any name.
    """
    found: dict[str, Tensor] = {}
    get_in, get_out = getattr(model, "get_input_embeddings", None), getattr(model, "get_output_embeddings", None)
    known = [f() for f in (get_in, get_out) if everything and f is not None]
    for path, module in walk(model).items():
        targeted = path in index.placed[name] and kind_of(module) is not None
        if any(module is k for k in known) or (targeted and path.rsplit(".", 1)[-1] in EMBEDDINGS):
            found[key_of(path + (_BASE_LAYER if targeted else ""), "weight")] = module.weight  # type: ignore[assignment]
    return found


def embedding_path(key: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The path of the embedding or linear layer whose frozen weight `key` names, or None."""
    path = key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(_BASE_LAYER)
    module = modules.get(path)
    return (
        path if key.endswith(".weight") and module is not None and kind_of(module) in ("embedding", "linear") else None
    )


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
