"""What a model with adapters consists of: counts, states, and whether its targets are reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from inlay.core.host import numel
from inlay.core.index import AdapterIndex, index_of
from inlay.errors import StateError
from inlay.quant import is_quantised, packed_in, size


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all). The base's copy of a module or parameter trained in full is not counted."""
    replaced: set[int] = set()
    index = getattr(model, "_inlay", None)
    if isinstance(index, AdapterIndex):
        for adapters in index.placed.values():
            for path, adapter in adapters.items():
                replaced.update(map(id, adapter.replaces(index.hosts[path])))
    trainable = total = 0
    counted = set(replaced)
    for module in model.modules():  # packed weights, of which some are buffers, or not called `weight`
        if is_quantised(module) and id(held := packed_in(module)) not in counted:
            counted.add(id(held))
            total += size(module)
    for p in model.parameters():
        if id(p) not in counted:
            total += numel(p)
            trainable += numel(p) if p.requires_grad else 0
    return trainable, total


def trainable_line(model: nn.Module) -> str:
    """`trainable params: 2,359,296 || all params: 1,231,940,608 || trainable%: 0.1915`"""
    trainable, total = count_parameters(model)
    share = 100 * trainable / max(total, 1)
    return f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}"


Flag = bool | Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """One adapted layer: which adapters it has and their state."""

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, Flag]
    available_adapters: list[str]
    devices: dict[str, list[str]]


@dataclass
class TunerModelStatus:
    """The model as a whole; `"irregular"` where its layers disagree."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: Flag
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, Flag]
    available_adapters: list[str]
    devices: dict[str, list[str]]


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """The state of every adapted layer, in model order."""
    index = index_of(model)
    result = []
    for path, host in index.hosts.items():
        adapters: dict[str, Any] = dict(host.adapters.items())  # type: ignore[union-attr, operator]
        result.append(
            TunerLayerStatus(
                name=path,
                module_type=next(iter(type(a).__name__ for a in adapters.values())),
                enabled=not index.active.disabled,
                active_adapters=[n for n in index.active.names if n in adapters],
                merged_adapters=[n for n, a in adapters.items() if a.merged],
                requires_grad={n: _agree(p.requires_grad for p in a.parameters()) for n, a in adapters.items()},
                available_adapters=sorted(adapters),
                devices={n: sorted({str(p.device) for p in a.parameters()}) for n, a in adapters.items()},
            )
        )
    return result


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """The state of the model as a whole."""
    index, layers = index_of(model), get_layer_status(model)
    trainable, total = count_parameters(model)
    names = list(index.configs)
    return TunerModelStatus(
        base_model_type=getattr(type(model), "_original_class", type(model)).__name__,
        adapter_model_type=getattr(getattr(type(model), "_mixin", None), "__name__", "None"),
        peft_types={n: str(c.peft_type) for n, c in index.configs.items()},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(layers),
        enabled=not index.active.disabled,
        active_adapters=list(index.active.names),
        merged_adapters=index.merged,
        requires_grad={n: _agree(s.requires_grad[n] for s in layers if n in s.requires_grad) for n in names},
        available_adapters=sorted(names),
        devices={n: sorted({d for s in layers for d in s.devices.get(n, ())}) for n in names},
    )


def _agree(values: Iterable[Flag]) -> Flag:
    found = set(values)
    return next(iter(found)) if len(found) == 1 else ("irregular" if found else False)


def verify(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """Runs `model(*args, **kwargs)` and returns the paths of the active adapters' hosts, all of which it called.

    Raises StateError naming those that were not: adapters there have no effect (a fused path reads their weights, a
    patched parent calls something else, or these inputs do not need them).
    """
    import torch

    index = index_of(model)
    if index.merged:
        raise StateError(f"{index.merged[0]!r} is merged into the weights: call unmerge_adapter() before verifying.")
    if index.active.disabled:
        raise StateError("Adapters are disabled, so that none is reached: verify outside of disable_adapter().")
    placed = [item for n in index.active.names for item in index.placed[n].items()]
    wanted = list(dict.fromkeys(path for path, _ in placed))
    reached: set[str] = set()
    handles = [a.register_forward_pre_hook(lambda *_, path=path: reached.add(path)) for path, a in placed]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    at_work = {id(p) for path, adapter in placed if path in reached for p in adapter.parameters()}
    idle = [(path, {id(p) for p in adapter.parameters()}) for path, adapter in placed if path not in reached]
    # one that shares its parameters with an adapter that was reached, on a tied weight, is none too many
    missed = list(dict.fromkeys(path for path, own in idle if not own or not own <= at_work))
    if missed:
        raise StateError(
            f"{len(missed)} of {len(wanted)} targets were not reached by this forward pass, so their adapters have no "
            f"effect on it: {', '.join(missed[:8])}{', ...' if len(missed) > 8 else ''}."
        )
    return wanted
