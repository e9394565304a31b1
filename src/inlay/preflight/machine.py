"""What this machine has: free memory, and the rate at which it multiplies matrices."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or that this machine can give to a process, within its cgroup's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def product_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest of some products of two square matrices."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    best, end = math.inf, time.perf_counter() + seconds
    for turn in range(10**6):
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        best = min(best, now - begin) if turn else best  # the first one readies the device
        if now > end and turn:
            break
    return 2 * n**3 / best


def name_of(device: torch.device) -> str:
    """A GPU's name; "this CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
