"""Merging, copy-on-write: merged layers get parameters of their own, the base keeps its.

    W' = a_n(... a_1(W))   b' likewise, in float32 for 16-bit W, rounded once

A quantised layer is dequantised, merged, and quantised again as it was; `inlay.merge.report` says what that rounds.

Undoing is dropping the copy, so it is bit-exact however often. Weights that are tied stay tied when merging gives them
equal values and are untied otherwise: merging into a tied output head never changes the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.adapted import clone_unadapted, stand_in
from inlay.core.adapter import Adapter
from inlay.core.copies import TrainedModule, TrainedParameters, own_tensors
from inlay.core.gather import is_sharded
from inlay.core.host import UNMERGED, UNMERGED_ATTRIBUTES, canonical, offloaded_to, unmerged_parameters
from inlay.core.index import AdapterIndex
from inlay.core.plan import walk
from inlay.core.skeleton import clone_skeleton
from inlay.errors import NumericsError, StateError
from inlay.merge.dense import make_dense
from inlay.merge.progress import progress
from inlay.merge.report import MergeReport, Rounding
from inlay.quant import Replacement, backend_of, dequantised, requantised


@dataclass
class _Merged:
    """What merging makes of one host: parameters and attributes that change, and of a quantised one W'."""

    parameters: dict[str, nn.Parameter]
    attributes: dict[str, Any] = field(default_factory=dict)
    weight: Tensor | None = None
    rounding: Rounding | None = None


def merge(index: AdapterIndex, names: Sequence[str] | None = None) -> None:
    """Merges adapters (by default the active ones) in place, in the order given.

    Modules trained in full replace their host anyway; they lend it their parameters, so that the model's, by name, are
    those that it computes with.

    Warns with what merging into quantised layers rounded away, which `index.report` says of every layer.

    Raises StateError if one is merged already or cannot be merged, NumericsError if a merged weight would not be
    finite. Nothing has changed then.
    """
    remerge(index, list(names if names is not None else index.active.names)).warn()


def remerge(index: AdapterIndex, names: Sequence[str]) -> MergeReport:
    """`merge` without its warning: for adapters that were merged before."""
    names = list(dict.fromkeys(names))
    index.check_together(names)
    for name in names:
        if index.is_merged(name):
            raise StateError(f"Adapter {name!r} is merged already: call unmerge_adapter() first.")
    merged = _merged_hosts(index, names)
    for path, made in merged.items():
        host = index.hosts[path]
        host.__dict__.setdefault(UNMERGED, host._parameters)
        host._parameters = {**host._parameters, **made.parameters}
        before = {k: host.__dict__.get(k) for k in made.attributes}
        host.__dict__[UNMERGED_ATTRIBUTES] = {**before, **host.__dict__.get(UNMERGED_ATTRIBUTES, {})}
        host.__dict__.update(made.attributes)
    for name in names:
        for path, adapter in index.placed[name].items():
            adapter.merged = not isinstance(adapter, TrainedModule)
            if isinstance(adapter, TrainedModule):
                adapter.lend(index.hosts[path])
        if any(adapter.merged for adapter in index.placed[name].values()):
            index.merged.append(name)
    index.report = report = _report(merged)
    return report


def unmerge(index: AdapterIndex) -> None:
    """Undoes every `merge`: the hosts have their shared parameters again. Does nothing if nothing is merged."""
    for host in index.hosts.values():
        for module in host.modules():
            before = module.__dict__.pop(UNMERGED, None)
            if before is not None:
                module._parameters = before
        host.__dict__.update(host.__dict__.pop(UNMERGED_ATTRIBUTES, {}))
    for name in index.merged:
        for adapter in index.placed[name].values():
            adapter.merged = False
    index.merged, index.report = [], None


def merge_and_unload(
    model: Any,
    index: AdapterIndex,
    names: Sequence[str] | None = None,
    dequantize: bool | torch.dtype = False,
    progressbar: bool = False,
) -> Any:
    """A plain model of the original class with adapters (by default the active ones) in its weights.

    It shares every other weight with the base and keeps no reference to the view. Errors and warning as in `merge`; if
    quantised layers were merged, its `merge_report` is what was rounded away.

    Args:
        dequantize: make quantised layers dense, merged or not, so that nothing is rounded but to their dtype: that of
            most of the model's dense numbers or, if a dtype is given, that one, for all parameters. The result is no
            quantised model any more, nor is its config that of one.
    """
    names = list(dict.fromkeys(names if names is not None else index.active.names))
    index.check_together(names)
    present = [n for n in index.merged if n not in names]
    if present:
        raise StateError(f"{present} is merged into the weights: call unmerge_adapter() or name it too.")
    before = {path: unmerged_parameters(host) for path, host in index.hosts.items()}
    merged = _merged_hosts(index, names, source=before, dense=dequantize, progressbar=progressbar)
    plain = clone_unadapted(model)
    plain.__dict__.pop("_inlay", None)
    plain.__dict__.pop("_base", None)
    clones = walk(plain)
    for path in index.hosts:
        clones[path].__dict__.pop(UNMERGED, None)
        clones[path].__dict__.update(clones[path].__dict__.pop(UNMERGED_ATTRIBUTES, {}))
        clones[path]._parameters = {**before[path], **merged[path].parameters} if path in merged else before[path]
        clones[path].__dict__.update(merged[path].attributes if path in merged else {})
    for path in index.hosts:
        trained = [a for n in names if isinstance(a := index.placed[n].get(path), TrainedModule)]
        if trained:
            copy = clone_skeleton(trained[-1].module)
            own_tensors(copy)
            for parent in clones.values():  # a shared module has several
                places = [k for k, m in parent._modules.items() if m is clones[path]]
                parent._modules.update(dict.fromkeys(places, copy))
    if dequantize is not False:
        weights = {id(clones[path]): made.weight for path, made in merged.items() if made.weight is not None}
        make_dense(plain, weights, dequantize if isinstance(dequantize, torch.dtype) else None)
    _note_untied(plain, before, {path: made.parameters for path, made in merged.items()})
    for p in plain.parameters():
        p.requires_grad_(False)
    report = _report(merged)
    if report.layers:
        plain.merge_report = report
        report.warn()
    return plain


def _report(merged: Mapping[str, _Merged]) -> MergeReport:
    return MergeReport([made.rounding for made in merged.values() if made.rounding is not None])


def _merged_hosts(
    index: AdapterIndex,
    names: Sequence[str],
    source: dict[str, Any] | None = None,
    dense: bool | torch.dtype = False,
    progressbar: bool = False,
) -> dict[str, _Merged]:
    """path -> what merging `names` changes there.

    Args:
        source: path -> the parameters to start from; by default those that the host has.
        dense: leave the weights of quantised layers dense; if a dtype, all that is merged has that.
    """
    result: dict[str, _Merged] = {}
    origin: dict[int, list[nn.Parameter]] = {}
    paths = dict.fromkeys(p for n in names for p in index.placed[n])
    for path in progress(paths, "Merging", progressbar):
        host = index.hosts[path]
        adapters = [index.placed[n][path] for n in names if path in index.placed[n]]
        for trained in (a.module for a in adapters if isinstance(a, TrainedModule)):
            for key, value in trained.named_parameters():
                _check_finite(f"{path}.{key}", value)
        adapters = [a for a in adapters if not isinstance(a, TrainedModule)]
        if not adapters:
            continue
        start = (source or {}).get(path, host._parameters)
        attributes = {} if source is None else host.__dict__.get(UNMERGED_ATTRIBUTES, {})
        layer = stand_in(host, _parameters=start, **attributes)
        made = _apply(path, layer, sorted(adapters, key=lambda a: not a.reads_weight), dense)
        for key, value in made.parameters.items() if made.weight is None else ():
            twins = origin.setdefault(id(start[key]), [])
            same = next((t for t in twins if torch.equal(t, value)), None)
            made.parameters[key] = value if same is None else same
            if same is None:
                twins.append(value)
        result[path] = made
    return result


def _apply(path: str, host: Any, adapters: list[Adapter], dense: bool | torch.dtype) -> _Merged:
    """What `adapters`, in order, make of a layer: its parameters that differ, and of a quantised one W' as well."""
    start, backend = host._parameters, backend_of(host)
    if offloaded_to(host) is not None:
        raise StateError(
            f"{path!r} has its weight offloaded by accelerate, which would undo a merge: load the base without "
            "offloading to merge."
        )
    if any(is_sharded(p) for p in start.values()):
        raise StateError(
            f"{path!r} is sharded over processes (FSDP or ZeRO-3), which would put the weight it gathers in the merged "
            "one's place: save the adapter, and merge it in one process."
        )
    now: dict[str, Tensor] = {}
    with torch.no_grad():
        for adapter in adapters:
            if not adapter.mergeable:
                raise StateError(f"{type(adapter).__name__} at {path!r} {adapter.unmergeable}: it cannot be merged.")
            if isinstance(adapter, TrainedParameters):
                now.update({k: v.detach() for k, v in adapter.copies.items()})
                continue
            w = now.get("weight")
            if w is None:
                w = start.get("weight") if backend is None else dequantised(host)
            if w is None:
                raise StateError(
                    f"{path!r} computes its weight (torch.nn.utils.parametrize?): it cannot be merged. Make the weight "
                    "a plain parameter first, with remove_parametrizations."
                )
            if not w.is_floating_point() or w.dtype.itemsize < 2:
                raise StateError(
                    f"{path!r} holds a {w.dtype} weight, quantised in a way that is not known: it cannot be merged."
                )
            wide = w.float() if w.dtype.itemsize == 2 else w
            now["weight"] = canonical(host, adapter.weight(canonical(host, wide))).contiguous()
            b = now.get("bias", getattr(host, "bias", None))
            b_new = adapter.bias(b)
            if b_new is not None and b_new is not b:
                now["bias"] = b_new
        wanted = now.pop("weight", None) if backend is not None else None
        result = {}
        for key, value in now.items():
            value = value.to(dense if isinstance(dense, torch.dtype) else getattr(host, key).dtype)
            _check_finite(f"{path}.{key}", value)
            result[key] = nn.Parameter(value.detach().clone() if value is now[key] else value, requires_grad=False)
        return _Merged(result) if wanted is None else _quantised(path, host, wanted, result, dense is not False)


def _quantised(path: str, host: Any, wanted: Tensor, changed: dict[str, nn.Parameter], dense: bool) -> _Merged:
    """What a quantised layer holds for W', `wanted`. `changed`: its other parameters that merging changes."""
    _check_finite(f"{path}.weight", wanted)
    # a bias may be a buffer, or a plain attribute
    own = {k: v for k, v in changed.items() if k in host._parameters}
    others = {k: v.detach() for k, v in changed.items() if k not in own}
    if dense:
        return _Merged(own, others, wanted)
    made: Replacement = requantised(host, wanted)
    stored = dequantised(stand_in(host, _parameters={**host._parameters, **made.parameters}, **made.attributes))
    _check_finite(f"{path}.weight", stored)
    rounding = Rounding.of(path, backend_of(host).name, stored, wanted, dequantised(host))  # type: ignore[union-attr]
    return _Merged({**own, **made.parameters}, {**others, **made.attributes}, wanted, rounding)


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
