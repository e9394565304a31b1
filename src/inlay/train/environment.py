"""What a run is run on, `environment.json`: versions, device, seed, data, base; and what of it has changed since."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from inlay.recipe.recipe import Recipe

_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "tokenizers",
    "datasets",
    "bitsandbytes",
    "deepspeed",
)


def environment_of(
    recipe: Recipe, config: Any, rows: Any, held_out: Any, *, processes: int, sharded: str | None
) -> dict[str, Any]:
    """All of it, as it is now. The config is the base's, the rows are as `load_rows` gives them."""
    import torch

    from inlay.io.save import version
    from inlay.recipe.rows import described

    cuda = torch.cuda.is_available() and recipe.train.device == "auto"
    return {
        "inlay": version(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "processes": processes,
        "sharded": sharded,
        "seed": recipe.train.seed,
        "command": shlex.join(sys.argv),
        "began": time.time(),
        "data": {"train": described(rows), "eval": None if held_out is None else described(held_out)},
        "base": {
            "name": recipe.resolved()["model"]["name"],
            "commit": getattr(config, "_commit_hash", None),
            "class": (config.architectures or [None])[0],
            "model_type": config.model_type,
        },
    }


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs and makes another run: rows, processes, the base."""
    found = []
    for part in ("train", "eval"):
        before, after = old["data"][part] or {}, new["data"][part] or {}
        if (before.get("sha256"), before.get("rows")) != (after.get("sha256"), after.get("rows")):
            found.append(
                f"the rows of data.{part} ({before.get('rows')} with sha256 {str(before.get('sha256'))[:12]} -> "
                f"{after.get('rows')} with {str(after.get('sha256'))[:12]})"
            )
    told = {"processes": "the number of processes", "sharded": "what cuts the base up", "base": "the base"}
    return found + [f"{said} ({old.get(k)} -> {new[k]})" for k, said in told.items() if old.get(k) != new[k]]


def other_versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`torch 2.12.0 -> 2.13.0`, for what may change the last bits."""
    names = ("inlay", *_PACKAGES, "device")
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
