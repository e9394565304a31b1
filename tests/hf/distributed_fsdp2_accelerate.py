"""Run by `test_processes.py` in two processes: views under FSDP2 as accelerate prepares it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import inlay.peft

if sys.argv[2:] == ["resume"]:  # the other run is without: there accelerate knows nothing of adapters
    inlay.peft.install()

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import load_fsdp_model, save_fsdp_model

from . import tiny
from .processes import METHODS, STEPS, admit_cpu, optimizer_of, refused, share, train, view_of

UNFIT = ("adalora",)


def accelerator_of(kind: str = "FULL_STATE_DICT", **changes: Any) -> Accelerator:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        state_dict_type=kind,
        cpu_ram_efficient_loading=False,
    )
    return Accelerator(fsdp_plugin=plugin, **changes)


def every_method(accelerator: Any, folder: Path) -> dict[str, Any]:
    """method -> losses and outputs; the adapter is saved in a folder of that name."""
    found = {}
    for method in METHODS:
        if method in UNFIT:
            continue
        view = view_of(method)
        view, optimizer = accelerator.prepare(view, optimizer_of(view))
        assert isinstance(view.model.layers[0], FSDPModule) and isinstance(next(view.parameters()), DTensor)
        losses = train(view, optimizer, accelerator, tasks=method == "poly")
        view.save_pretrained(folder / method, is_main_process=accelerator.is_main_process)
        found[method] = losses
        accelerator.free_memory()
    return found


def refused_adalora(accelerator: Any) -> str:
    view = view_of("adalora")
    view, _ = accelerator.prepare(view, optimizer_of(view))
    message = refused(view.train(), **share(0, 0, 2))
    refused(view.update_and_allocate, 0)
    accelerator.free_memory()
    return message


def mixed(accelerator: Any) -> list[float]:
    """A 16-bit base with adapters in float32, in the same groups."""
    view = view_of("dora", dtype=torch.bfloat16)
    assert {p.dtype for p in view.parameters() if p.requires_grad} == {torch.float32}
    view, optimizer = accelerator.prepare(view, optimizer_of(view))
    losses = train(view, optimizer, accelerator)
    assert {p.dtype for p in view.parameters()} == {torch.float32, torch.bfloat16}
    accelerator.free_memory()
    return losses


def interrupted(accelerator: Any, folder: Path) -> dict[str, Any]:
    """Trains with a checkpoint half way; then what else there is to a sharded view."""
    found: dict[str, Any] = {}
    view = view_of("lora")
    plain = tiny.logits(tiny.base("llama"))
    view, optimizer = accelerator.prepare(view, optimizer_of(view))
    train(view, optimizer, accelerator, range(3))
    accelerator.save_state(str(folder / "state"))
    found["losses"] = train(view, optimizer, accelerator, range(3, STEPS))
    view.save_pretrained(folder / "whole", is_main_process=accelerator.is_main_process)
    logits = tiny.logits(view.eval())
    with view.disable_adapter():
        assert torch.allclose(tiny.logits(view), plain, atol=1e-6)
    found["merge"] = refused(view.merge_adapter)
    found["unload"] = refused(view.merge_and_unload)
    assert torch.equal(tiny.logits(view), logits)
    view.load_adapter(str(folder / "whole"), "second")  # into a view that is sharded
    found["joined"] = refused(view.set_adapter, "second")
    assert view.active_adapters == ["default"]
    view.set_adapter("second", inference_mode=True)
    assert torch.allclose(tiny.logits(view), logits, atol=1e-6)
    view.set_adapter("default")
    accelerator.free_memory()
    return found


def adapter_only(accelerator: Any, view: Any, folder: Path) -> None:
    """accelerate's checkpoints of the adapter alone, both kinds, saved and loaded."""
    before = inlay.get_peft_model_state_dict(view)
    plugin = accelerator.state.fsdp_plugin
    for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        plugin.set_state_dict_type(kind)
        at = str(folder / kind)
        save_fsdp_model(plugin, accelerator, view, at, adapter_only=True)
        dist.barrier()
        if kind == "FULL_STATE_DICT":
            names = set(torch.load(Path(at) / "pytorch_model_fsdp.bin", weights_only=True))
        else:
            names = set(FileSystemReader(str(Path(at) / "pytorch_model_fsdp_0")).read_metadata().state_dict_metadata)
        assert len(names) == len(before), names
        with torch.no_grad():
            for p in (p for p in view.parameters() if p.requires_grad):
                p.fill_(1.0)
        load_fsdp_model(plugin, accelerator, view, at, adapter_only=True)
        after = inlay.get_peft_model_state_dict(view)
        assert all(torch.equal(after[k], v) for k, v in before.items()), kind
    plugin.set_state_dict_type("FULL_STATE_DICT")


def resume(folder: Path) -> dict[str, Any]:
    accelerator = accelerator_of()
    view = tiny.fill(view_of("lora"), 99)
    view, optimizer = accelerator.prepare(view, optimizer_of(view))
    accelerator.load_state(str(folder / "state"))
    losses = train(view, optimizer, accelerator, range(3, STEPS))
    view.save_pretrained(folder / "resumed", is_main_process=accelerator.is_main_process)
    adapter_only(accelerator, view, folder)
    return {"losses": losses}


def main(folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    admit_cpu()
    if what == "resume":
        found = resume(folder)
    else:
        accelerator = accelerator_of()
        found = {
            "methods": every_method(accelerator, folder),
            "adalora": refused_adalora(accelerator),
            "bf16": mixed(accelerator),
            **interrupted(accelerator, folder),
        }
    if dist.get_rank() == 0:
        torch.save(found, folder / f"{what}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2:] or ["train"])[0])
