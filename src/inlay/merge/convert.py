"""Adapters of any method as LoRA: the best approximation, of a given rank, of what they change in the weights.

D = weight(W) - W = U S V^T,   A = V_k^T,   B = U_k S_k,   s = 1

k: the rank, or the least one that keeps a share of the energy, the sum of the squares in S. Where D has no higher rank
than k, as that of LoRA, of VeRA and of MiSS, the result is exact; elsewhere it is as close as any LoRA of that rank can
be, and a report says how close. A convolution's D is taken as a matrix for each group, an embedding's transposed, as
LoRA on such layers sees it.

An anchored LoRA (PiSSA, ...), which is one of rank 2r, needs no decomposition: see `inlay.as_plain_lora`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inlay import registry
from inlay.config import PeftConfig
from inlay.core.adapter import Adapter
from inlay.core.classes import original_class
from inlay.core.copies import TrainedModule
from inlay.core.host import kind_of, site
from inlay.core.index import AdapterIndex, index_of
from inlay.core.plan import plan
from inlay.core.skeleton import unwrapped
from inlay.errors import ConfigError, NumericsError
from inlay.inject import aliases_of, describe_base
from inlay.io.fingerprint import fingerprint
from inlay.io.folder import CONFIG_NAME, WEIGHTS_NAME, write_folder
from inlay.io.keys import key_of
from inlay.io.save import version
from inlay.io.strict_json import dump_json
from inlay.io.tensors import pack_tensors
from inlay.merge.exactly import lora_of, targets
from inlay.merge.progress import progress
from inlay.methods.lora.config import LoraConfig
from inlay.methods.lora.inits import readable


@dataclass(frozen=True)
class ConversionReport:
    """How close a LoRA is to the adapter that it was made of.

    Attributes:
        ranks: path of a layer -> rank of its LoRA.
        errors: path of a layer -> ||D - B A|| / ||D||, Frobenius norms; 0 if D is 0.
    """

    ranks: dict[str, int]
    errors: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The layer with the largest error, and that error."""
        return max(self.errors.items(), key=lambda item: item[1])

    def __str__(self) -> str:
        path, error = self.worst
        low, high = min(self.ranks.values()), max(self.ranks.values())
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        return f"{len(self.ranks)} layers, {ranks}; largest relative error {error:.2e}, at {path!r}"


@dataclass(frozen=True)
class Conversion:
    """A LoRA made of another adapter: its config, its tensors as keyed in its file, and how close it is."""

    config: LoraConfig
    state_dict: dict[str, Tensor]
    report: ConversionReport


def convert_to_lora(
    model: nn.Module,
    rank: int | float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The config and the tensors, keyed as in `adapter_model.safetensors`, of the LoRA nearest to an adapter.

    Nothing is changed. Modules trained in full come along. `approximate` gives the errors as well.

    Args:
        model: a view, or a model changed by `inject_adapter_in_model`.
        rank: a rank (an integer; layers with less, and those with groups that do not divide it, get what fits), or the
            share of the energy that is kept in each layer, in (0, 1], which gives each layer a rank of its own.
        adapter_name: the adapter.
        progressbar: show one; decompositions of large layers take seconds each.
        compile_kwargs: arguments of `torch.compile`, to compile the decomposition with.

    Raises:
        ConfigError: `rank` is neither, or the adapter is no change of weights alone, all in layers that LoRA can adapt.
            The message names the layer.
        StateError: there is no such adapter, or a weight cannot be read. NumericsError: a changed weight is not finite.
    """
    made = approximate(model, rank, adapter_name, progressbar, compile_kwargs)
    return made.config, made.state_dict


def save_as_lora(
    path: str | Path,
    model: nn.Module,
    rank: int | float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> ConversionReport:
    """Writes the LoRA nearest to an adapter to the folder `path`; arguments and errors as in `convert_to_lora`."""
    made = approximate(model, rank, adapter_name, progressbar, compile_kwargs)
    index = index_of(unwrapped(model))
    brought = {id(p) for at, a in index.placed[adapter_name].items() for p in a.brings(index.hosts[at])}
    files = {CONFIG_NAME: dump_json(made.config.to_dict()), WEIGHTS_NAME: pack_tensors(made.state_dict)}
    write_folder(Path(path), files, {"inlay": version(), "base": fingerprint(unwrapped(model), brought)})
    return made.report


def supports_lora_conversion(model: nn.Module, adapter_name: str = "default") -> bool:
    """Whether `convert_to_lora` takes this adapter."""
    index = index_of(unwrapped(model))
    index.require(adapter_name)
    return _obstacle(index, adapter_name) is None


def approximate(
    model: nn.Module,
    rank: int | float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> Conversion:
    """`convert_to_lora`, with a report of its errors."""
    allowed = 0 < rank <= 1 if isinstance(rank, float) else isinstance(rank, int) and rank > 0
    if isinstance(rank, bool) or not allowed:
        raise ConfigError.of("rank", rank, "a positive integer, or a share of the energy in (0, 1]")
    model = unwrapped(model)
    index = index_of(model)
    index.require(adapter_name)
    obstacle = _obstacle(index, adapter_name)
    if obstacle is not None:
        raise ConfigError(
            f"Adapter {adapter_name!r} ({index.configs[adapter_name].peft_type}) cannot be written as LoRA: {obstacle}",
            "adapter_name",
            adapter_name,
        )
    placed = index.placed[adapter_name]
    layers = [path for path, adapter in placed.items() if type(adapter) is not TrainedModule]
    svd: Any = torch.linalg.svd if compile_kwargs is None else torch.compile(torch.linalg.svd, **compile_kwargs)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    errors: dict[str, float] = {}
    with torch.no_grad():
        for path in progress(layers, "Converting to LoRA", progressbar):
            found[path], errors[path] = _nearest(path, index.hosts[path], placed[path], rank, svd)
    ranks = {path: a.shape[0] * a.shape[1] for path, (a, _) in found.items()}
    wanted = _config(model, index.configs[adapter_name], ranks, placed.keys() - ranks.keys())
    placements, config = plan(model, wanted, aliases=aliases_of(model), init=False)
    describe_base(config, model)
    assert isinstance(config, LoraConfig)
    tensors: dict[str, Tensor] = {}
    for path, made in ((p.path, p.adapter) for p in placements):
        own: Any = made
        if path in found:
            a, b = found[path]
            tensors[key_of(path, own.a_key)] = a.reshape(own.A.shape).contiguous()
            tensors[key_of(path, own.b_key)] = b.reshape(own.B.shape).contiguous()
        else:
            tensors.update({key_of(path, name): t.detach() for name, t in placed[path].tensors().items()})
    return Conversion(config, tensors, ConversionReport(ranks, errors))


def _obstacle(index: AdapterIndex, name: str) -> str | None:
    """Why LoRA cannot be what adapter `name` is; None if it can."""
    layers = 0
    for path, adapter in index.placed[name].items():
        if type(adapter) is TrainedModule:  # comes along
            continue
        host: Any = index.hosts[path]
        what, b = type(adapter).__name__, getattr(host, "bias", None)
        if not adapter.mergeable:
            return f"{what} at {path!r} {adapter.unmergeable}."
        if adapter.replaces_host or registry.adapter_for(LoraConfig(), kind_of(host) or registry.ANY) is None:
            all_of = "all of " if adapter.replaces_host else ""
            return f"{what} at {path!r} changes {all_of}a {original_class(host).__name__}, which LoRA cannot."
        with torch.no_grad():
            if adapter.bias(b) is not b:
                return f"{what} at {path!r} changes the bias too, where LoRA changes weights alone."
        layers += 1
    return None if layers else "it changes no linear layer, embedding or convolution."


def _nearest(
    path: str, host: nn.Module, adapter: Adapter, rank: int | float, svd: Any
) -> tuple[tuple[Tensor, Tensor], float]:
    """A: (g, k, columns) and B: (g, rows, k) of one layer with g groups, and ||D - B A|| / ||D||."""
    w = readable("converting it to LoRA", path, host)
    wide = w.double()
    d = _as_matrices(path, host, adapter.weight(wide) - wide)
    if not bool(torch.isfinite(d).all()):
        raise NumericsError(f"What {type(adapter).__name__} at {path!r} changes is not finite: check the adapter.")
    u, s, v = svd(d if w.dtype == torch.float64 else d.float(), full_matrices=False)
    k = _rank(s, rank, max(d.shape[1:]))
    kept = next((p.dtype for p in adapter.parameters() if p.is_floating_point()), s.dtype)
    a, b = v[:, :k].to(kept), (u[..., :k] * s[:, None, :k]).to(kept)
    length = float(d.norm())
    return (a, b), float((d - b.double() @ a.double()).norm()) / length if length else 0.0


def _rank(s: Tensor, rank: int | float, size: int) -> int:
    """k for singular values s: (g, n), descending, of matrices of at most `size` rows or columns."""
    g, n = s.shape
    if isinstance(rank, int):
        return min(-(-rank // g), n)
    energy = s.double().square().sum(0)
    noise = g * (float(s.max()) * size * torch.finfo(s.dtype).eps) ** 2  # what rounding leaves where D has none
    kept = torch.where(energy > noise, energy, 0.0).cumsum(0)
    return min(int((kept < rank * kept[-1]).sum()) + 1, n)


def _as_matrices(path: str, host: nn.Module, d: Tensor) -> Tensor:
    """D as LoRA on this host sees it: (g, rows, columns)."""
    kind = kind_of(host) or registry.ANY
    cls: Any = registry.adapter_for(LoraConfig(), kind)
    seat = cls(LoraConfig(r=getattr(host, "groups", 1)), site(path, host, kind, on_meta=True))
    found: Tensor = seat.matrices(d)
    return found


def _config(model: nn.Module, source: PeftConfig, ranks: Mapping[str, int], whole: Collection[str]) -> LoraConfig:
    """The config of a LoRA of these ranks, by path, with what `source` says of its circumstances.

    `whole`: paths of the modules that are trained in full. (`source` may name more: peft names every head it knows.)
    """
    kept = {
        name: getattr(source, name) for name in ("task_type", "base_model_name_or_path", "revision", "auto_mapping")
    }
    heads = {n: None for n in source.modules_to_save or () if any(path.endswith(n) for path in whole)}
    heads.update({path: None for path in whole if not path.endswith(tuple(heads))})  # known by an earlier name
    return lora_of(
        ranks, **targets(model, list(ranks)), **kept, modules_to_save=list(heads) or None, inference_mode=True
    )
