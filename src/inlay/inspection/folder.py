"""`inspect_adapter`: an adapter's files, looked at without its base.

What is damaged is reported, and what remains is looked at all the same: nothing here refuses a file that loading would.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay import registry
from inlay.config import PeftConfig
from inlay.errors import FileError, InlayError, MismatchError, MissingFileError
from inlay.exporting.readers import rejected_by_vllm
from inlay.inspection.inspection import Inspection, some
from inlay.inspection.layers import Layout, layout_of, product_of
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME, reading
from inlay.io.manifest import read_manifest
from inlay.io.strict_json import read_json
from inlay.io.tensors import looking_up, read_header

_CIRCUMSTANCES = ("target_modules", "task_type")  # shown elsewhere
_HALF = torch.finfo(torch.float16).max


def inspect_adapter(folder: str | Path) -> Inspection:
    """What the files of one adapter hold, and whether they are sound. The base is not loaded, and no pickle is read.

    For methods whose file alone tells (LoRA, AdaLoRA), norms are those of the change of each layer's weight,
    ||s B A||_F = |s| sqrt(<B^T B, A A^T>); for others, of its tensors.

    Raises MissingFileError if there is no `adapter_config.json`. All else that is wrong is in `problems`.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file() and not (folder / MANIFEST_NAME).is_file():
        raise MissingFileError(f"'{folder}' has no {CONFIG_NAME}, so it is not the folder of an adapter.")
    found = Inspection(folder)
    found.files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
    paths, manifest = _files(folder, found)
    config = _config(paths.get(CONFIG_NAME, folder / CONFIG_NAME), found)
    _describe_base(found, config, manifest or {})
    if WEIGHTS_NAME in paths:
        try:
            _weights(paths[WEIGHTS_NAME], config, found)
        except InlayError as error:
            _add(found.problems, str(error))
    elif PICKLE_NAME in paths:
        found.notes.append(
            f"the weights are a pickle, {PICKLE_NAME}, which is not read here: inlay convert makes it safe"
        )
    if found.healthy and config is not None:
        found.vllm = rejected_by_vllm(folder)
    return found


def adapters_in(folder: str | Path) -> list[Path]:
    """The adapter in a folder, that in its `adapter/` (of a run), and those in its other sub-folders.

    Raises MissingFileError if there is none.
    """
    folder = Path(folder)
    inner = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = [p for p in (folder, *inner) if (p / CONFIG_NAME).is_file() or (p / MANIFEST_NAME).is_file()]
    if not found:
        raise MissingFileError(
            f"'{folder}' holds no adapter: expected a folder with {CONFIG_NAME}, a run, or a folder of such folders."
        )
    return found


def _files(folder: Path, found: Inspection) -> tuple[dict[str, Path], dict[str, Any] | None]:
    """The files that are the adapter, and the manifest as far as it can be read."""
    try:
        with reading(folder) as files:
            found.verified = files.verified
            if not files.verified:
                found.notes.append(f"there is no {MANIFEST_NAME}, so damage that leaves numbers behind cannot be seen")
            return dict(files.paths), files.manifest
    except FileError as error:
        found.problems.append(str(error))
    names = (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME)
    manifest = None
    with suppress(FileError):
        manifest = read_manifest(folder)
    return {name: folder / name for name in names if (folder / name).is_file()}, manifest


def _config(path: Path, found: Inspection) -> PeftConfig | None:
    try:
        raw = read_json(path)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            config = PeftConfig.from_dict(raw)
        found.notes += [str(w.message) for w in said]
    except InlayError as error:
        _add(found.problems, str(error))
        return None
    found.method, found.variant = str(config.peft_type), config.variant
    classes = [c for kind in registry.kinds_of(config) if (c := registry.adapter_for(config, kind)) is not None]
    # kinds are in alphabetical order: a formula is plainest on linear layers
    plainest = registry.adapter_for(config, "linear") or next(iter(classes), type(config))
    # as the docstrings have it: formula,  what follows from it.   Where it is from.
    found.formula = re.split(r"(?:,|\.)? {2,}", (plainest.__doc__ or "").strip().splitlines()[0])[0].rstrip(".")
    found.task = None if config.task_type is None else str(getattr(config.task_type, "value", config.task_type))
    found.written_by = f"peft {raw['peft_version']}" if "peft_version" in raw else "peft"
    found.settings = _settings(config)
    return config


def _settings(config: PeftConfig) -> dict[str, Any]:
    data = config.to_dict()
    hidden = {*PeftConfig.circumstances, *_CIRCUMSTANCES}
    changed = {}
    for f in dataclasses.fields(config):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.name not in hidden and f.name in data and getattr(config, f.name) != default:
            changed[f.name] = data[f.name]
    return {**changed, **({"r": data["r"]} if "r" in data else {})}


def _describe_base(found: Inspection, config: PeftConfig | None, manifest: dict[str, Any]) -> None:
    if config is not None:
        found.base = {"name": config.base_model_name_or_path, "revision": config.revision}
    print_of = manifest.get("base")
    if isinstance(print_of, dict):
        found.base |= {
            k: print_of[k] for k in ("class", "vocab_size", "dtype", "config") if print_of.get(k) is not None
        }
    if manifest:
        found.written_by = f"Inlay {manifest.get('inlay', '')}".strip()


def _weights(path: Path, config: PeftConfig | None, found: Inspection) -> None:
    header = read_header(path)
    found.tensors = len(header)
    found.dtypes = dict(Counter(str(info.dtype).removeprefix("torch.") for info in header.values()))
    layout = layout_of(header, config)
    found.targets = dict(Counter(p.rpartition(".")[2] for p in layout.layers))
    if layout.missing:
        found.problems.append(f"no tensor belongs to {some(layout.missing)}, which the config names")
    if layout.strange:
        found.problems.append(f"the config has no place for {some(layout.strange)}")
    looks = _Looks(found)
    with looking_up(path) as tensor:
        for stored in layout.layers.values():
            looks.at({name: tensor(key) for name, key in stored.items()}, stored)
        for key in [*layout.others, *(key for keys in layout.trained.values() for key in keys)]:
            looks.at({key: tensor(key)}, {key: key})
        if config is not None:
            _norms(config, layout, tensor, looks.broken, found)
    looks.tell()


class _Looks:
    """What is seen in tensors one by one: how many numbers, NaN and infinity, what 16 bits cannot hold."""

    def __init__(self, found: Inspection):
        self.found = found
        self.broken: dict[str, int] = {}  # key -> how many numbers are not finite
        self.wide: dict[str, float] = {}  # key -> the largest number, if float16 has none so large

    def at(self, tensors: dict[str, Tensor], keys: dict[str, str]) -> None:
        for name, tensor in tensors.items():
            self.found.parameters += tensor.numel()
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
            if bad := int((~torch.isfinite(values)).sum()):
                self.broken[keys[name]] = bad
            elif (largest := float(values.abs().max())) > _HALF:
                self.wide[keys[name]] = largest

    def tell(self) -> None:
        if self.broken:
            listed = some(f"{key} ({count})" for key, count in self.broken.items())
            self.found.problems.insert(0, f"NaN or infinity in {len(self.broken)} tensors: {listed}")
        if self.wide:
            listed = some(f"{key} ({value:.3g})" for key, value in self.wide.items())
            self.found.notes.append(f"too large for float16, whose largest number is {_HALF:g}: {listed}")


def _norms(
    config: PeftConfig, layout: Layout, tensor: Callable[[str], Tensor], broken: dict[str, int], found: Inspection
) -> None:
    faults: list[str] = []
    dead = of = 0
    ranks: Counter[int] = Counter()
    parts: list[str] = []
    for path, stored in layout.layers.items():
        tensors = {name: tensor(key) for name, key in stored.items()}
        try:
            product = product_of(config, path, tensors)
        except MismatchError as error:
            faults.append(str(error))
            continue
        if any(key in broken for key in stored.values()):
            continue
        if product is None:
            found.norms[path] = float(sum(float(t.double().square().sum()) for t in tensors.values())) ** 0.5
            parts.append("tensors")
            continue
        found.norms[path] = product.norm()
        parts.append("change" if product.whole else "product")
        ranks[product.rank] += 1
        of += product.rank
        dead += product.dead() if found.norms[path] else 0
    found.problems += faults[:3] + ([f"and {len(faults) - 3} more layers like these"] if faults[3:] else [])
    found.ranks, found.dead = dict(ranks), (dead, of)
    found.norms_of = next((name for name in ("tensors", "product") if name in parts), "change" if parts else "tensors")
    idle = [path for path, norm in found.norms.items() if norm == 0.0]
    if found.norms_of == "change" and idle and len(idle) == len(found.norms):
        found.problems.append("untrained: it changes nothing, s B A = 0 in every layer")
    elif idle and found.norms_of != "tensors":
        found.notes.append(f"{len(idle)} of {len(found.norms)} layers change nothing (s B A = 0): {some(idle)}")
    if dead:
        found.notes.append(f"{dead} of {of} ranks are dead ({dead / of:.1%}): their row of A or column of B is 0")


def _add(problems: list[str], problem: str) -> None:
    if not any(problem in other for other in problems):
        problems.append(problem)
