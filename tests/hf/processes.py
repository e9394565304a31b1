"""What the scripts run in two processes share with the one process they are compared with: models, batches, steps."""

from __future__ import annotations

import os
from typing import Any

import torch

import inlay
from inlay.errors import StateError

from . import tiny

STEPS, ROWS, RANKS = 6, 4, 2
_LLAMA = {"target_modules": tiny.TARGETS["llama"]}
_CAUSAL = {"task_type": "CAUSAL_LM"}
METHODS: dict[str, Any] = {
    "lora": lambda: inlay.LoraConfig(r=2, lora_alpha=8, modules_to_save=["norm"], **_LLAMA),
    "dora": lambda: inlay.LoraConfig(r=2, lora_alpha=8, use_dora=True, **_LLAMA),
    "ia3": lambda: inlay.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": lambda: inlay.OFTConfig(oft_block_size=4, r=0, **_LLAMA),
    "prompt": lambda: inlay.PromptTuningConfig(num_virtual_tokens=3, **_CAUSAL),
    "encoder": lambda: inlay.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **_CAUSAL),
    "prefix": lambda: inlay.PrefixTuningConfig(num_virtual_tokens=3, **_CAUSAL),
    "poly": lambda: inlay.PolyConfig(r=4, n_tasks=2, n_skills=2, n_splits=2, **_LLAMA),
    "adalora": lambda: inlay.AdaLoraConfig(init_r=4, target_r=2, total_step=STEPS, tinit=1, tfinal=1, **_LLAMA),
}


def view_of(method: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny Llama's view, the same in every process."""
    base = tiny.base("llama").to(dtype)
    torch.manual_seed(7)
    return tiny.fill(inlay.get_peft_model(base, METHODS[method]()))


def optimizer_of(view: Any) -> torch.optim.Optimizer:
    """No Adam: it makes of the last bit of a small gradient a step as large as any."""
    return torch.optim.SGD([p for p in view.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def share(step: int, rank: int, size: int, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """A process's rows of the batch of `step`."""
    return {k: v[rank::size] for k, v in tiny.batch(rows=rows, seed=step).items()}


def train(
    view: Any, optimizer: Any, accelerator: Any = None, steps: Any = range(STEPS), tasks: bool = False
) -> list[float]:
    """Trains on this process's share of each batch; returns the losses over all of it."""
    view.train()
    rank, size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    losses = []
    for step in steps:
        inputs = share(step, rank, size)
        if tasks:
            inputs["task_ids"] = torch.arange(ROWS)[rank::size] // 2 % 2
        loss = view(**inputs).loss
        (accelerator.backward if accelerator else torch.Tensor.backward)(loss)
        optimizer.step()
        inner = getattr(view, "module", view)
        if "AdaLora" in type(inner.active_peft_config).__name__:
            inner.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(loss.detach().clone(), "mean") if accelerator else loss.detach()))
    return losses


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the StateError that a call raises."""
    try:
        call(*args, **kwargs)
    except StateError as error:
        return str(error)
    raise AssertionError("nothing was raised")


def admit_cpu() -> None:
    """Lets accelerate shard on the CPU, which it refuses (accelerate/state.py: FSDP and DeepSpeed ask for devices).

    The one line that is not as it would be for a user: it says that gloo joins several devices. The rest is real.
    """
    from accelerate.state import DistributedType, PartialState

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
