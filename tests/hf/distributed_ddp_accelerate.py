"""Run by `test_processes.py` in two processes: views under DDP as accelerate prepares it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

import inlay

from . import tiny
from .processes import METHODS, STEPS, optimizer_of, share, train, view_of


def every_method(accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    found = {}
    for method in METHODS:
        view = view_of(method)
        wrapped, optimizer = accelerator.prepare(view, optimizer_of(view))
        assert isinstance(wrapped, DistributedDataParallel)
        found[method] = train(wrapped, optimizer, accelerator, tasks=method == "poly")
        view.save_pretrained(folder / method, is_main_process=accelerator.is_main_process)
        if method == "adalora":
            masks: list[Any] = [None] * accelerator.num_processes
            dist.all_gather_object(masks, view.peft_config["default"].rank_pattern)
            assert masks[0] is not None and masks[0] == masks[1]
        accelerator.free_memory()
    return found


def accumulated(folder: Path) -> None:
    """Two micro-batches per step, the first without talking to the other process; one adapter of two is trained."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    view = view_of("lora")
    view.add_adapter("other", tiny.lora())
    view, optimizer = accelerator.prepare(view, optimizer_of(view))
    view.train()
    for micro in range(2 * STEPS):
        with accelerator.accumulate(view):
            rows = share(micro // 2, accelerator.process_index, 2)
            loss = view(**{k: v[micro % 2 :: 2] for k, v in rows.items()}).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    # every process saves to one place, as scripts do that forget to ask who they are
    inlay_view = accelerator.unwrap_model(view)
    for _ in range(3):
        inlay_view.save_pretrained(folder / "both", selected_adapters=["default"])
    accelerator.wait_for_everyone()
    loaded = inlay.PeftModel.from_pretrained(tiny.base("llama"), folder / "both")
    assert torch.equal(tiny.logits(loaded), tiny.logits(inlay_view.eval()))
    accelerator.free_memory()


def checkpoint(accelerator: Accelerator, folder: Path) -> None:
    view = view_of("lora")
    wrapped, optimizer = accelerator.prepare(view, optimizer_of(view))
    train(wrapped, optimizer, accelerator, range(3))
    accelerator.save_state(str(folder / "state"))
    train(wrapped, optimizer, accelerator, range(3, STEPS))
    view.save_pretrained(folder / "whole", is_main_process=accelerator.is_main_process)


def resume(accelerator: Accelerator, folder: Path) -> None:
    view = tiny.fill(view_of("lora"), 99)
    wrapped, optimizer = accelerator.prepare(view, optimizer_of(view))
    accelerator.load_state(str(folder / "state"))
    train(wrapped, optimizer, accelerator, range(3, STEPS))
    view.save_pretrained(folder / "resumed", is_main_process=accelerator.is_main_process)


def main(folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    if what == "resume":
        resume(accelerator, folder)
    else:
        found = {"methods": every_method(accelerator, folder)}
        checkpoint(accelerator, folder)
        accumulated(folder)
        if accelerator.is_main_process:
            torch.save(found, folder / "train.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2:] or ["train"])[0])
