"""Trackers: that their packages are there, and that they write into the run's folder.

They are transformers' own (`report_to`); where they write is said by variables of the environment, which are set for as
long as the run trains. One that is set already stays as it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inlay.errors import MissingExtraError
from inlay.runs.run import Run


def check_trackers(names: Sequence[str]) -> None:
    """Raises MissingExtraError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"report.trackers names {name!r}, whose package is not installed. Install it with: pip install {name}"
            )


@contextmanager
def tracked(run: Run, names: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Within this block the trackers write into the run's folder; at its end they are closed."""
    own = {key: value for key, value in _variables(run, names).items() if key not in os.environ}
    if "trackio" in names and "TRACKIO_DIR" in own:
        _warn_of_other_folder(Path(own["TRACKIO_DIR"]), say)
    others = _wandb_run()  # one that was begun before is not ours to end
    os.environ.update(own)
    try:
        yield
    finally:
        for key in own:
            os.environ.pop(key, None)
        if "wandb" in names and _wandb_run() is not others:
            sys.modules["wandb"].finish()


def _variables(run: Run, names: Sequence[str]) -> dict[str, str]:
    if not names:
        return {}
    folder = run.folder.absolute()
    identity = f"{folder} {run.environment.get('began')}"  # the same when the run goes on, another after --fresh
    variables = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard")},
        "trackio": {"TRACKIO_DIR": str(folder / "trackio")},
        "wandb": {
            "WANDB_DIR": str(folder),  # in which it makes wandb/
            "WANDB_PROJECT": "inlay",
            "WANDB_RUN_ID": hashlib.sha256(identity.encode()).hexdigest()[:12],
            "WANDB_RESUME": "allow",
        },
    }
    return {key: value for name in names for key, value in variables[name].items()}


def _warn_of_other_folder(folder: Path, say: Callable[[str], None]) -> None:
    """trackio reads its folder once, when it is imported."""
    loaded = sys.modules.get("trackio.utils")
    if loaded is not None and folder != loaded.TRACKIO_DIR:
        say(f"WARNING: trackio writes to '{loaded.TRACKIO_DIR}', as it did first in this process.")


def _wandb_run() -> object:
    return getattr(sys.modules.get("wandb"), "run", None)
