"""How the keys of a file and the tensors of a model correspond, and setting one from the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.adapter import Adapter
from inlay.core.host import offloaded_to
from inlay.core.index import index_of
from inlay.core.plan import walk
from inlay.errors import MismatchError, did_you_mean
from inlay.inject import aliases_of
from inlay.io.keys import PREFIX, frozen_at, is_echo, to_today


@dataclass
class LoadReport:
    """What a load did not apply. Empty after a strict one.

    Attributes:
        missing_keys: the model needs them, the file lacks them; they kept their initial value.
        unexpected_keys: the file has them, the model has no place for them.
        mismatched_keys: key -> (expected shape, shape in the file).
    """

    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    mismatched_keys: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def check(self, where: str, known: Sequence[str], shapes: bool = True) -> None:
        """Raises MismatchError unless the report is empty (of wrong shapes, if those count)."""
        parts = []
        for keys, what in (
            (self.missing_keys, "that this model and config need are missing"),
            (self.unexpected_keys, "have no place in this model with this config"),
        ):
            if keys:
                shown = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
                hint = did_you_mean(keys[0], known) if keys is self.unexpected_keys and self.missing_keys else ""
                parts.append(f"{len(keys)} keys {what}: {shown}.{hint}")
        for key, (expected, got) in list(self.mismatched_keys.items())[: 4 if shapes else 0]:
            parts.append(f"{key}: expected shape {expected}, got {got}.")
        if parts:
            raise MismatchError(
                f"'{where}' does not fit the model; nothing was loaded. {' '.join(parts)} Check that base and config "
                "are those it was trained with, or pass strict=False to load what fits.",
                self.missing_keys,
                self.unexpected_keys,
                self.mismatched_keys,
            )


@dataclass
class Match:
    """How a file's keys correspond to a model: to a tensor to set, or to a frozen parameter of an embedding or head."""

    expected: dict[str, Tensor]
    found: dict[str, str]  # file key -> expected key
    frozen: dict[str, tuple[str, str]]  # file key -> path, parameter's name
    report: LoadReport


def match_keys(
    model: nn.Module, expected: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], key_mapping: Any
) -> Match:
    """How the keys of a file with these `shapes` correspond to an adapter's tensors by key and to the frozen base.

    `key_mapping`: prefix of keys in the file -> prefix in the model.
    """
    found = {k: k for k in shapes if k in expected}
    rest = [k for k in shapes if k not in expected]
    candidates: list[tuple[str, str]] = []
    for old, new in (key_mapping or {}).items():
        for k in rest:
            moved = PREFIX + new + k.removeprefix(PREFIX).removeprefix(old)
            if k.removeprefix(PREFIX).startswith(old) and moved in expected:
                candidates.append((k, moved))
    if rest:
        candidates += to_today(rest, expected, aliases_of(model)()).items()
    taken = set(found)
    for k, target in candidates:
        if k not in found and target not in taken:  # a tensor is set once: a second key for it is unexpected
            found[k] = target
            taken.add(target)
    modules = walk(model) if rest else {}
    frozen = {k: at for k in rest if k not in found and (at := frozen_at(k, modules)) is not None}
    report = LoadReport()
    reached = set(found.values())
    report.missing_keys = [k for k in expected if k not in reached]
    report.unexpected_keys = [k for k in rest if k not in found and k not in frozen and not is_echo(k, expected)]
    for key, target in found.items():
        if tuple(expected[target].shape) != shapes[key]:
            report.mismatched_keys[key] = (tuple(expected[target].shape), shapes[key])
    for key, (path, name) in frozen.items():
        own: Any = modules[path]._parameters[name]
        if tuple(own.shape) != shapes[key]:
            report.mismatched_keys[key] = (tuple(own.shape), shapes[key])
    return Match(expected, found, frozen, report)


def apply(model: nn.Module, match: Match, tensors: dict[str, Tensor], placed: Mapping[str, Adapter]) -> None:
    """Sets every matched tensor; parameters without memory get one."""
    slots: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in (m for adapter in placed.values() for m in adapter.modules()):
        for name, p in module._parameters.items():
            if p is not None and p.device.type == "meta":
                slots.setdefault(id(p), []).append((module, name))
    index = index_of(model)
    devices = {id(p): _device(index.hosts[path]) for path, a in placed.items() for p in a.parameters()}
    with torch.no_grad():
        for key, target in match.found.items():
            if key in match.report.mismatched_keys:
                continue
            own, value = match.expected[target], tensors[key]
            if id(own) in slots:
                value = value.to(device=devices[id(own)], dtype=own.dtype)
                loaded = nn.Parameter(value, requires_grad=own.requires_grad)
                for module, name in slots[id(own)]:
                    module._parameters[name] = loaded
            else:
                own.copy_(_sharded_as(own, value))
        modules = walk(model) if match.frozen else {}
        for key, (path, name) in match.frozen.items():
            host = modules[path]
            base: Any = host._parameters[name]
            value = _sharded_as(base, tensors[key].to(device=base.device, dtype=base.dtype))
            if key not in match.report.mismatched_keys and not torch.equal(base, value):
                host._parameters = {**host._parameters, name: nn.Parameter(value, requires_grad=False)}


def _sharded_as(own: Any, value: Tensor) -> Tensor:
    """`value`, which every process has in full, cut up as `own` is if that is sharded (FSDP2)."""
    if not hasattr(own, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def _device(host: nn.Module) -> torch.device:
    device = next((p.device for p in host._parameters.values() if p is not None), torch.device("cpu"))
    return device if device.type != "meta" else offloaded_to(host) or torch.device("cpu")
