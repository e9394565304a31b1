"""Merging, copy-on-write: merged layers get parameters of their own, the base keeps its.

    W' = a_n(... a_1(W))   b' likewise, in float32 for 16-bit W, rounded once

Undoing is dropping the copy, so it is bit-exact however often. Weights that are tied stay tied when merging gives them
equal values and are untied otherwise: merging into a tied output head never changes the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.adapted import clone_unadapted
from inlay.core.adapter import Adapter
from inlay.core.copies import TrainedModule, TrainedParameters, own_tensors
from inlay.core.host import UNMERGED, canonical, offloaded_to, unmerged_parameters
from inlay.core.index import AdapterIndex
from inlay.core.plan import walk
from inlay.core.skeleton import clone_skeleton
from inlay.errors import NumericsError, StateError


def merge(index: AdapterIndex, names: Sequence[str] | None = None) -> None:
    """Merges adapters (by default the active ones) in place, in the order given.

    Modules trained in full stay as they are: they replace their host anyway.

    Raises StateError if one is merged already or cannot be merged, NumericsError if a merged weight would not be
    finite. Nothing has changed then.
    """
    names = list(dict.fromkeys(names if names is not None else index.active.names))
    index.check_together(names)
    for name in names:
        if index.is_merged(name):
            raise StateError(f"Adapter {name!r} is merged already: call unmerge_adapter() first.")
    merged = _merged_parameters(index, names)
    for path, parameters in merged.items():
        host = index.hosts[path]
        host.__dict__.setdefault(UNMERGED, host._parameters)
        host._parameters = {**host._parameters, **parameters}
    for name in names:
        for adapter in index.placed[name].values():
            adapter.merged = not isinstance(adapter, TrainedModule)
        if any(adapter.merged for adapter in index.placed[name].values()):
            index.merged.append(name)


def unmerge(index: AdapterIndex) -> None:
    """Undoes every `merge`: the hosts have their shared parameters again. Does nothing if nothing is merged."""
    for host in index.hosts.values():
        before = host.__dict__.pop(UNMERGED, None)
        if before is not None:
            host._parameters = before
    for name in index.merged:
        for adapter in index.placed[name].values():
            adapter.merged = False
    index.merged = []


def merge_and_unload(model: Any, index: AdapterIndex, names: Sequence[str] | None = None) -> Any:
    """A plain model of the original class with adapters (by default the active ones) in its weights.

    It shares every other weight with the base and keeps no reference to the view. Errors as in `merge`.
    """
    names = list(dict.fromkeys(names if names is not None else index.active.names))
    index.check_together(names)
    present = [n for n in index.merged if n not in names]
    if present:
        raise StateError(f"{present} is merged into the weights: call unmerge_adapter() or name it too.")
    before = {path: unmerged_parameters(host) for path, host in index.hosts.items()}
    merged = _merged_parameters(index, names, source=before)
    plain = clone_unadapted(model)
    plain.__dict__.pop("_inlay", None)
    plain.__dict__.pop("_base", None)
    clones = walk(plain)
    for path in index.hosts:
        clones[path].__dict__.pop(UNMERGED, None)
        clones[path]._parameters = {**before[path], **merged[path]} if path in merged else before[path]
    for path in index.hosts:
        trained = [a for n in names if isinstance(a := index.placed[n].get(path), TrainedModule)]
        if trained:
            copy = clone_skeleton(trained[-1].module)
            own_tensors(copy)
            for parent in clones.values():  # a shared module has several
                places = [k for k, m in parent._modules.items() if m is clones[path]]
                parent._modules.update(dict.fromkeys(places, copy))
    _note_untied(plain, before, merged)
    for p in plain.parameters():
        p.requires_grad_(False)
    return plain


def _merged_parameters(
    index: AdapterIndex, names: Sequence[str], source: dict[str, Any] | None = None
) -> dict[str, dict[str, nn.Parameter]]:
    """path -> the parameters that merging `names` changes. `source`: path -> the parameters to start from."""
    result: dict[str, dict[str, nn.Parameter]] = {}
    origin: dict[int, list[nn.Parameter]] = {}
    for path in dict.fromkeys(p for n in names for p in index.placed[n]):
        host = index.hosts[path]
        adapters = [index.placed[n][path] for n in names if path in index.placed[n]]
        for trained in (a.module for a in adapters if isinstance(a, TrainedModule)):
            for key, value in trained.named_parameters():
                _check_finite(f"{path}.{key}", value)
        adapters = [a for a in adapters if not isinstance(a, TrainedModule)]
        if not adapters:
            continue
        start = (source or {}).get(path, host._parameters)
        changed = _apply(path, host, start, sorted(adapters, key=lambda a: not a.reads_weight))
        for key, value in changed.items():
            twins = origin.setdefault(id(start[key]), [])
            same = next((t for t in twins if torch.equal(t, value)), None)
            changed[key] = value if same is None else same
            if same is None:
                twins.append(value)
        result[path] = changed
    return result


def _apply(path: str, host: nn.Module, start: Any, adapters: list[Adapter]) -> dict[str, nn.Parameter]:
    """The host's parameters as `adapters`, in order, make them; only those that differ from `start`."""
    if offloaded_to(host) is not None:
        raise StateError(
            f"{path!r} has its weight offloaded by accelerate, which would undo a merge: load the base without "
            "offloading to merge."
        )
    now: dict[str, Tensor] = {}
    with torch.no_grad():
        for adapter in adapters:
            if not adapter.mergeable:
                raise StateError(f"{type(adapter).__name__} at {path!r} {adapter.unmergeable}: it cannot be merged.")
            if isinstance(adapter, TrainedParameters):
                now.update({k: v.detach() for k, v in adapter.copies.items()})
                continue
            w = now.get("weight", start.get("weight"))
            if w is None:
                raise StateError(
                    f"{path!r} computes its weight (torch.nn.utils.parametrize?): it cannot be merged. Make the weight "
                    "a plain parameter first, with remove_parametrizations."
                )
            if not w.is_floating_point() or w.dtype.itemsize < 2:
                raise StateError(
                    f"{path!r} holds a {w.dtype} weight: merging into quantised layers is not supported yet."
                )
            wide = w.float() if w.dtype.itemsize == 2 else w
            now["weight"] = canonical(host, adapter.weight(canonical(host, wide))).contiguous()
            b = now.get("bias", start.get("bias"))
            b_new = adapter.bias(b)
            if b_new is not None and b_new is not b:
                now["bias"] = b_new
    result = {}
    for key, value in now.items():
        value = value.to(start[key].dtype)
        _check_finite(f"{path}.{key}", value)
        result[key] = nn.Parameter(value.detach().clone() if value is now[key] else value, requires_grad=False)
    return result


def _check_finite(name: str, value: Tensor) -> None:
    if value.device.type != "meta" and not bool(torch.isfinite(value).all()):
        raise NumericsError(
            f"Merging would write NaN or infinity into {name} ({value.dtype}). The base is unchanged. "
            "Check the adapter, or merge into a base of a wider dtype."
        )


def _note_untied(model: Any, before: dict[str, Any], merged: dict[str, dict[str, nn.Parameter]]) -> None:
    """If merging untied the output head from the embedding, says so in the model's (own) config."""
    config = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False):
        return
    old = {id(before[path][key]) for path, changed in merged.items() for key in changed}
    if any(id(p) in old for p in model.parameters()) or _versions(before, merged, old):
        config.tie_word_embeddings = False  # type: ignore[union-attr]


def _versions(before: dict[str, Any], merged: dict[str, dict[str, nn.Parameter]], old: set[int]) -> bool:
    """True if two hosts shared one parameter and merging gave them different ones."""
    now: dict[int, set[int]] = {}
    for path, changed in merged.items():
        for key, value in changed.items():
            now.setdefault(id(before[path][key]), set()).add(id(value))
    return any(len(values) > 1 for values in now.values())
