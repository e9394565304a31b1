"""Runs a script of `tests/peft/scripts` in a process of its own, under `python -m inlay.peft` or under peft itself.

A script says what it found with `common.report(name=value, ...)`: one JSON object, the last line that it prints. It
imports nothing of Inlay's, so that both runs are of the very same file.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import inlay

SCRIPTS = Path(__file__).parent / "scripts"

# warnings are errors under Inlay, but for what others say of themselves (start of the message:category)
FOREIGN = [
    "`torch.jit.script:DeprecationWarning",
    "`torch.jit.script_method:DeprecationWarning",
    "`is_gradient_checkpointing` is deprecated:FutureWarning",  # transformers 5.23, of its own attribute
    "`gradient_checkpointing:FutureWarning",
]


@functools.cache
def run(script: str, *args: str, peft: Literal["inlay", "peft"] = "inlay", timeout: float = 240) -> dict[str, Any]:
    """What `scripts/<script>` reports, run with `args`; once per session for the same call.

    Args:
        peft: what `import peft` means in it.

    Raises:
        AssertionError: it failed; with all that it printed.
    """
    strict = ["-Werror", *(f"-Wignore:{message}" for message in FOREIGN), "-m", "inlay.peft"]
    path = [str(Path(inlay.__file__).parents[1])] if peft == "inlay" else []
    done = subprocess.run(
        [sys.executable, *(strict if peft == "inlay" else []), str(SCRIPTS / script), *args],
        env=environment(*path),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    printed = f"{script} {' '.join(args)} under {peft}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, printed
    lines = done.stdout.strip().splitlines()
    assert lines and lines[-1].startswith("{"), f"no report at the end of the output\n{printed}"
    return dict(json.loads(lines[-1]))


def environment(*path: str) -> dict[str, str]:
    """The variables of a child: one thread, no network, the CPU, and `path` where modules are looked for."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONWARNINGS")}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def both(script: str, *args: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a script reports under Inlay, and under peft."""
    return run(script, *args), run(script, *args, peft="peft")


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-5, at: str = "") -> None:
    """Asserts that two reports agree: numbers to `tolerance` (above 1 relatively), anything else exactly."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict) and ours.keys() == theirs.keys(), (at, ours, theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value, tolerance, f"{at}/{key}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs), (at, ours, theirs)
        for i, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(left, right, tolerance, f"{at}[{i}]")
    elif isinstance(theirs, float):
        assert abs(ours - theirs) <= tolerance * max(1.0, abs(theirs)), f"{at}: {ours} under Inlay, {theirs} under peft"
    else:
        assert ours == theirs, f"{at}: {ours!r} under Inlay, {theirs!r} under peft"
