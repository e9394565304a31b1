"""The machine: python, memory, disk, devices, and where Hugging Face's libraries keep what they fetch."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inlay.diagnosis.finding import BROKEN, NOTE, OK, Finding
from inlay.readable import size

_OLDEST = (3, 10)
_LITTLE = 2e9  # bytes of memory or disk that are worth a word
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def system() -> Iterator[Finding]:
    """Python, the operating system, and the processor."""
    fits = sys.version_info[:2] >= _OLDEST
    fix = "" if fits else f"install Python {'.'.join(map(str, _OLDEST))} or later"
    yield Finding("machine", "python", f"{platform.python_version()} at {sys.executable}", OK if fits else BROKEN, fix)
    yield Finding("machine", "platform", platform.platform())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("machine", "processors", f"{usable} of {os.cpu_count()} may be used")


def memory() -> Iterator[Finding]:
    """Memory, and room on the disk of the present folder."""
    total, free = _memory()
    state = NOTE if free < _LITTLE else OK
    yield Finding("machine", "memory", f"{size(free)} free of {size(total)}", state)
    disk = shutil.disk_usage(".")
    state = NOTE if disk.free < _LITTLE else OK
    yield Finding("machine", "disk", f"{size(disk.free)} free of {size(disk.total)} at {Path.cwd()}", state)


def devices() -> Iterator[Finding]:
    """What torch can compute on."""
    torch = importlib.import_module("torch")
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"HIP {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    yield Finding("devices", "torch", f"{torch.__version__}, built for {build}; {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            yield _gpu(torch, i)
    elif getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        yield Finding("devices", "mps", "Apple's GPU can be used")
    elif shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        fix = "install torch's CUDA build" if build == "CPU" else "look at nvidia-smi: driver and torch's CUDA must fit"
        yield Finding("devices", "gpu", "there is an NVIDIA driver, but torch cannot use a GPU", NOTE, fix)
    else:
        yield Finding("devices", "gpu", "none: training runs on the CPU")


def hub() -> Iterator[Finding]:
    """Where models are kept that were fetched, and whether anything may be fetched. Tokens are not shown."""
    cache: Path = importlib.import_module("inlay.io.hub").cache_folder()
    count = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    there = next(p for p in (cache, *cache.parents) if p.exists())
    state, fix = (OK, "") if os.access(there, os.W_OK) else (NOTE, "set HF_HOME to a folder that can be written to")
    about = f"{count} models, {size(shutil.disk_usage(there).free)} free"
    yield Finding("hub", "cache", f"{cache} ({about})", state, fix)
    on = [name for name in _OFFLINE if os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON")]
    yield Finding("hub", "network", f"off, by {', '.join(on)}" if on else "may be used to fetch models and data")


def _gpu(torch: Any, i: int) -> Finding:
    about = torch.cuda.get_device_properties(i)
    free, total = torch.cuda.mem_get_info(i)
    wide = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
    capability = f"compute capability {about.major}.{about.minor}"
    return Finding("devices", f"cuda:{i}", f"{about.name}, {size(free)} free of {size(total)}, {capability}, {wide}")


def _memory() -> tuple[float, float]:
    """Bytes of memory: all, and free."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        rows = (line.split() for line in meminfo.read_text().splitlines())
        kib = {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1}
        return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    psutil = importlib.import_module("psutil")
    found = psutil.virtual_memory()
    return found.total, found.available
