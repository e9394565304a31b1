"""The recipes in examples/: each is one, and trains two steps on a tiny base with rows of its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inlay.recipe.recipe import Recipe
from inlay.train.training import train
from tests.train import tiny

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
# what a CPU and a test do otherwise: everything else is as in the file
SMALL = {
    "model.quantize": "none",
    "data.max_length": 96,
    "train.max_steps": 2,
    "train.batch": 2,
    "train.accumulation": 1,
    "train.optimizer": "adamw_torch",
    "train.precision": "auto",
    "train.tf32": None,
    "train.device": "cpu",
    "parallel.fsdp": "none",
}


def rows_for(recipe: Path, path: Path) -> Path:
    """Rows of the format that a recipe is for."""
    shapes: dict[str, Any] = {
        "chat": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
        "adgen": lambda q, a: {"content": q, "summary": a},
    }
    shape = shapes.get(recipe.stem, lambda q, a: {"instruction": q, "input": "", "output": a})
    made = (shape(f"Count to {i}.", f"one two {i}") for i in range(20))
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_the_readme_lists_every_recipe() -> None:
    text = (FOLDER / "README.md").read_text()
    assert RECIPES and all(f"]({path.name})" in text for path in RECIPES)
    assert text.count(".yaml](") == len(RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(path: Path, tmp_path: Path) -> None:
    given = Recipe.load(path)
    changes: dict[str, Any] = {
        **SMALL,
        "model.name": str(tiny.base(tmp_path / "base")),
        "data.train": str(rows_for(path, tmp_path / "rows.jsonl")),
        "data.eval": None if given.data.eval is None else 4,
        "out": str(tmp_path / "run"),
    }
    if path.stem == "chat":
        changes["data.chat_template"] = "plain"  # the tiny tokenizer has none
    run = train(Recipe.load(path, changes), say=lambda line: None)
    assert run.finished and run.result["steps"] == 2
    assert all(line["loss"] > 0 for line in run.metrics() if "loss" in line)
