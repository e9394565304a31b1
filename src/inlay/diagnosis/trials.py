"""What is tried out: libraries that bring compiled code, each in a process of its own, and a training step.

What is looked at may be what is broken, so this package imports nothing outside functions but the standard library.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from inlay.diagnosis.finding import BROKEN, NOTE, OK, Finding

_SECONDS = 60.0  # for a library to show that it works
_START = "import torch; d = 'cuda' if torch.cuda.is_available() else 'cpu'; x = torch.randn(64, 64, device=d); "

LIBRARIES = {
    "bitsandbytes": "import bitsandbytes as b; q, s = b.functional.quantize_4bit(x, quant_type='nf4'); "
    "assert (b.functional.dequantize_4bit(q, s) - x).abs().max() < 1",
    "torchao": "from torchao.quantization import Int8WeightOnlyConfig, quantize_; m = torch.nn.Linear(64, 64).to(d); "
    "y = m(x); quantize_(m, Int8WeightOnlyConfig()); assert (m(x) - y).abs().max() < 1",
    "hqq": "from hqq.core.quantize import BaseQuantizeConfig, HQQLinear; m = torch.nn.Linear(64, 64).to(d); y = m(x); "
    "m = HQQLinear(m, BaseQuantizeConfig(nbits=8, group_size=64), compute_dtype=x.dtype, device=d); "
    "assert (m(x) - y).abs().max() < 1",
    "triton": "import triton; f = torch.compile(lambda x: (x + 1).relu()); assert torch.equal(f(x), (x + 1).relu())",
}
"""Package -> a program that fails unless it works. `x` is a matrix, on the device `d`."""

_IMPORTED = ("transformers.trainer", "accelerate", "datasets", "inlay.train.training")
_ABSENT = {"triton": "not installed, nor needed: the kernels here are torch's"}


def libraries() -> Iterator[Finding]:
    """Whether the quantisation libraries, and Triton, work here. A crash of theirs is none of ours."""
    running = {}
    for name, code in LIBRARIES.items():
        if importlib.util.find_spec(name) is not None:
            command = [sys.executable, "-W", "ignore", "-c", _START + code]
            running[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + _SECONDS
    for name in LIBRARIES:
        if name not in running:
            yield Finding("trials", name, _ABSENT.get(name, "not installed"))
            continue
        value = _outcome(running[name], deadline)
        yield Finding("trials", name, value or "works", NOTE if value else OK)


def command() -> Iterator[Finding]:
    """Whether what `inlay train` is made of can be imported: transformers, accelerate, datasets and what they need."""
    try:
        for name in _IMPORTED:
            importlib.import_module(name)
    except Exception as error:  # whatever a package raises when it is imported
        value = f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
        yield Finding("trials", "inlay train", value, BROKEN, "pip install --upgrade 'inlay[cli]'")
    else:
        yield Finding("trials", "inlay train", "can be imported")


def training() -> Iterator[Finding]:
    """An adapter is made, trained for a step, saved, and loaded again: does it answer as before?"""
    torch = importlib.import_module("torch")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        started = time.monotonic()
        fault = _train(torch, device)
        took = time.monotonic() - started
        value = fault or f"on {device}: an adapter trains, is saved, and loads as it was ({took:.1f} s)"
        yield Finding("trials", "training", value, BROKEN if fault else OK, "report this" if fault else "")


training.essential = True  # type: ignore[attr-defined]


def _train(torch: Any, device: str) -> str:
    """What goes wrong; "" if nothing does."""
    from inlay.methods.lora.config import LoraConfig
    from inlay.model import PeftModel
    from inlay.tasks import get_peft_model

    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        base = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).to(device)
        x = torch.randn(5, 8, device=device)
        view = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "2"]))
        before = view(x).detach()
        optimizer = torch.optim.SGD([p for p in view.parameters() if p.requires_grad], lr=0.1)
        view(x).square().sum().backward()
        optimizer.step()
        after = view.eval()(x).detach()
        if torch.equal(before, after) or not bool(torch.isfinite(after).all()):
            return f"on {device}: a training step does not change what the model answers"
        view.save_pretrained(folder)
        again = PeftModel.from_pretrained(base, folder)(x)
        return "" if torch.equal(again, after) else f"on {device}: a saved adapter does not answer as it did"


def _outcome(process: subprocess.Popen[str], deadline: float) -> str:
    """How a process failed; "" if it did not."""
    try:
        _, said = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"does not work: no answer within {_SECONDS:g} s"
    if process.returncode == 0:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"does not work: {lines[-1][:200] if lines else f'its process ended with {process.returncode}'}"
