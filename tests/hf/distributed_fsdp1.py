"""Run by `test_distributed.py` in two processes: a view under FSDP1, with a loop of its own."""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from inlay import get_peft_model_state_dict

from . import tiny
from .distributed_fsdp import finish, make, start, steps


def main(folder: Path) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # torch's, about FSDP1 itself
    rank, size = start()
    _, view = make()
    layers = {type(view.model.layers[0])}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=layers)
    wrapped = FSDP(view, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"))
    losses = steps(wrapped, rank, size)
    logits = tiny.logits(wrapped.eval())
    with FSDP.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT, FullStateDictConfig()):
        state_dict = wrapped.state_dict()
    view.save_pretrained(str(folder / "adapter"), state_dict=state_dict, is_main_process=rank == 0)
    tensors = get_peft_model_state_dict(view, state_dict=state_dict)
    dist.barrier()
    finish(folder, {"losses": losses, "logits": logits, "tensors": tensors})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
