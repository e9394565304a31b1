"""What both FSDP scripts of `test_distributed.py` do, and what one process does for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import tiny
from .tiny import view_of

STEPS, ROWS = 5, 4


def make() -> tuple[Any, Any]:
    """A base, and a view of it with a module trained in full, and a target whose frozen weight is saved along."""
    base = tiny.base("llama")
    return base, view_of(base, target_modules=[*tiny.TARGETS["llama"], "lm_head"], modules_to_save=["norm"])


def steps(view: Any, rank: int = 0, size: int = 1) -> list[float]:
    """Trains for a few steps on this process's share of each batch; returns the mean losses."""
    view.train()
    optimizer = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(STEPS):
        share = {k: v[rank::size] for k, v in tiny.batch(rows=ROWS, seed=step).items()}
        loss = view(**share).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if size > 1:
            dist.all_reduce(mean)
        losses.append(float(mean) / size)
    return losses


def start() -> tuple[int, int]:
    """(rank, number of processes)."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def finish(folder: Path, results: dict[str, Any]) -> None:
    """Writes the first process's results, and ends."""
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()
    dist.destroy_process_group()
