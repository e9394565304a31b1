"""Two processes on the CPU (gloo) end where one does on the same rows: DDP, FSDP2, DeepSpeed's ZeRO."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.io import plain
from inlay.recipe.recipe import Recipe
from inlay.runs.run import Run
from inlay.train.training import train
from tests.train import tiny

ROOT = Path(__file__).parents[2]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"adapter.lora_dropout": 0.0},
    "full": {"adapter.method": "full", "train.lr": 1e-3},
}
FSDP = {"parallel.fsdp": "full_shard", "train.device": "auto"}


def torchrun(*command: str, fails: bool = False) -> str:
    """Starts processes; returns what they printed."""
    paths = [str(Path(inlay.__file__).parents[1]), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def recipe(folder: Path, out: str, method: str = "lora", **changes: Any) -> Recipe:
    """8 steps of 8 rows; no dropout, which is another with other shapes."""
    if not (folder / "base").exists():
        tiny.base(folder / "base")
        config = json.loads((folder / "base" / "config.json").read_text())
        (folder / "base" / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
        tiny.rows(folder / "rows.jsonl", 32)
    made = tiny.recipe(folder, out, **{"train.log_every": 1, **METHODS[method], **changes})
    plain.write_yaml(folder / f"{out}.yaml", made.model_dump(mode="json", exclude_unset=True))
    return made


def launch(folder: Path, *names: str, fails: bool = False) -> str:
    """Trains recipes of these names in two processes; names that begin with "--" are options of `several`."""
    files = [n if n.startswith("--") or n.isdigit() else str(folder / f"{n}.yaml") for n in names]
    return torchrun("--standalone", "--nproc_per_node=2", "-m", "tests.train.several", *files, fails=fails)


def assert_same(left: Run, right: Run, atol: float = 1e-6) -> None:
    """Losses and weights."""
    losses = [[m["loss"] for m in run.metrics() if "loss" in m] for run in (left, right)]
    assert len(losses[0]) == 8 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    one, two = tiny.weights(left.adapter), tiny.weights(right.adapter)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype and torch.allclose(tensor, two[name], atol=atol), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds what one process trained: `one-lora`, `one-full`."""
    folder = tmp_path_factory.mktemp("several")
    for method in METHODS:
        train(recipe(folder, f"one-{method}", method, **{"train.accumulation": 4}), say=lambda line: None)
    return folder


def interrupted(folder: Path, kind: str, method: str, *options: str, **changes: Any) -> list[str]:
    """Two recipes that are alike, with an evaluation; the second was killed in its fifth step."""
    names = [f"{kind}-{what}-{method}" for what in ("whole", "killed")]
    for name in names:
        recipe(folder, name, method, **{"data.eval": 8, "train.lr": 1e-3, **changes})
    launch(folder, *options, "--die", "9", names[1], fails=True)
    assert [p.name for p in Run.open(folder / names[1]).checkpoints()[0]] == ["checkpoint-3"]
    return names


def assert_same_bits(folder: Path, *names: str) -> None:
    """Of runs two by two."""
    for left, right in zip(names[::2], names[1::2], strict=True):
        one, two = (tiny.weights(Run.open(folder / name).adapter) for name in (left, right))
        assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())
        assert Run.open(folder / left).result == Run.open(folder / right).result


def test_ddp(folder: Path) -> None:
    watched = {"watch.prompts": ["Count"], "watch.max_new_tokens": 3}
    for method in METHODS:
        recipe(folder, f"ddp-{method}", method, **watched)
    killed = interrupted(folder, "ddp", "lora", **{"adapter.lora_dropout": 0.1})
    said = launch(folder, "ddp-lora", "ddp-full", *killed)
    assert said.count("effective batch 8 = 2 rows x 2 passes x 2 processes, 8 steps") == 2  # by one of the two
    for method in METHODS:
        run = Run.open(folder / f"ddp-{method}")
        assert_same(run, Run.open(folder / f"one-{method}"))
        assert run.environment["processes"] == 2 and run.environment["sharded"] is None
        assert [list(s) for s in run.samples()] == [["step", "prompt", "before"], ["step", "prompt", "after"]]
    assert said.count("Going on from checkpoint-3.") == 1
    assert_same_bits(folder, *killed)


def test_fsdp(folder: Path) -> None:
    watched = {"watch.prompts": ["Count"], "watch.max_new_tokens": 3}
    names = ["fsdp-lora", "fsdp-full", "fsdp-other"]
    for method in METHODS:
        recipe(folder, f"fsdp-{method}", method, **FSDP, **watched)
    recipe(folder, "fsdp-other", **FSDP | {"parallel.fsdp": "shard_grad_op", "parallel.wrap": "LlamaDecoderLayer"})
    killed = [name for method in METHODS for name in interrupted(folder, "fsdp", method, "--shard", **FSDP)]
    said = launch(folder, "--shard", *names, *killed)
    for method, name in zip(("lora", "full", "lora"), names, strict=True):
        run = Run.open(folder / name)
        assert_same(run, Run.open(folder / f"one-{method}"))
        assert run.environment["sharded"] == "fsdp"
    assert all(len(Run.open(folder / name).samples()) == 2 for name in names[:2])
    # the base, which is not trained, is in no checkpoint
    whole, torn = Run.open(folder / "fsdp-lora").checkpoints()
    kept = [{p.name for p in checkpoint.iterdir()} for checkpoint in whole]
    assert not torn and len(kept) == 2 and all({"adapter_model.safetensors", "optimizer.bin"} <= k for k in kept)
    assert not any("pytorch_model_fsdp.bin" in names for names in kept)
    assert said.count("Going on from checkpoint-3.") == 2
    assert_same_bits(folder, *killed)


def test_a_loss_that_is_not_finite_stops_all(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = folder / "poisoned"
    other.mkdir()
    recipe(other, "run", **FSDP)
    lines = (other / "rows.jsonl").read_text().splitlines()
    lines[7] = json.dumps({"instruction": "Say", "output": "<|im_start|> it"})
    (other / "rows.jsonl").write_text("\n".join(lines))
    weights = load_file(other / "base" / "model.safetensors")
    from tests.data.tokenizers import gpt2_like

    weights["model.embed_tokens.weight"][gpt2_like().convert_tokens_to_ids("<|im_start|>")] = float("nan")
    save_file(weights, other / "base" / "model.safetensors", {"format": "pt"})
    said = launch(other, "--shard", "run", fails=True)
    found = [line for line in said.splitlines() if "NumericsError: The loss of step" in line]
    # both say it, with the rows of the one that had them
    assert len(found) == 2 and len({line.partition("NumericsError")[2] for line in found}) == 1
    assert "is nan, on rows" in found[0] and "The step was not made" in found[0]


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero(folder: Path, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = ROOT / "examples" / "launch" / f"deepspeed_zero{stage}.json"
    straight, killed = ("lora", "full") if stage == 2 else ("full", "lora")
    for method in METHODS:
        recipe(folder, f"zero{stage}-{method}", method, **{"parallel.deepspeed": str(config), "train.device": "auto"})
    launch(folder, "--shard", "--die", "9", f"zero{stage}-{killed}", fails=True)
    said = launch(folder, "--shard", f"zero{stage}-{killed}") + launch(folder, "--shard", f"zero{stage}-{straight}")
    assert said.count("Going on from checkpoint-3.") == 1
    for method in METHODS:
        run = Run.open(folder / f"zero{stage}-{method}")
        assert_same(run, Run.open(folder / f"one-{method}"))
        assert run.environment["sharded"] == "deepspeed"
