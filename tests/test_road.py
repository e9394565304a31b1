"""The whole road, each step a process of its own: rows from an endpoint, training, comparing, exporting, using."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay import Run
from inlay.data import read
from tests import smollm2
from tests.selfinstruct.endpoint import KEY, SERVER_ERROR, FakeEndpoint, rate_limit

SRC = Path(__file__).parents[1] / "src"
ASKED = "Describe how anchor basket candle dragon ember falcon fit together 12"


def inlay(folder: Path, *args: str) -> str:
    """What a command line prints, run in `folder` and offline."""
    env = {**os.environ, "PYTHONPATH": str(SRC), "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "inlay", *args], cwd=folder, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"inlay {' '.join(args)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def written(model: Any, tokenizer: Any, ids: list[int]) -> str:
    """The likeliest continuation."""
    inputs = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=24
        )
    return str(tokenizer.decode(out[0, len(ids) :]))


def test_from_an_endpoint_to_a_merged_model(tmp_path: Path) -> None:
    smollm2.save(tmp_path / "base")
    with FakeEndpoint(faults=[rate_limit(**{"retry-after": "0"}), SERVER_ERROR]) as server:
        made = ("generate-instructions", "--endpoint", server.url, "--model", "fake", "--out", "rows.jsonl")
        inlay(tmp_path, *made, "--count", "48", "--seed", "1")
        assert server.refused == [429, 500]
    assert len(list(read(tmp_path / "rows.jsonl").rows)) >= 48

    start = ("train", "--model", "base", "--data", "rows.jsonl", "--eval", "8", "--out", "runs/mine", "--lr", "2e-3")
    inlay(tmp_path, *start, "--batch", "4", "--accumulation", "1", "--epochs", "1", "--max-length", "256")
    run = Run.open(tmp_path / "runs/mine")
    held_out = [line["eval_loss"] for line in run.metrics() if "eval_loss" in line]
    assert held_out[-1] < held_out[0] - 1
    assert (run.folder / "report.html").is_file()

    (tmp_path / "prompts.txt").write_text(ASKED + "\n")
    short = ("--prompts", "prompts.txt", "--max-new-tokens", "24", "--out", "comparison.json")
    assert "An answer about" in inlay(tmp_path, "compare", "runs/mine", *short)
    compared = json.loads((tmp_path / "comparison.json").read_text())
    before, after = compared["rows"][0]["answers"]
    assert after["text"].startswith("An answer about") and not before["text"].startswith("An answer about")

    printed = inlay(tmp_path, "export", "runs/mine", "--to", "merged", "--verify", "--out", "merged")
    assert "logits differ by at most" in printed

    view, tokenizer = run.load()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    own = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = run.asked([ASKED])[0]
    assert own.decode(ids) == tokenizer.decode(ids)
    text = written(plain, own, ids)
    assert text == written(view, tokenizer, ids)
    assert text.startswith(after["text"][:16])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert text != written(base, tokenizer, ids)
