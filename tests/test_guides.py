"""Every guide runs in its short form, offline, with the data it writes itself, and shows the improvement it claims."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "examples" / "guides"
HELPERS = {"common", "stand_ins", "own_data"}

# guide -> what its last table must say: (measure, how it changes, the share of the base's or the gain that bounds it)
CLAIMS: dict[str, list[tuple[str, str, float]]] = {
    "prompt_tuning_two_models": [("prompts", "falls to", 0.97), ("quotes", "falls to", 0.93)],
    "lora_prompt_writer": [("loss per token", "falls to", 0.95)],
    "lora_image_classification": [("accuracy", "rises by", 0.2)],
    "prefix_tuning_t5": [("accuracy", "rises by", 0.4), ("loss per token", "falls to", 0.6)],
    "prompt_tuning_tweets": [("accuracy", "rises by", 0.3), ("loss per token", "falls to", 0.6)],
    "lora_semantic_segmentation": [("mean IoU", "rises by", 0.3), ("pixel accuracy", "rises by", 0.4)],
    "p_tuning_paraphrases": [("accuracy", "rises by", 0.08), ("loss", "falls to", 0.97)],
    "merging": [("loss, capitals", "falls to", 0.8), ("loss, coins", "falls to", 0.8)],
}


def run(name: str, folder: Path) -> str:
    """What a guide prints. Any warning is an error, but for what hqq says when transformers imports it."""
    noise = ["-W", "ignore:`torch.jit.script:DeprecationWarning"]
    command = [sys.executable, "-W", "error", *noise, str(GUIDES / f"{name}.py"), "--short"]
    command += ["--data", str(folder / "nothing"), "--out", str(folder)]
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def improvements(printed: str) -> dict[str, tuple[float, float]]:
    """measure -> (base, adapted), of the table that is called "before and after"."""
    title, _, table = printed.partition("before and after")
    assert title and table, f"no table of before and after in:\n{printed}"
    rows = [[cell.strip() for cell in line.strip(" │").split("│")] for line in table.splitlines() if "│" in line]
    return {row[0]: (float(row[1]), float(row[2])) for row in rows}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_guide_shows_what_it_claims(name: str, tmp_path: Path) -> None:
    printed = run(name, tmp_path)
    assert re.search(r"^trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: [\d.]+$", printed, re.M)
    assert re.search(r"saved: \d+ kB in ", printed)
    assert re.search(r"loaded again: the same ", printed)
    table = improvements(" ".join(printed.split(" ")))
    for measure, change, bound in CLAIMS[name]:
        before, after = table[measure]
        assert after <= bound * before if change == "falls to" else after >= before + bound, (measure, before, after)
    if name in ("prompt_tuning_two_models", "merging"):
        there, all_ = map(int, re.search(r"(\d+) of the base's (\d+) weight tensors", printed).groups())  # type: ignore[union-attr]
        assert there == all_ > 0


def test_every_guide_is_tested_and_listed() -> None:
    names = {file.stem for file in GUIDES.glob("*.py")} - HELPERS
    assert names == set(CLAIMS)
    listed = set(re.findall(r"\]\((\w+)\.py\)", (GUIDES / "README.md").read_text(encoding="utf-8")))
    assert listed == names


@pytest.mark.parametrize("name", CLAIMS)
def test_a_guide_is_a_notebook_of_cells(name: str) -> None:
    text = (GUIDES / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    cells = re.split(r"^# %%", text, flags=re.M)[1:]
    for cell in cells:
        head, _, body = cell.partition("\n")
        assert head in ("", " [markdown]"), head
        if head:
            assert all(line.startswith("#") for line in body.splitlines() if line), f"code in a text cell:\n{body}"
        else:
            ast.parse(body)  # a cell is run by itself
