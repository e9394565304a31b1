"""Two processes on the CPU (gloo) end where one does with the same batches: DDP in Trainer, FSDP2 and FSDP1 by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import inlay
from inlay import PeftModel, get_peft_model_state_dict
from inlay.io.folder import WEIGHTS_NAME

from ..tiny import older
from . import distributed_ddp, distributed_fsdp, tiny


def launch(module: str, folder: Path, *arguments: str) -> None:
    """Runs `tests/hf/<module>.py` in two processes."""
    torchrun("-m", f"{__package__}.{module}", str(folder), *arguments)


def torchrun(*command: str) -> str:
    """Runs a script in two processes; returns what it printed."""
    root = Path(__file__).parents[len(str(__package__).split("."))]  # where this package is found
    paths = [str(Path(inlay.__file__).parents[1]), str(root), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.allclose(value, right[key], atol=1e-5), key


def test_ddp_through_trainer(tmp_path: Path) -> None:
    launch("distributed_ddp", tmp_path)
    alone = distributed_ddp.trained(tmp_path / "alone", 2, 1)
    expected = get_peft_model_state_dict(alone)
    whole = load_file(tmp_path / "whole" / "final" / WEIGHTS_NAME)
    assert_close(whole, expected)
    if not older("torch", "2.12"):
        assert_close(load_file(tmp_path / "resumed" / "final" / WEIGHTS_NAME), whole)
    saved = {p.name for p in (tmp_path / "whole" / "checkpoint-3").iterdir()}
    assert WEIGHTS_NAME in saved and "model.safetensors" not in saved


@pytest.mark.parametrize("version", [2, 1])
def test_fsdp(tmp_path: Path, version: int) -> None:
    launch(f"distributed_fsdp{version}", tmp_path)
    found = torch.load(tmp_path / "results.pt", weights_only=True)
    assert "base_model.model.lm_head.base_layer.weight" in found["tensors"]
    _, alone = distributed_fsdp.make()
    assert found["losses"] == pytest.approx(distributed_fsdp.steps(alone), abs=1e-5)
    assert_close(found["tensors"], get_peft_model_state_dict(alone))
    assert_close(load_file(tmp_path / "adapter" / WEIGHTS_NAME), found["tensors"])
    loaded = PeftModel.from_pretrained(tiny.base("llama"), str(tmp_path / "adapter"))
    assert torch.allclose(tiny.logits(loaded), found["logits"], atol=1e-5)
    assert torch.allclose(tiny.logits(loaded), tiny.logits(alone.eval()), atol=1e-5)


def test_replicas_of_data_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Trainer does on several GPUs without torchrun, with copies on the CPU in place of those on the devices."""
    replicate = sys.modules["torch.nn.parallel.replicate"]

    def copies(tensors: list[torch.Tensor], devices: list[int], detach: bool = False) -> list[list[torch.Tensor]]:
        return [[t.clone() for t in tensors] for _ in devices]

    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(replicate, "_get_device_index", lambda device, _: device)
    view, whole = (tiny.view_of(tiny.base("llama"), modules_to_save=["norm"]) for _ in range(2))
    inputs = tiny.batch()
    replicas = torch.nn.parallel.replicate(view, [0, 1])
    assert all(isinstance(replica, PeftModel) for replica in replicas)
    losses = [replica(**{k: v[i : i + 1] for k, v in inputs.items()}).loss for i, replica in enumerate(replicas)]
    torch.stack(losses).mean().backward()
    whole(**inputs).loss.backward()
    assert_close(tiny.gradients(view), tiny.gradients(whole))
