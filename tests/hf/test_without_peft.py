"""Where peft is installed, the tests that might lean on it run once more in an environment that lacks it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import inlay

SELECTED = [
    "resume",
    "best",
    "checkpoint_holds",
    "classifier",
    "push",
    "card",
    "first_view",
    "imported_after",
    "pipeline",
]
SCRIPT = """
import importlib.metadata, importlib.util, sys, pytest
assert importlib.util.find_spec("peft") is None
assert not list(importlib.metadata.distributions(name="peft"))
sys.exit(pytest.main(sys.argv[1:]))
"""


def environment_without_peft(root: Path) -> Path:
    """A virtual environment with everything that is installed here but peft (as links). Returns its interpreter."""
    venv.create(root, symlinks=True, with_pip=False)
    (target,) = root.glob("lib/python3*/site-packages")
    for folder in (Path(p) for p in sys.path if p.endswith(("site-packages", "dist-packages"))):
        for entry in folder.iterdir():
            link = target / entry.name
            if entry.name != "peft" and not entry.name.startswith("peft-") and not link.exists():
                link.symlink_to(entry)
    return root / "bin" / "python"


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed: all tests run without it")
def test_trainer_and_pipelines_work_without_peft(tmp_path: Path) -> None:
    python = environment_without_peft(tmp_path / "venv")
    here = Path(__file__).parent
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [python, "-c", SCRIPT, here / "test_trainer.py", here / "test_generation.py", "-k", " or ".join(SELECTED)]
        + ["-p", "no:cacheprovider", "-p", "no:xdist"],
        env={**kept, "PYTHONPATH": str(Path(inlay.__file__).parents[1])},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 15, done.stdout
