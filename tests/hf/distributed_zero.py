"""Run by `test_processes.py` in two processes: views under DeepSpeed's ZeRO as accelerate prepares it."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported
warnings.simplefilter("ignore")  # DeepSpeed's own

import deepspeed  # noqa: E402
from accelerate import Accelerator, DeepSpeedPlugin  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from transformers.integrations import HfDeepSpeedConfig  # noqa: E402

import inlay  # noqa: E402

from . import tiny  # noqa: E402
from .processes import METHODS, admit_cpu, optimizer_of, refused, train, view_of  # noqa: E402

UNFIT = ("adalora", "poly")


def plugin_of(stage: int) -> Any:
    plugin = DeepSpeedPlugin(zero_stage=stage, gradient_accumulation_steps=1, zero3_init_flag=False)
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 2
    plugin.deepspeed_config["gradient_clipping"] = 0.0  # which else accelerate sets to 1
    plugin.deepspeed_config["zero_allow_untested_optimizer"] = True  # SGD
    if stage == 3:  # else parameters as small as these stay whole
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return plugin


def every_method(stage: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in METHODS:
        if method in UNFIT or (stage == 2 and method != "lora"):
            continue
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(deepspeed_plugin=plugin_of(stage))
        view = view_of(method)
        engine, optimizer = accelerator.prepare(view, optimizer_of(view))
        assert any(p.numel() == 0 for p in view.parameters()) == (stage == 3)
        found[method] = train(engine, optimizer, accelerator)
        view.save_pretrained(folder / method, is_main_process=accelerator.is_main_process)
        assert any(p.numel() == 0 for p in view.parameters()) == (stage == 3)  # given back
        dist.barrier()
        if method == "lora":
            found["load"] = refused(view.load_adapter, str(folder / method), "default")
            if stage == 3:
                found["merge"] = refused(view.merge_adapter)
            # as Trainer saves: one process, with what the engine gathered
            state_dict = accelerator.get_state_dict(engine) if stage == 2 else gathered(view)
            if accelerator.is_main_process:
                view.save_pretrained(folder / "given", state_dict=state_dict)
        dist.barrier()
        engine.destroy()
        accelerator.free_memory()
    return found


def gathered(view: Any) -> dict[str, torch.Tensor]:
    with deepspeed.zero.GatheredParameters(list(view.parameters())):
        return {k: v.clone() for k, v in view.state_dict().items()}


def born_partitioned(folder: Path) -> dict[str, torch.Tensor]:
    """A base whose weights are partitioned before the view is made, as `from_pretrained` does under ZeRO-3."""
    plugin = plugin_of(3)
    config = {**plugin.deepspeed_config, "train_batch_size": 4}
    base = tiny.base("llama")
    base.save_pretrained(folder / "base")
    dist.barrier()
    keep = HfDeepSpeedConfig(config)
    away = type(base).from_pretrained(folder / "base")
    del keep
    assert all(p.numel() == 0 for p in away.parameters())
    torch.manual_seed(7)
    config = inlay.LoraConfig(r=2, use_dora=True, modules_to_save=["norm"], target_modules=tiny.TARGETS["llama"])
    return inlay.get_peft_model_state_dict(inlay.get_peft_model(away, config))


def main(folder: Path, stage: int) -> None:
    torch.set_num_threads(1)
    admit_cpu()
    found = {"methods": every_method(stage, folder)}
    if stage == 3:
        found["born"] = born_partitioned(folder)
    if dist.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
