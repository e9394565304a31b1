"""How several processes share a run: what the recipe, or the launcher that started them, says of it.

Every process trains on rows of its own, and gradients are averaged (DDP). The base may be cut up over them besides:
by FSDP2 (`parallel.fsdp`) or DeepSpeed's ZeRO (`parallel.deepspeed`), or by what `accelerate launch` was told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from inlay.errors import ConfigError, MissingFileError, StateError, did_you_mean, optional
from inlay.recipe.recipe import Recipe

_LAUNCHER = {"fsdp": "ACCELERATE_USE_FSDP", "deepspeed": "ACCELERATE_USE_DEEPSPEED"}


def sharding(recipe: Recipe) -> str | None:
    """What cuts the base up: "fsdp", "deepspeed" or None. Raises ConfigError where recipe and launcher disagree."""
    how = recipe.parallel
    asked = "deepspeed" if how.deepspeed else "fsdp" if how.fsdp != "none" else None
    told = next((name for name, key in _LAUNCHER.items() if os.environ.get(key, "").lower() in ("1", "true")), None)
    if asked and told and asked != told:
        raise ConfigError(f"The recipe has parallel.{asked}, and accelerate's launcher was told {told}: take one away.")
    return asked or told


def sharding_arguments(recipe: Recipe) -> dict[str, Any]:
    """As `TrainingArguments` has it. Raises MissingFileError, MissingExtraError; ConfigError for too few processes."""
    how = recipe.parallel
    if how.deepspeed is not None:
        optional("deepspeed", "deepspeed")
        if not Path(how.deepspeed).is_file():
            raise MissingFileError(f"parallel.deepspeed: there is no file '{how.deepspeed}'.")
        return {"deepspeed": how.deepspeed}
    if how.fsdp == "none":
        return {}
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise ConfigError(
            f"parallel.fsdp={how.fsdp!r} cuts the base up over processes, and this is one. Start several, e.g. "
            "torchrun --nproc_per_node 2 -m inlay train recipe.yaml"
        )
    config: dict[str, Any] = {
        "version": 2,
        "reshard_after_forward": how.fsdp == "full_shard",
        "cpu_offload": how.cpu_offload,
    }
    if how.wrap is not None:
        config["transformer_layer_cls_to_wrap"] = [how.wrap]
    # what is offloaded, or gathered for a checkpoint, lies in the memory of the CPU, for which NCCL alone has nothing
    backend = {"ddp_backend": "cuda:nccl,cpu:gloo"} if torch.cuda.is_available() else {}
    return {"fsdp": True, "fsdp_config": config, **backend}


def check_processes(recipe: Recipe, arguments: Any) -> None:
    """Raises StateError if processes would train apart; ConfigError if the base shall be cut up over CPUs.

    accelerate lets both pass, and says nothing.
    """
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) != arguments.world_size:
        raise StateError(
            f"{started} processes were started (WORLD_SIZE), but accelerate joined {arguments.world_size}: each would "
            "train alone, and write to the same folder. Set train.device to cpu, or see `accelerate env`."
        )
    if sharding(recipe) == "fsdp" and str(arguments.distributed_state.distributed_type).endswith("MULTI_CPU"):
        raise ConfigError("FSDP cuts a base up over GPUs, and these processes have none: leave parallel.fsdp out.")


def check_layers(recipe: Recipe, model: Any) -> None:
    """Raises ConfigError if the base has no layers of the class `parallel.wrap`."""
    names = sorted({type(module).__name__ for module in model.modules()})
    if recipe.parallel.wrap is not None and recipe.parallel.wrap not in names:
        own = ", ".join(getattr(model, "_no_split_modules", None) or names)
        raise ConfigError(
            f"parallel.wrap={recipe.parallel.wrap!r} is no class of a module of the base, whose layers are: {own}."
            + did_you_mean(recipe.parallel.wrap, names)
        )


def effective(recipe: Recipe, processes: int, steps: int) -> str:
    """`effective batch 32 = 4 rows x 4 passes x 2 processes, 310 steps`."""
    what = "packs" if recipe.data.packing else "rows"
    shares = f" x {processes} processes" if processes > 1 else ""
    whole = recipe.per_pass * recipe.passes * processes
    return f"effective batch {whole} = {recipe.per_pass} {what} x {recipe.passes} passes{shares}, {steps} steps"


def several() -> bool:
    """Whether this process is one of several that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def own_environment() -> Iterator[None]:
    """Forgets, at the end of the block, what accelerate left in the environment for a next run to find."""
    before = {key: os.environ.get(key) for key in _LAUNCHER.values()}
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def leave() -> None:
    """Ends this process's part in the group, as a script does that has nothing more to train."""
    if several():
        torch.distributed.destroy_process_group()
