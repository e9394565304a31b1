"""What adapters consist of that are to be summed: terms, layer by layer, and what is trained in full."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from inlay.core.adapter import Adapter
from inlay.core.index import AdapterIndex
from inlay.core.plan import walk
from inlay.errors import ConfigError
from inlay.merge.exactly import targets

_WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass
class Parts:
    """What several adapters of one method consist of.

    Attributes:
        names, weights: as given.
        configs: the adapters'.
        terms: path of a host -> (position in `names`, weight, adapter), in the model's order.
        whole: path -> (name, adapter), of what is trained in full.
        hosts: path -> host.
        targets: the new config's fields that say where it goes.
        alike: whether these are those of every adapter.
    """

    names: Sequence[str]
    weights: Sequence[float]
    configs: Sequence[Any]
    terms: dict[str, list[tuple[int, float, Any]]]
    whole: dict[str, tuple[str, Adapter]]
    hosts: Mapping[str, nn.Module]
    targets: dict[str, Any]
    alike: bool

    def fields(self) -> dict[str, Any]:
        """The new config's fields that do not depend on the method."""
        saved = dict.fromkeys(name for config in self.configs for name in config.modules_to_save or ())
        return {
            **self.targets,
            "task_type": self.configs[0].task_type,
            "modules_to_save": list(saved) or None,
            "inference_mode": True,
        }


def parts_of(
    model: nn.Module, index: AdapterIndex, names: Sequence[str], weights: Sequence[float], summed: type[Adapter]
) -> Parts:
    """The adapters' parts; those of the class `summed` are the terms. ConfigError if they do not go together."""
    found: dict[str, list[tuple[int, float, Any]]] = {}
    whole: dict[str, tuple[str, Adapter]] = {}
    for i, (name, weight) in enumerate(zip(names, weights, strict=True)):
        for path, adapter in index.placed[name].items():
            if isinstance(adapter, summed):
                found.setdefault(path, []).append((i, weight, adapter))
                continue
            other, _ = whole.setdefault(path, (name, adapter))
            if other != name:
                raise ConfigError.of(
                    "adapters",
                    list(names),
                    "adapters of which one at most trains a module or tokens in full",
                    f"{other!r} and {name!r} both train {path!r}, which has no sum: add one of them alone, or one that "
                    "was made without it.",
                )
    for path in found:
        around = next((p for p in whole if path == p or path.startswith(p + ".")), None)
        if around is not None:
            raise ConfigError.of(
                "adapters",
                list(names),
                "adapters of which none trains in full what another one changes",
                f"{whole[around][0]!r} trains {around!r}, and {names[found[path][0][0]]!r} changes {path!r}.",
            )
    terms = {path: found[path] for path in walk(model) if path in found}
    configs: list[Any] = [index.configs[name] for name in names]
    alike = all(len(at) == len(names) for at in terms.values())
    where = {field: copy.copy(getattr(configs[0], field)) for field in _WHERE}
    return Parts(
        names, weights, configs, terms, whole, index.hosts, where if alike else targets(model, list(terms)), alike
    )
