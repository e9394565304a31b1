"""Planning: everything that can fail about adding an adapter happens here, before the model is touched."""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from inlay import registry
from inlay.config import AdapterConfig, PeftConfig
from inlay.core.adapted import check_reachable, is_adapted
from inlay.core.adapter import Adapter
from inlay.core.classes import original_class
from inlay.core.copies import TrainedModule
from inlay.core.gather import gathered
from inlay.core.host import end_of, kind_of, offloaded_to, site, unreached_children
from inlay.core.targets import ALL_LINEAR, matches_name, meant_by, select
from inlay.errors import ConfigError, InlayWarning, TargetError


@dataclass(frozen=True)
class Placement:
    """One adapter and the module it is meant for."""

    path: str
    host: nn.Module
    adapter: Adapter


def walk(root: nn.Module) -> dict[str, nn.Module]:
    """path -> module of everything under `root` but adapters; a shared module has its first path only."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, path: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        found[path] = module
        adapted = is_adapted(module)
        for name, child in module._modules.items():
            if child is not None and not (adapted and name == "adapters"):
                visit(child, f"{path}.{name}" if path else name)

    visit(root, "")
    return found


def check_adapter_name(name: object, existing: Collection[str]) -> str:
    """`name` if it can be an adapter's name: letters, digits, `_` and `-`, at most 64, and new even in another case."""
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[\w-]{1,64}", name)
        or unicodedata.normalize("NFC", name) != name
    ):
        raise ConfigError.of("adapter_name", name, "1 to 64 letters, digits, '_' or '-'")
    if hasattr(nn.ModuleDict(), name) or name == "__base__":
        raise ConfigError.of("adapter_name", name, "a name that torch's ModuleDict does not use itself")
    for other in existing:
        if other == name:
            raise ConfigError.of("adapter_name", name, f"a name not in use (in use: {', '.join(existing)})")
        if other.casefold() == name.casefold():
            raise ConfigError.of("adapter_name", name, f"a name that differs from {other!r} in more than case")
    return name


def model_type_of(root: nn.Module) -> str:
    """By what name methods know their default targets in `root`: transformers' `model_type`, else the class's name."""
    return getattr(getattr(root, "config", None), "model_type", None) or original_class(root).__name__


def no_aliases() -> Mapping[str, str]:
    """No module has an earlier name."""
    return {}


def plan(
    root: nn.Module,
    config: PeftConfig,
    *,
    heads: Collection[str] = (),
    aliases: Callable[[], Mapping[str, str]] = no_aliases,
    keep_base_dtype: bool = False,
    init: bool = True,
) -> tuple[list[Placement], PeftConfig]:
    """The adapters that `config` puts into `root`, and the config as it is kept: with the targets' names of today.

    Args:
        heads: modules trained in full along with the adapter if the model has them (a task's head).
        aliases: computes path -> name in earlier releases of the model's library.
        keep_base_dtype: adapters take a 16-bit base's dtype instead of float32.
        init: initialise the adapters; False leaves them without memory (on meta), to be loaded.

    Raises TargetError or ConfigError; nothing has changed then.
    """
    modules = walk(root)
    lasting = functools.cache(aliases)
    trained = _modules_to_save(config, modules, heads, lasting)
    unreached = {f"{p}.{c}" if p else c for p, m in modules.items() for c in unreached_children(m)}
    free = {p: m for p, m in modules.items() if not any(p == t or p.startswith(t + ".") for t in trained)}
    chosen: list[str] = []
    if isinstance(config, AdapterConfig):
        model_type = model_type_of(root)
        chosen, renamed = select(
            config,
            free,
            default=config.targets_in(free, model_type),
            linear=_linear_paths(root, free) - unreached,
            aliases=lasting,
        )
        config = _resolved(config, chosen, renamed, free)
        config.settle(model_type, chosen, lasting)
    else:
        config = config.copy()
    config.note([h for h in heads if any(p.endswith(h) for p in trained)], [modules[path] for path in chosen])
    makers: list[tuple[str, Callable[..., Adapter]]] = [(p, _class_for(config, p, modules[p])) for p in chosen]
    makers += config.companions(free, chosen)
    makers += [(path, TrainedModule) for path in trained]
    sites = [site(p, modules[p], kind_of(modules[p]) or registry.ANY, keep_base_dtype, not init) for p, _ in makers]
    bank = config.bank(sites[: len(chosen)])
    placements = []
    for (_, make), at in zip(makers, sites, strict=True):
        with gathered(at.module.parameters()):  # a copy of the host may be part of the adapter
            placements.append(Placement(at.path, at.module, make(config, replace(at, bank=bank))))
    if not placements:
        given = getattr(config, "target_modules", config.modules_to_save)
        raise TargetError.of("target_modules", given, "at least one module to adapt or train")
    _check_hosts(placements, unreached)
    if init:
        with torch.no_grad():
            for p in placements:
                with gathered(p.host.parameters()):
                    p.adapter.reset(p.host)
    return placements, config


def _class_for(config: PeftConfig, path: str, host: nn.Module) -> type[Adapter]:
    """The adapter class for a target. Raises TargetError if the method has none for such modules."""
    cls = registry.adapter_for(config, kind_of(host) or registry.ANY)
    if cls is None:
        raise TargetError(
            f"target_modules: {path!r} is a {type(host).__name__}, which {config.peft_type} cannot adapt (it "
            f"adapts: {', '.join(registry.kinds_of(config))}). Name layers inside it.",
            "target_modules",
            path,
        )
    return cls


def _check_hosts(placements: list[Placement], unreached: Collection[str]) -> None:
    seen: set[str] = set()
    for p in placements:
        if p.path in unreached:
            raise TargetError(
                f"{p.path!r} is not called by its parent, which reads its weights directly (on some paths at least): "
                "adapting or training it would have no effect. Leave it out, or take the module around it."
            )
        if original_class(p.host).forward is nn.Module.forward:
            raise TargetError(
                f"{p.path!r} is a {original_class(p.host).__name__}, a container that is never called: name the "
                "modules in it."
            )
        check_reachable(p.host)
        if p.adapter.reads_weight and offloaded_to(p.host) is not None:
            raise TargetError(
                f"{p.path!r} cannot be trained in full, nor by a method that needs its weight: accelerate keeps that "
                "weight elsewhere (offloaded). Give this module a device in the device_map."
            )
        if p.path in seen:
            raise TargetError(
                f"{p.path!r} is meant twice: by target_modules and as a module or tokens to train in full."
            )
        seen.add(p.path)


def _modules_to_save(
    config: PeftConfig,
    modules: Mapping[str, nn.Module],
    heads: Collection[str],
    aliases: Callable[[], Mapping[str, str]],
) -> list[str]:
    """Paths of the modules to train in full: those that end in a name, be it in mid-word, as in peft.

    The task's `heads` may be absent; names the user gave may not.
    """
    given = [n for n in config.modules_to_save or () if n not in heads]
    found = set(meant_by(given, "modules_to_save", modules, aliases, str.endswith)[0]) if given else set()
    found.update(p for p in modules if p.endswith(tuple(heads)))
    outermost = [p for p in modules if p in found and not any(p.startswith(q + ".") for q in found)]
    return outermost


def _linear_paths(root: Any, modules: Mapping[str, nn.Module]) -> set[str]:
    """What `"all-linear"` means: every linear layer but the output head."""
    head = end_of(root, "output")
    return {p for p, m in modules.items() if p and m is not head and kind_of(m) == "linear"}


def _resolved(
    config: AdapterConfig, chosen: list[str], renamed: list[str], modules: Mapping[str, nn.Module]
) -> AdapterConfig:
    """A copy of `config` that says what it found: defaults, "all-linear" and earlier names become names of today."""
    config = config.copy()
    if not renamed and config.target_modules not in (None, ALL_LINEAR):
        return config
    names = shortest_names(chosen, modules)
    found = config.replaced(target_modules=names, layers_to_transform=None, layers_pattern=None, exclude_modules=None)
    if not renamed or config.target_modules is None:
        return found
    warnings.warn(
        f"target_modules={config.target_modules!r} uses module names of an earlier transformers release; in the "
        f"installed one they are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}. Both work; the saved "
        "config has today's.",
        InlayWarning,
        stacklevel=2,
    )
    return found


def shortest_names(paths: list[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """`target_modules` that mean `paths`, given in the model's order: their last names if these mean nothing else."""
    names = sorted({p.rsplit(".", 1)[-1] for p in paths})
    return names if [p for p in modules if any(matches_name(p, n) for n in names)] == paths else list(paths)
