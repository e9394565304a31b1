"""Finished runs over one tiny base: what the tests of using runs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inlay.train.training import train
from tests.train import tiny

SHORT = {"train.max_steps": 6, "train.save_every": 6, "train.lr": 0.05}


def quiet(line: str) -> None: ...


def made(folder: Path, *names: str) -> Path:
    """Makes the runs of these names in runs/, over base/:

    mine    LoRA on Alpaca's rows, a fifth of them held out
    talker  LoRA on conversations, with watch prompts and a chat template of the recipe's
    whole   all weights, on Alpaca's rows
    """
    for name in names:
        train(tiny.recipe(folder, f"runs/{name}", **{**SHORT, **_changes(folder, name)}), say=quiet)
    return folder


def _changes(folder: Path, name: str) -> dict[str, Any]:
    if name == "talker":
        conversations(folder / "talks.jsonl")
        watched = {"watch.prompts": ["Count to 3.", "Count to 4."], "watch.max_new_tokens": 4}
        return {"data.train": str(folder / "talks.jsonl"), "data.chat_template": "plain", "adapter.r": 4, **watched}
    return {"mine": {"data.eval": 0.2}, "whole": {"adapter.method": "full"}}[name]


def conversations(path: Path, count: int = 20) -> Path:
    """Rows of messages."""
    rows = [
        {"messages": [{"role": "user", "content": f"Count to {i}."}, {"role": "assistant", "content": f"one {i}"}]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
