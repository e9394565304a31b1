"""Names of tensors in `adapter_model.safetensors`. The only file that knows the prefix `base_model.model.`.

The key of an adapter's tensor is that prefix, the host's path in the base, and what the adapter calls it
(`Adapter.tensors`), e.g. `base_model.model.h.0.attn.c_attn.lora_A.weight`. The adapter's name is not part of it.
In files of prompt methods the prefix is `base_model.`; what adapters share has its own keys (`shared_tensors`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay import registry
from inlay.config import PeftConfig
from inlay.core.adapter import Adapter
from inlay.core.copies import TrainedParameters
from inlay.core.gather import check_not_flat, gathered, whole
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


def training_state_by_key(placed: Mapping[str, Adapter], config: PeftConfig) -> dict[str, Tensor]:
    """key -> tensor of what going on with training needs, of the adapters whose file does not hold that."""
    return {key_of(path, suffix): t for path, a in placed.items() for suffix, t in a.training_state().items()}


Listing = Callable[[Mapping[str, Adapter], PeftConfig], dict[str, Tensor]]


def state_dict_of(
    index: AdapterIndex,
    name: str,
    state_dict: Mapping[str, Tensor] | None = None,
    listing: Listing = tensors_by_key,
) -> dict[str, Tensor]:
    """An adapter's tensors by key, in full: from the modules, or from the model's (gathered) `state_dict`.

    Sharded parameters of the modules are gathered, which every process has to take part in (`inlay.core.gather`). With
    a `state_dict` nothing is: one process may have it alone.
    Raises MismatchError if `state_dict` lacks one, StateError if one cannot be gathered.
    """
    placed, config = index.placed[name], index.configs[name]
    if state_dict is None:
        parameters = [p for a in placed.values() for p in a.parameters()]
        check_not_flat(parameters)
        with gathered(parameters):
            return {key: whole(tensor) for key, tensor in listing(placed, config).items()}
    lister = _Lister(placed, config, listing)
    sources: dict[int, Tensor] = {}  # of what the adapters hold; what they share has several names
    lacking: dict[int, str] = {}
    for path, adapter in placed.items():
        at = f"{path}.adapters.{name}" if path else f"adapters.{name}"
        for n, own in [*adapter.named_parameters(), *adapter.named_buffers()]:
            source = next((state_dict[k] for k in (f"{at}.{n}", f"_orig_mod.{at}.{n}") if k in state_dict), None)
            if source is not None:
                sources.setdefault(id(own), source)
            elif isinstance(own, nn.Parameter):
                lacking.setdefault(id(own), f"{at}.{n}")
    lacking = {i: inner for i, inner in lacking.items() if i not in sources}
    # by each place once: `functional_call` leaves a module that it meets under two names with what it was given
    places = [(f"{at}.{n}", t) for at, m in lister.named_modules() for n, t in (m._parameters | m._buffers).items()]
    given = {n: sources[id(t)] for n, t in places if id(t) in sources}
    found: dict[str, Tensor] = torch.func.functional_call(lister, given, tie_weights=False)
    computed = {id(t) for t in found.values()}.difference(map(id, given.values()), map(id, lister.buffers()))
    missing = [inner for i, inner in lacking.items() if i in computed or computed.difference(lacking)]
    if missing:
        raise MismatchError(f"The state_dict lacks {missing[0]!r} of adapter {name!r}.", missing=missing)
    return {key: whole(tensor) for key, tensor in found.items()}


class _Lister(nn.Module):
    """Lists the tensors of adapters when called, which `functional_call` does with others in the parameters' place."""

    def __init__(self, placed: Mapping[str, Adapter], config: PeftConfig, listing: Listing):
        super().__init__()
        self.adapters = nn.ModuleList(placed.values())
        self.paths, self.config, self.listing = list(placed), config, listing

    def forward(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.listing(dict(zip(self.paths, self.adapters, strict=True)), self.config)  # type: ignore[arg-type]


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
            given = state_dict or {}
            for n, p in frozen.items():
                if p is not None:
                    inner = f"{path}.{n}"
                    found[key_of(at, n)] = given[inner] if inner in given else whole(p)
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
