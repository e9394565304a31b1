"""Run by `test_distributed.py` in two processes: a view under `fully_shard`, with a loop of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from inlay import PeftModel, get_peft_model_state_dict
from inlay.core.adapted import is_adapted

from . import tiny
from .distributed_fsdp import finish, make, start, steps


def shard(view: Any) -> Any:
    for layer in view.model.layers:
        fully_shard(layer)
    return fully_shard(view)


def main(folder: Path) -> None:
    rank, size = start()
    base, view = make()
    before = tiny.logits(base)
    shard(view)
    assert isinstance(view, FSDPModule) and isinstance(view, PeftModel) and isinstance(view, type(base))
    assert isinstance(view.model.layers[0], FSDPModule) and is_adapted(view.model.layers[0].self_attn.q_proj)
    assert all(isinstance(p, DTensor) for p in view.parameters())
    # the base's weights are the view's, so they are sharded with it
    assert base.model.layers[0].self_attn.k_proj.weight is view.model.layers[0].self_attn.k_proj.weight

    losses = steps(view, rank, size)
    logits = tiny.logits(view.eval())
    with torch.no_grad():
        mixed = view(**tiny.batch(), adapter_names=["default", "__base__"]).logits
        with view.disable_adapter():
            plain = view(**tiny.batch()).logits
    assert torch.allclose(plain, before, atol=1e-5)
    assert torch.allclose(mixed, torch.stack([logits[0], before[1]]), atol=1e-5)
    register_fsdp_forward_method(view, "generate")
    prompt = {"input_ids": tiny.batch()["input_ids"], "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    assert view.generate(**prompt, max_new_tokens=3, do_sample=False).shape[0] == 2

    tensors = get_peft_model_state_dict(view)
    assert not any(isinstance(t, DTensor) for t in tensors.values())
    view.save_pretrained(str(folder / "adapter"), is_main_process=rank == 0)
    dist.barrier()
    _, again = make()
    shard(tiny.fill(again, 77)).load_adapter(str(folder / "adapter"), "default")
    assert torch.allclose(tiny.logits(again.eval()), logits, atol=1e-5)
    finish(folder, {"losses": losses, "logits": logits, "tensors": tensors})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
